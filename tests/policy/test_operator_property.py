"""Whatever a guest sends, in pieces and in any order: it arrives as it was, and none of it shows on the wire.

Fragments are made and joined here with a few lines of their own, by offset: neither this package nor scapy has a say.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from operator_ports import GATE, GUEST, HOST, HOST6, OUTER, OUTER6, joined, met, text
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

WORD = b"the guest's own words. "
LINK = {4: b"\x08\x00", 6: b"\x86\xdd"}
DATAGRAMS = st.lists(
    st.tuples(
        st.sampled_from([4, 6]),
        st.integers(24, 5000),  # octets of UDP
        st.sampled_from([None, 1344, 600, 1232]),  # the guest cuts them into pieces of that many octets
    ),
    min_size=1,
    max_size=4,
)


def pieces(number: int, version: int, size: int, cut: int | None) -> list[bytes]:
    """The packets of one datagram; cut in any case when it does not fit the guest's link."""
    payload = (number.to_bytes(2) + WORD * (size // len(WORD) + 1))[: size - 8]
    packet = (
        IP(src=HOST["a"], dst=HOST["b"], id=number) if version == 4 else IPv6(src=HOST6["a"], dst=HOST6["b"])
    )
    whole = bytes(packet / UDP(sport=1, dport=2) / payload)  # fmt: skip
    head, body = (whole[:20], whole[20:]) if version == 4 else (whole[:40], whole[40:])
    step = cut or (1344 if size > 1300 else 0)
    if not step:
        return [whole]
    found = []
    for at in range(0, len(body), step):
        part, more = body[at : at + step], at + step < len(body)
        if version == 4:
            field = (at // 8 | more << 13).to_bytes(2)
            made = (
                head[:2] + (20 + len(part)).to_bytes(2) + head[4:6] + field + head[8:10] + b"\0\0" + head[12:]
            )
            total = sum(int.from_bytes(made[n : n + 2]) for n in range(0, 20, 2))
            total = (total & 0xFFFF) + (total >> 16)
            found.append(
                made[:10] + (0xFFFF ^ (total + (total >> 16)) & 0xFFFF).to_bytes(2) + made[12:] + part
            )
        else:
            fragment = bytes((17, 0)) + (at | more).to_bytes(2) + number.to_bytes(4)
            found.append(head[:4] + (8 + len(part)).to_bytes(2) + b"\x2c" + head[7:] + fragment + part)
    return found


def datagrams_in(frames: list[bytes]) -> list[bytes]:
    """The UDP datagrams that a host would make of the frames, in no order."""
    parts: dict[object, dict[int, bytes]] = defaultdict(dict)
    for number, frame in enumerate(frames):
        data = frame[14:]
        if frame[12:14] == LINK[4]:
            parts[data[4:6]][int.from_bytes(data[6:8]) & 0x1FFF] = data[20 : int.from_bytes(data[2:4])]
        elif data[6] == 44:
            parts[data[44:48]][int.from_bytes(data[42:44]) >> 3] = data[48 : 40 + int.from_bytes(data[4:6])]
        else:
            parts[number][0] = data[40:]
    wholes = []
    for found in parts.values():
        at, whole = 0, b""
        while at in found:
            whole, at = whole + found[at], at + (len(found[at]) + 7) // 8
        assert len(whole) == int.from_bytes(whole[4:6])
        wholes.append(whole)
    return sorted(wholes)


@settings(max_examples=40)
@given(
    wanted=DATAGRAMS,
    seed=st.integers(0, 2**32),
    mode=st.sampled_from(["esp-tunnel", "esp-transport"]),
    outer=st.sampled_from([OUTER, OUTER6]),
)
def test_datagrams_arrive_whole_and_never_show(
    wanted: list[tuple[int, int, int | None]], seed: int, mode: str, outer: dict[str, str]
) -> None:
    both = met(joined({side: text(side, mode=mode, outer=outer) for side in "ab"}))  # type: ignore[arg-type]
    link = bytes(Ether(src=GUEST["a"], dst=GATE["a"] if mode == "esp-tunnel" else GUEST["b"]))[:12]
    packets = [each for number, datagram in enumerate(wanted) for each in pieces(number, *datagram)]
    frames = [link + LINK[each[0] >> 4] + each for each in packets]
    sent = datagrams_in(frames)
    assert len(sent) == len(wanted)
    Random(seed).shuffle(frames)
    both.send("a", *frames)
    assert datagrams_in(both.guests["b"]) == sent
    assert not [frame for _, frame in both.seen if WORD in frame]
    assert all(len(frame) <= 1514 for _, frame in both.seen)
    assert all(len(frame) <= 1514 for frame in both.guests["b"])
