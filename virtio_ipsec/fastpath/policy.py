"""The operator classifier of csrc/: the decisions of ``policy.selectors``, however many rules there are."""

from __future__ import annotations

from typing import Any

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import native

OUTBOUND, INBOUND_CLEAR, INBOUND_OPENED = range(3)
#: Values of ``policy.selectors.Outcome`` by enum vipsec_policy_outcome.
OUTCOMES = (
    "bypass",
    "protect",
    "drop_rule",
    "drop_default",
    "drop_hidden",
    "drop_cleartext",
    "drop_selector",
    "drop_peer",
    "drop_malformed",
    "not_ip",
)
_ACTIONS = {"bypass": 0, "protect": 1, "drop": 2}


class PolicyTable:
    """A ``policy.selectors.Policy``, made ready. Unchanging; another policy is another table.

    ``seed``: 64 random bits for the hash. ConfigError for a number that has no place in its field.
    """

    __slots__ = ("_handle",)

    def __init__(self, policy: Any, seed: int) -> None:
        ffi, lib = native.extension()
        inbound = [(sa, selector) for sa, known in policy.inbound.items() for selector in known.selectors]
        peers = [(sa, known.peer) for sa, known in policy.inbound.items() if known.peer is not None]
        config: Any = ffi.new("struct vipsec_policy_config *")
        arrays: list[Any] = [
            ffi.new("struct vipsec_policy_rule[]", len(policy.rules)),
            ffi.new("struct vipsec_policy_inbound[]", len(inbound)),
            ffi.new("struct vipsec_policy_peer[]", len(peers)),
        ]
        try:
            for made, rule in zip(arrays[0], policy.rules, strict=True):
                _fill(made.selector, rule.selector)
                made.priority, made.sa_id, made.action = rule.priority, rule.sa or 0, _ACTIONS[rule.action]
            for made, (sa, selector) in zip(arrays[1], inbound, strict=True):
                _fill(made.selector, selector)
                made.sa_id = sa
            for made, (sa, peer) in zip(arrays[2], peers, strict=True):
                made.sa_id, made.family, made.address = sa, peer.version, peer.packed.ljust(16, b"\0")
        except OverflowError as error:
            raise ConfigError(f"a priority or the id of an SA: {error}") from None
        config.hash_seed = seed
        config.rules, config.inbound, config.peers = arrays
        config.rule_count, config.inbound_count, config.peer_count = map(len, arrays)
        config.default_action = _ACTIONS[policy.default]
        handle = lib.vipsec_policy_new(config)
        if handle == ffi.NULL:
            raise MemoryError
        self._handle = ffi.gc(handle, lib.vipsec_policy_free)

    @property
    def handle(self) -> Any:
        """``struct vipsec_policy *``, valid as long as this object."""
        return self._handle

    def decide(
        self, direction: int, packet: bytes, sa: int = 0, outer_source: Any = None
    ) -> tuple[str, int | None, int | None]:
        """(outcome, SA, place of the rule), as a ``Decision``.

        ``direction``: OUTBOUND, INBOUND_CLEAR, or INBOUND_OPENED by inbound SA ``sa`` from ``outer_source``.
        """
        ffi, lib = native.extension()
        verdict: Any = ffi.new("struct vipsec_policy_verdict *")
        version = 0 if outer_source is None else outer_source.version
        source = b"" if outer_source is None else outer_source.packed
        lib.vipsec_policy_decide(self._handle, direction, sa, packet, len(packet), version, source, verdict)
        outcome = OUTCOMES[verdict.outcome]
        rule = None if verdict.rule == lib.VIPSEC_POLICY_NO_RULE else verdict.rule
        return outcome, verdict.sa_id or (0 if outcome == "protect" else None), rule


def _fill(made: Any, selector: Any) -> None:
    """A ``policy.selectors.Selector`` in C."""
    made.family = selector.version or 0
    made.protocol = -1 if selector.protocol is None else selector.protocol
    (made.local_low, made.local_high), (made.remote_low, made.remote_high) = selector.numbers
    if selector.local is not None:
        made.local, made.local_bits = (
            selector.local.network_address.packed.ljust(16, b"\0"),
            selector.local.prefixlen,
        )
    if selector.remote is not None:
        made.remote = selector.remote.network_address.packed.ljust(16, b"\0")
        made.remote_bits = selector.remote.prefixlen
