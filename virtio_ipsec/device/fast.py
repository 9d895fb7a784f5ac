"""What a device has of the C fast path: its SA table, flow filter and steering.

Python decides, C holds: the resource objects put accepted SAs and rules here, both packet paths look them up here.
"""

from __future__ import annotations

from collections.abc import Callable

from virtio_ipsec.device.state import RxFilter, Steering
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath.esp import MAX_SAS, FastInboundSa, FastOutboundSa, FastSaTable, accepts
from virtio_ipsec.fastpath.flow import FlowTable
from virtio_ipsec.fastpath.gcm import engine_names
from virtio_ipsec.fastpath.steering import FlowMemory, SteeringBlock
from virtio_ipsec.ipsec.params import SaParams

#: What ``engine`` of :func:`fast_path` may be.
ENGINES = ("auto", "c", "python")


class FastPath:
    """The tables of one device. ``rng`` seeds their hashes, so that nobody can choose entries that collide."""

    def __init__(self, rng: Callable[[int], bytes]) -> None:
        self._seed = int.from_bytes(rng(8))
        self.sas = FastSaTable(rng)
        self.flow = FlowTable(self._seed)
        self.forget()

    def forget(self) -> None:
        """Device reset: the flows that automatic steering has learned are gone."""
        self.flows = FlowMemory(self._seed)
        self._block: tuple[RxFilter, Steering, int, SteeringBlock] | None = None

    def steering(self, rx_filter: RxFilter, steering: Steering, features: int) -> SteeringBlock:
        """The block for these; the same one as long as they are the same."""
        known = self._block
        if known is None or known[0] is not rx_filter or known[1] is not steering or known[2] != features:
            block = SteeringBlock(rx_filter, steering, features, self.flows, self._seed)
            self._block = known = (rx_filter, steering, features, block)
        return known[3]

    def takes(self, object_id: int, params: SaParams) -> bool:
        """Whether an SA lives in C; else Python has it."""
        return object_id < MAX_SAS and accepts(params)

    def outbound(
        self, object_id: int, params: SaParams, rng: Callable[[int], bytes], *, frozen: bool = False
    ) -> FastOutboundSa:
        """Put an outbound SA into the table. ``rng`` draws its base of IVs; ``frozen``: it waits for ``restore``."""
        return FastOutboundSa(self.sas, object_id, params, rng, frozen=frozen)

    def inbound(self, object_id: int, params: SaParams, *, frozen: bool = False) -> FastInboundSa:
        """Put an inbound SA into the table; ``frozen``: it waits for ``restore``."""
        return FastInboundSa(self.sas, object_id, params, frozen=frozen)


def fast_path(engine: str, rng: Callable[[int], bytes]) -> FastPath | None:
    """The fast path that ``engine`` asks for: "c" or nothing else will do, "python" has none, "auto" takes C where it
    is built and can run. ConfigError for another name, "c" without the extension, or when VIRTIO_IPSEC_ISA forces what
    there is not."""
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r}: one of {', '.join(ENGINES)}")
    if engine == "python" or (engine == "auto" and not engine_names()):
        return None
    return FastPath(rng)
