"""A live SA: its parameters, keyed transform, sequence numbers, replay window, lifetimes and counters.

One object alone holds that state; MODIFY changes parameters and never sets a counter back (ledger E40): a
sequence number used twice under one key is a nonce used twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from virtio_ipsec.crypto.reference import AhTransform, EspTransform, ah_transform, esp_transform
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.lifetime import LifetimeCounters
from virtio_ipsec.ipsec.outer import TunnelHeader
from virtio_ipsec.ipsec.params import BadSaParameters as BadSaParameters
from virtio_ipsec.ipsec.params import SaParams as SaParams
from virtio_ipsec.ipsec.replay import ReplayWindow
from virtio_ipsec.ipsec.state import SaState, destroyed, goes_back

_LAST_32 = 0xFFFFFFFF
_LAST_64 = 0xFFFFFFFFFFFFFFFF


class _Sa:
    """What both directions share.

    What only packets need is made by the first one that needs it, the keyed transform above all: SAs are made and
    replaced by the thousand and many never see a packet. That cannot fail: :class:`SaParams` refuses keys that
    do not fit the suite.
    """

    def __init__(self, params: SaParams, frozen: bool) -> None:
        self.params = params
        self.lifetime = LifetimeCounters(params.lifetime)
        self._stats: Counter[Reason] | None = None
        self._esp: EspTransform | None = None
        self._ah: AhTransform | None = None
        self._wiped = False
        #: Nothing is processed: see :meth:`freeze`.
        self.frozen = frozen

    @property
    def packets(self) -> int:
        """Packets that passed every check."""
        return self.lifetime.packets

    @property
    def bytes(self) -> int:
        """Octets of those packets that went through the algorithm (see :mod:`.lifetime`)."""
        return self.lifetime.bytes

    @property
    def soft_expired(self) -> bool:
        """Whether a soft limit is reached; stays so unless MODIFY raises the limit."""
        return self.lifetime.soft_expired

    @property
    def stats(self) -> Counter[Reason]:
        """Refused packets by reason."""
        if self._stats is None:
            self._stats = Counter()
        return self._stats

    @property
    def esp(self) -> EspTransform:
        """Keyed transform of an ESP SA."""
        if self._esp is None:
            params = self.params
            self._esp = esp_transform(params.suite, params.cipher_key, params.auth_key, params.salt)
        return self._esp

    @property
    def ah(self) -> AhTransform:
        """Keyed transform of an AH SA."""
        if self._ah is None:
            params = self.params
            self._ah = ah_transform(params.suite, params.auth_key, params.salt)
        return self._ah

    def check_usable(self) -> None:
        """PacketError UNKNOWN_SA after :meth:`wipe`, HELD after :meth:`freeze`, HARD_LIFETIME at a hard limit."""
        if self._wiped:
            raise PacketError(Reason.UNKNOWN_SA, "the SA was destroyed")
        if self.frozen:
            raise PacketError(Reason.HELD, "the SA is frozen")
        self.lifetime.check()

    def update(self, params: SaParams) -> None:
        """MODIFY: take over ``params``; BadSaParameters, and no change, if they touch what is fixed (E40)."""
        field = self.params.changes_forbidden(params)
        if field:
            raise BadSaParameters(field, "cannot be changed while the SA lives")
        self.params = params
        self.lifetime.limits = params.lifetime

    def freeze(self) -> None:
        """From now on every packet is HELD, until :meth:`restore`: what :meth:`state` then tells is final."""
        self.frozen = True

    def state(self) -> SaState:
        """What the SA has used up. BadSaParameters after :meth:`wipe`."""
        if self._wiped:
            raise destroyed()
        return self._own_state()

    def restore(self, state: SaState) -> None:
        """Go on from there, and process packets again.

        Nothing that this SA has used, or that ``state`` tells of, can be used again: no sequence number and no IV,
        no number accepted twice; counters do not go back. BadSaParameters, and no change: the sequence number is below
        that of the SA or beyond what it can have, or an outbound SA that has used numbers would get another base of
        IVs; or the SA was wiped.
        """
        if self._wiped:
            raise destroyed()
        if state.sequence > (_LAST_64 if self.params.esn else _LAST_32) or not self._go_on(state):
            raise goes_back()
        self.lifetime.packets = max(self.packets, state.packets)
        self.lifetime.bytes = max(self.bytes, state.bytes)
        self.stats.update({reason: count - self.stats[reason] for reason, count in state.refused.items()
                           if count > self.stats[reason]})  # fmt: skip
        self.frozen = False

    def _own_state(self) -> SaState:
        raise NotImplementedError

    def _go_on(self, state: SaState) -> bool:
        """Take over the numbers; False, and no change, when used ones could be used again."""
        raise NotImplementedError

    def wipe(self) -> None:
        """Forget the keys; the SA processes nothing any more. Python keeps no stronger promise."""
        self._wiped = True
        for transform in (self._esp, self._ah):
            if transform is not None:
                transform.wipe()
        self._esp = self._ah = None
        self.params = self.params.without_keys()


class OutboundSa(_Sa):
    """``sequence`` is the number used last. ``rng``: once for the base of counter IVs, else per packet. ``frozen``: it
    waits for :meth:`restore`.

    No counter IV of one object comes twice. Objects with the same key and salt know nothing of each other: k of them
    that send N packets together use an IV twice with a probability of at most (k - 1) N / 2^64 (ledger E70).
    """

    def __init__(self, params: SaParams, rng: Callable[[int], bytes], *, frozen: bool = False) -> None:
        super().__init__(params, frozen)
        self.sequence = params.first_sequence - 1
        self._last = _LAST_64 if params.esn else _LAST_32
        self._ceiling = _LAST_64
        self._rng = rng
        self._iv_base = int.from_bytes(rng(8)) if params.suite.counter_iv else 0
        self._header: TunnelHeader | None = None

    @property
    def tunnel_header(self) -> TunnelHeader | None:
        """Builder of outer headers; None outside tunnel modes."""
        params = self.params
        if self._header is None and params.tunnel is not None:
            self._header = TunnelHeader(params.tunnel, params.options)
        return self._header

    def next_sequence(self) -> int:
        """Take the next number; PacketError SEQUENCE_OVERFLOW behind the last one (RFC 4303 3.3.3), HELD behind
        the ceiling."""
        if self.sequence >= self._last:
            raise PacketError(Reason.SEQUENCE_OVERFLOW, "the sequence numbers of the SA are used up")
        if self.sequence >= self._ceiling:
            raise PacketError(Reason.HELD, "higher sequence numbers of the SA may not be used yet")
        self.sequence += 1
        return self.sequence

    def set_ceiling(self, ceiling: int) -> None:
        """From now on no sequence number above ``ceiling`` is used; packets that would need one are HELD."""
        self._ceiling = ceiling

    def iv(self, sequence: int) -> bytes:
        """IV of a packet: base + sequence number where it must not repeat, else random (E70)."""
        suite = self.params.suite
        if suite.counter_iv:
            return ((self._iv_base + sequence) & _LAST_64).to_bytes(8)
        return self._rng(suite.iv_len) if suite.iv_len else b""

    def update(self, params: SaParams) -> None:
        super().update(params)
        self._header = None

    def _own_state(self) -> SaState:
        return SaState(self.sequence, self.packets, self.bytes, self._iv_base, refused=+self.stats)

    def _go_on(self, state: SaState) -> bool:
        # IVs are base and number: with another base one that was used could come again.
        unused = self.sequence == self.params.first_sequence - 1
        if state.sequence < self.sequence or not (unused or state.iv_base == self._iv_base):
            return False
        self.sequence, self._iv_base = state.sequence, state.iv_base
        return True


class InboundSa(_Sa):
    """``window`` is the anti-replay window; a wider one after MODIFY keeps what was seen. ``frozen``: it waits for
    :meth:`restore`."""

    def __init__(self, params: SaParams, *, frozen: bool = False) -> None:
        super().__init__(params, frozen)
        self.window = ReplayWindow(params.replay_window, esn=params.esn, first=params.first_sequence)

    def update(self, params: SaParams) -> None:
        super().update(params)
        self.window.resize(params.replay_window)

    def _own_state(self) -> SaState:
        window = self.window
        return SaState(
            window.top, self.packets, self.bytes, window=window.size, seen=window.seen, refused=+self.stats
        )

    def _go_on(self, state: SaState) -> bool:
        if state.sequence < self.window.top:
            return False
        self.window.merge(state.sequence, state.window, state.seen)
        return True


def sequence_high(params: SaParams, sequence: int) -> bytes | None:
    """Upper half of an extended sequence number, 4 octets; None without ESN."""
    return (sequence >> 32).to_bytes(4) if params.esn else None
