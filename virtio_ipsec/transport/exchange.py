"""A device and, on a port that an operator controls, his policy between it and the wire: as one, for rings and workers.

Nothing here is for several threads at a time: whoever calls holds the port's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.state import DataPlaneContext, Received
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath.pipeline import RxState
from virtio_ipsec.policy.operator import Snapshot
from virtio_ipsec.policy.sas import HeldSa
from virtio_ipsec.policy.tables import Address
from virtio_ipsec.wire.numbers import Feature, mask


class Verdict(Protocol):
    """What becomes of one frame at an operator's port."""

    @property
    def to_wire(self) -> list[bytes]:
        """Frames that leave."""

    @property
    def to_guest(self) -> list[bytes]:
        """Frames for the guest."""


class Operator(Protocol):
    """What a port asks of an operator's policy. Times are in nanoseconds of the monotonic clock."""

    def from_guest(self, frame: bytes, now: int) -> Verdict:
        """A frame that the guest sends."""

    def from_wire(self, frame: bytes, now: int) -> Verdict:
        """A frame that has arrived."""

    def opened(self, frame: bytes, l3: int, id: int, source: Address | None, now: int) -> Verdict:
        """The rest of the way of a frame that the fast path has opened with inbound SA ``id``."""

    def tick(self, now: int) -> Verdict:
        """Time has passed."""

    def deadline(self) -> int | None:
        """When :meth:`tick` is due."""

    def counters(self) -> Mapping[str, int]:
        """Event counts."""

    @property
    def generation(self) -> int:
        """Another number whenever :meth:`snapshot` is another one."""

    def snapshot(self) -> Snapshot:
        """What the fast path needs to do the same."""

    @property
    def sas(self) -> tuple[HeldSa, ...]:
        """The live SAs."""


class Exchange:
    """The byte level of a port. What goes the other way than asked for waits in ``to_wire`` and ``to_guest``."""

    def __init__(self, device: Device, operator: Operator | None, clock: Callable[[], int]) -> None:
        self.device = device
        self.operator = operator
        self.to_wire: list[bytes] = []
        self.to_guest: list[Received] = []
        self._clock = clock

    @property
    def config(self) -> DeviceConfig:
        """The device's."""
        return self.device.config

    @property
    def context(self) -> DataPlaneContext:
        """The device's, another one after each reset."""
        return self.device.context

    @property
    def is_operating(self) -> bool:
        """Whether buffers may be consumed."""
        return self.device.is_operating

    def needs_reset(self) -> None:
        """An error that only a reset cures."""
        self.device.needs_reset()

    def admin(self, readable: bytes, writable_len: int) -> bytes:
        """One administration command."""
        return self.device.admin(readable, writable_len)

    def control(self, readable: bytes, writable_len: int) -> bytes:
        """One control-queue command."""
        return self.device.control(readable, writable_len)

    def transmit(self, buffer: bytes, queue: int = 0) -> list[bytes]:
        """One transmit buffer to wire frames."""
        frames = self.device.transmit(buffer, queue)
        if self.operator is None:
            return frames
        leaving: list[bytes] = []
        now = self._clock()
        for frame in frames:
            verdict = self.operator.from_guest(frame, now)
            leaving += verdict.to_wire
            self._keep_for_guest(verdict)
        return leaving

    def receive(self, frame: bytes) -> list[Received]:
        """One wire frame to receive buffers."""
        if self.operator is None:
            return self.device.receive(frame)
        verdict = self.operator.from_wire(frame, self._clock())
        self.to_wire += verdict.to_wire
        return [received for each in verdict.to_guest for received in self.device.receive(each)]

    def resume(self, frame: bytes, state: RxState) -> list[Received]:
        """The rest of the way of a frame that the fast path has opened."""
        if self.operator is None:
            return self.device.resume(frame, state)
        verdict = self.operator.opened(frame, state.l3, state.resource_id, state.outer_source, self._clock())
        self.to_wire += verdict.to_wire
        return [received for each in verdict.to_guest for received in self.device.receive(each)]

    def tick(self) -> None:
        """What the operator's timers bring is kept."""
        if self.operator is not None:
            verdict = self.operator.tick(self._clock())
            self.to_wire += verdict.to_wire
            self._keep_for_guest(verdict)

    def deadline(self) -> int | None:
        """When :meth:`tick` is due; None: never, as things are."""
        return None if self.operator is None else self.operator.deadline()

    def take(self) -> tuple[list[bytes], list[Received]]:
        """What was kept, for the wire and for the guest."""
        kept = self.to_wire, self.to_guest
        if kept[0] or kept[1]:
            self.to_wire, self.to_guest = [], []
        return kept

    def _keep_for_guest(self, verdict: Verdict) -> None:
        for frame in verdict.to_guest:
            self.to_guest += self.device.receive(frame)


def check_features(offered: int) -> None:
    """ConfigError when a port that an operator controls would offer IPsec to the driver."""
    if offered & mask(Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER):
        raise ConfigError(
            "a port that the operator controls offers neither ADMIN_VQ nor IPSEC nor OUT_NET_HEADER"
        )
