"""Receive buffers, and what the driver makes of received packets (virtio v1.4 5.1.6.3, 5.1.6.4).

What a driver makes of a packet is told by what stands behind it: whether a connection request is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.life import Life, Packet, Run
from virtio_ipsec.transport.monitor.events import Exposed, Probed
from virtio_ipsec.wire.numbers import Feature

_GUEST_GSO = (
    Feature.NET_F_GUEST_TSO4,
    Feature.NET_F_GUEST_TSO6,
    Feature.NET_F_GUEST_UFO,
    Feature.NET_F_GUEST_USO4,
    Feature.NET_F_GUEST_USO6,
)
#: Longest frame with and without segmentation by the sender; the header comes in front of it (E17).
_LONGEST, _USUAL = 65_589, 1_514


def _room(buffer: Exposed) -> int:
    return sum(each.length for each in buffer.descriptors if each.is_writable and not each.is_table)


def _buffers(run: Run, *, mergeable: bool) -> Iterator[tuple[Life, int, Exposed]]:
    for life in run.lives:
        if life.is_operating and life.has(Feature.NET_F_MRG_RXBUF) == mergeable:
            for at, buffer in life.receive_buffers():
                yield life, at, buffer


def _large_enough(life: Life, at: int, buffer: Exposed, frame: int) -> Finding:
    wanted, room = frame + life.header.size, _room(buffer)
    return Finding(room >= wanted, f"room for {wanted} bytes", f"{room}", at)


@judge("NET-RXB-DRV-01", when="receive buffers without MRG_RXBUF, with a guest segmentation feature")
def room_for_long_packets(run: Run) -> Iterator[Finding]:
    """With guest segmentation a buffer holds the longest packet: 65589 bytes and the header (ledger E17)."""
    for life, at, buffer in _buffers(run, mergeable=False):
        if any(life.has(feature) for feature in _GUEST_GSO):
            yield _large_enough(life, at, buffer, _LONGEST)


@judge("NET-RXB-DRV-02", when="receive buffers without MRG_RXBUF and without guest segmentation")
def room_for_usual_packets(run: Run) -> Iterator[Finding]:
    """Without guest segmentation a buffer holds 1514 bytes and the header (ledger E17)."""
    for life, at, buffer in _buffers(run, mergeable=False):
        if not any(life.has(feature) for feature in _GUEST_GSO):
            yield _large_enough(life, at, buffer, _USUAL)


@judge("NET-RXB-DRV-03", when="receive buffers with MRG_RXBUF")
def room_for_the_header(run: Run) -> Iterator[Finding]:
    """With mergeable buffers each holds at least the header."""
    for life, at, buffer in _buffers(run, mergeable=True):
        yield _large_enough(life, at, buffer, 0)


@judge("NET-RXB-DRV-05", when="a driver at work with more than one receive queue")
def every_queue_has_buffers(run: Run) -> Iterator[Finding]:
    """Every receive queue that is set up has buffers."""
    for life in run.lives:
        queues = [index for index in life.enabled() if life.is_data(index) and not index & 1]
        if not life.is_operating or len(queues) < 2:
            continue
        filled: dict[int, int] = {}
        for at, buffer in life.receive_buffers():
            filled.setdefault(buffer.index, at)
        for index in queues:
            at = filled.get(index, life.begin + len(life.events) - 1)
            yield Finding(index in filled, f"buffers in receive queue {index}", "none", at)


# -- packets ----------------------------------------------------------------------------------------------


def _asked(run: Run, *about: str) -> Iterator[tuple[Life, int, Probed, Packet | None]]:
    """Questions put while the driver's side answered plain ones, in front and behind."""
    for life in run.lives:
        answers = life.answers
        for place, (at, probe, answer) in enumerate(answers):
            if probe.about not in about:
                continue
            around = (answers[place - 1 : place] + answers[place + 1 : place + 2]) if place else ()
            if len(around) == 2 and all(p.about == "plain" and found for _, p, found in around):
                yield life, at, probe, answer


def _taken(*about: str) -> Callable[[Run], Iterator[Finding]]:
    """The packet is taken for what it is."""

    def body(run: Run) -> Iterator[Finding]:
        for _, at, probe, answer in _asked(run, *about):
            yield Finding(answer is not None, f"an answer ({probe.about})", "none", at)

    return body


#: Questions about bits that mean something only with a feature.
_MEANT = {
    "both tunnel bits": Feature.NET_F_GUEST_UDP_TUNNEL_GSO,
    "tunnel, no checksum request": Feature.NET_F_GUEST_UDP_TUNNEL_GSO,
    "tunnel, checksum valid": Feature.NET_F_GUEST_UDP_TUNNEL_GSO,
    "tunnel, no segmentation": Feature.NET_F_GUEST_UDP_TUNNEL_GSO,
    "tunnel checksum alone": Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM,
}


def _refused(*about: str) -> Callable[[Run], Iterator[Finding]]:
    """The packet goes nowhere. Where the feature that gives the bits their meaning is not negotiated, the driver may as
    well ignore what it need not know (NET-RX-DRV-01): then it is warned only."""

    def body(run: Run) -> Iterator[Finding]:
        for life, at, probe, answer in _asked(run, *about):
            feature = _MEANT.get(probe.about)
            yield Finding(
                answer is None,
                f"no answer ({probe.about})",
                "an answer",
                answer.at if answer else at,
                advisory=feature is not None and not life.has(feature),
            )

    return body


_ANSWERS = "what stands behind the driver answers connection requests, and one was asked with"
_TABLE = (
    ("NET-RX-DRV-01", _taken, ("flag",), "Unknown flag bits of a received header are ignored.", "flag 128"),
    (
        "NET-RX-DRV-02",
        _taken,
        ("outer network offset",),
        "outer_nh_offset is not used without its feature.",
        "outer_nh_offset 65535, in a 32-byte header without OUT_NET_HEADER",
    ),
    (
        "NET-RX-DRV-03",
        _taken,
        ("checksum fields",),
        "csum_start and csum_offset are not used without NEEDS_CSUM.",
        "nonsense in csum_start and csum_offset",
    ),
    ("NET-RX-DRV-04", _taken, ("header length",), "hdr_len is a hint at most.", "hdr_len 65535"),
    (
        "NET-RX-DRV-05",
        _refused,
        ("no checksum flags",),
        "A checksum is not taken for right when neither NEEDS_CSUM nor DATA_VALID is set.",
        "a wrong TCP checksum and no flag",
    ),
    (
        "NET-RX-DRV-06",
        _refused,
        ("both tunnel bits",),
        "A packet with both UDP-tunnel bits is refused.",
        "both",
    ),
    (
        "NET-RX-DRV-07",
        _taken,
        ("tunnel offsets",),
        "Tunnel offsets are not used without a UDP-tunnel bit.",
        "nonsense in the tunnel offsets",
    ),
    (
        "NET-RX-DRV-08",
        _refused,
        ("tunnel, no checksum request", "tunnel, checksum valid", "tunnel, no segmentation"),
        "A packet with a UDP-tunnel bit is refused without NEEDS_CSUM, with DATA_VALID, or without a type.",
        "each of the three",
    ),
    (
        "NET-RX-DRV-09",
        _refused,
        ("tunnel checksum alone",),
        "A packet with the tunnel-checksum flag and NEEDS_CSUM but no UDP-tunnel bit is refused.",
        "that header",
    ),
)
for _clause, _kind, _about, _title, _with in _TABLE:
    _body = _kind(*_about)
    _body.__doc__ = _title
    judge(_clause, when=f"{_ANSWERS} {_with}")(_body)


def _sent_under(run: Run, packet: Packet | None) -> int | None:
    """The outbound SA that protects an answer."""
    header = packet.header if packet else None
    protected = header is not None and header.flags & run.dialect.flag_security
    return header.resource_id if header is not None and protected else None


@judge("NET-IPSEC-INT-01", when=f"{_ANSWERS} the id of an inbound SA that was destroyed")
def stale_sa(run: Run) -> Iterator[Finding]:
    """A packet that names a destroyed inbound SA is got over: the driver goes on, and no old state is attached.

    The driver's side may answer such a packet, but not under the protection that belonged to the SA.
    """
    for life in run.lives:
        answers = life.answers
        for place, (at, probe, answer) in enumerate(answers):
            if probe.about != "SA that is gone" or not (place and answers[place - 1][2]):
                continue
            goes_on = any(found for _, later, found in answers[place + 1 :] if later.about == "plain")
            yield Finding(goes_on, "a later plain request is answered", "none is", at)
            under = _sent_under(run, answer)
            seen = f"an answer under outbound SA {under}"
            yield Finding(under is None, "no answer under an SA", seen, answer.at if answer else at)


@judge("RFC-22", when=f"{_ANSWERS} SECURITY, with SECURITY_ERR, and with both")
def security_error(run: Run) -> Iterator[Finding]:
    """A packet with SECURITY_ERR is not passed on as protected, one with SECURITY alone is."""
    for life in run.lives:
        for at, probe, answer in life.answers:
            under = _sent_under(run, answer)
            if probe.about == "first SA" and under is not None:
                yield Finding(True, "an answer under an SA", f"SA {under}", at)
            elif probe.about in ("SA in error", "error alone"):
                where = answer.at if answer else at
                yield Finding(under is None, f"no answer under an SA ({probe.about})", f"SA {under}", where)


@judge("RFC-23", when=f"{_ANSWERS} the ids of two inbound SAs, and they answer under different ones")
def sa_by_id(run: Run) -> Iterator[Finding]:
    """The SA of a received packet is found by resource_id.

    Requests of two neighbours over two inbound SAs are answered under two outbound ones. Then the first neighbour asks
    over the second SA: the answer is not under the SA that the first one's own belongs to.
    """
    for life in run.lives:
        by_about = {probe.about: (at, _sent_under(run, answer)) for at, probe, answer in life.answers}
        first, second = (by_about.get(name, (0, None))[1] for name in ("first SA", "second SA"))
        if first is None or second is None or "second SA, first peer" not in by_about:
            continue
        at, crossed = by_about["second SA, first peer"]
        yield Finding(first != second, "two outbound SAs", f"SA {first} for both", at)
        yield Finding(crossed != first, f"no answer under SA {first}", f"SA {crossed}", at)
