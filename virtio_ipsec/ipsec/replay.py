"""The anti-replay window and the upper half of extended sequence numbers (RFC 4303 3.4.3, appendix A2).

A window of W accepts exactly the numbers T-W+1 .. T and everything above T, where T is the highest number
that was authenticated. (Some stacks accept T-W too; RFC 4303 A2.1 puts the left edge at T-W+1.)
"""

from __future__ import annotations

from virtio_ipsec.errors import PacketError, Reason

LOW_MASK = 0xFFFFFFFF


class ReplayWindow:
    """Sliding window over sequence numbers: :meth:`check` before authentication, :meth:`accept` after.

    ``size`` in packets, 0 switches the check off (then ``esn`` must be off: there would be nothing to
    guess the upper half from). ``first`` is the first number that may arrive; what is below was never sent.
    """

    __slots__ = ("_bits", "esn", "size", "top")

    def __init__(self, size: int, *, esn: bool = False, first: int = 1) -> None:
        self.size = size
        self.esn = esn
        self.top = first - 1
        self._bits = _mask(size)  # bit n: the number top-n was seen (or can never be accepted)

    def check(self, low: int) -> int:
        """The whole sequence number of a packet that carries ``low``; PacketError REPLAY. Changes nothing."""
        if not self.size:
            return low
        sequence = self._extended(low) if self.esn else low
        behind = self.top - sequence
        if behind >= 0 and (behind >= self.size or self._bits >> behind & 1):
            raise PacketError(Reason.REPLAY, "sequence number is left of the window or was seen")
        return sequence

    def accept(self, sequence: int) -> None:
        """Record an authenticated number that :meth:`check` returned."""
        ahead = sequence - self.top
        if ahead > 0:
            self.top = sequence
            self._bits = (self._bits << ahead | 1) & _mask(self.size) if ahead < self.size else 1
        elif self.size:
            self._bits |= 1 << -ahead

    @property
    def seen(self) -> int:
        """Bit n: the number ``top`` - n was seen, or can never be accepted; as many bits as the window has."""
        return self._bits & _mask(self.size)

    def merge(self, top: int, size: int, seen: int) -> None:
        """Take over the record of another window, not below this one: a number counts as seen unless both records say
        that it was not."""
        ahead = top - self.top
        own = (self._bits | -1 << self.size) << ahead if ahead < self.size else 0
        below_zero = -1 << top + 1 if top < self.size else 0
        self._bits = (own | seen & _mask(size) | -1 << size | below_zero) & _mask(self.size)
        self.top = top

    def resize(self, size: int) -> None:
        """Change the size and keep what was seen.

        Numbers that a wider window newly covers count as seen: nobody recorded whether they arrived.
        """
        if size > self.size:
            self._bits = self._bits & _mask(self.size) | _mask(size) ^ _mask(self.size)
        else:
            self._bits &= _mask(size)
        self.size = size

    def _extended(self, low: int) -> int:
        """RFC 4303 A2.2: the window lies in one subspace of 2**32 numbers (A) or spans two (B)."""
        top_low, high = self.top & LOW_MASK, self.top >> 32
        bottom = top_low - self.size + 1
        if bottom >= 0:  # case A
            if low < bottom:
                high += 1
        elif low >= bottom & LOW_MASK:  # case B
            high -= 1
        # Before the first subspace and behind the last one there are no numbers.
        if not 0 <= high <= LOW_MASK:
            raise PacketError(Reason.REPLAY, "sequence number is outside the 64-bit space")
        return high << 32 | low


def _mask(size: int) -> int:
    return (1 << size) - 1
