"""Capture files: by hand-laid bytes, by scapy in both directions, and by everything that can be wrong."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import PcapNgReader, PcapNgWriter, PcapReader, PcapWriter, RawPcapReader

from virtio_ipsec.transport import pcap
from virtio_ipsec.transport.pcap import (
    CaptureError,
    Interface,
    LinkType,
    Packet,
    create_capture,
    open_capture,
)
from virtio_ipsec.transport.pcapng import PcapngWriter

FRAME = bytes(
    Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    / IP(src="192.0.2.1", dst="198.51.100.2")
    / UDP(sport=1, dport=2)
    / Raw(b"odd")
)
TIME = 1_700_000_000_123_456_789


class Trickle(io.RawIOBase):
    """A pipe: one byte per read, no seek."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self._at += 1
        return self._data[self._at - 1 : self._at]


def read(data: bytes) -> list[Packet]:
    return list(open_capture(io.BytesIO(data)))


def classic(order: str, magic: int, *records: bytes, network: int = 1, snaplen: int = 65535) -> bytes:
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, network) + b"".join(records)


def record(order: str, seconds: int, fraction: int, data: bytes, original: int | None = None) -> bytes:
    return struct.pack(order + "IIII", seconds, fraction, len(data), original or len(data)) + data


def block(order: str, kind: int, body: bytes) -> bytes:
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str, version: tuple[int, int] = (1, 0)) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, *version, -1))


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def interface(order: str, options: bytes = b"", link: int = 1, snaplen: int = 0) -> bytes:
    return block(order, 1, struct.pack(order + "HHI", link, 0, snaplen) + options)


def enhanced(
    order: str, data: bytes, ticks: int = 0, number: int = 0, options: bytes = b"", **change: int
) -> bytes:
    captured, original = change.get("captured", len(data)), change.get("original", len(data))
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, captured, original)
    return block(order, 6, head + data + bytes(-len(data) % 4) + options)


ORDERS = pytest.mark.parametrize("order", ["<", ">"])


@ORDERS
@pytest.mark.parametrize(("magic", "tick"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_classic_files_of_both_orders_and_resolutions(order: str, magic: int, tick: int) -> None:
    data = classic(order, magic, record(order, 5, 123456, b"abc"), record(order, 6, 0, b"d", 9))
    assert read(data) == [
        Packet(b"abc", 5_000_000_000 + 123456 * tick, 0, 3),
        Packet(b"d", 6_000_000_000, 0, 9),
    ]


@ORDERS
def test_pcapng_sections_interfaces_and_blocks(order: str) -> None:
    power_of_two = option(order, 9, b"\x8a") + option(order, 14, struct.pack(order + "q", 100))
    data = (
        section(order)
        + interface(order, option(order, 2, b"eth0") + option(order, 3, "größe".encode()) + bytes(4))
        + interface(order, power_of_two, link=101)
        + block(order, 5, bytes(12))
        + enhanced(order, b"abcde", 1_500_000, 0, option(order, 1, b"first") + option(order, 1, b"second"))
        + enhanced(order, b"x", 1024 + 512, 1, option(order, 2, bytes(4)) + option(order, 0, b""), original=7)
        + block(order, 3, struct.pack(order + "I", 3) + b"sim\0")
        + block(order, 2, struct.pack(order + "HHIIII", 1, 0, 0, 2048, 2, 2) + b"ob\0\0")
        + section(">" if order == "<" else "<", (1, 2))
        + interface(">" if order == "<" else "<", link=12)
        + enhanced(">" if order == "<" else "<", b"", 1)
    )
    reader = open_capture(io.BytesIO(data))
    assert list(reader) == [
        Packet(b"abcde", 1_500_000_000, 0, 5, ("first", "second")),
        Packet(b"x", 101_500_000_000, 1, 7),
        Packet(b"sim", None, 0, 3),
        Packet(b"ob", 102_000_000_000, 1, 2),
        Packet(b"", 1000, 2, 0),
    ]
    assert reader.interfaces == [Interface(1, 0, "eth0", "größe"), Interface(101), Interface(12)]


def test_a_simple_packet_is_cut_at_the_snap_length() -> None:
    data = section("<") + interface("<", snaplen=2) + block("<", 3, struct.pack("<I", 60) + b"ab\0\0")
    assert read(data) == [Packet(b"ab", None, 0, 60)]


def test_reading_works_from_a_pipe() -> None:
    for data in (
        classic("<", 0xA1B2C3D4, record("<", 1, 0, b"abc")),
        section("<") + interface("<") + enhanced("<", b"abc"),
    ):
        assert [packet.data for packet in open_capture(Trickle(data))] == [b"abc"]  # type: ignore[arg-type]


def test_reading_streams() -> None:
    """The first packet is there before the second has been read."""
    data = classic("<", 0xA1B2C3D4, record("<", 1, 0, b"abc"), b"broken")
    packets = iter(open_capture(io.BytesIO(data)))
    assert next(packets).data == b"abc"
    with pytest.raises(CaptureError):
        next(packets)


NG = section("<") + interface("<")


@pytest.mark.parametrize(
    ("data", "message", "offset"),
    [
        (b"", "empty", 0),
        (b"\xd4\xc3", "neither pcap nor pcapng: the file starts with d4c3", 0),
        (b"GARBAGE", "neither pcap nor pcapng", 0),
        (b"\x1f\x8b\x08\x00\x00", "gzip", 0),
        (classic("<", 0xA1B2C3D4)[:23], "inside the file header, 1 bytes", 4),
        (classic("<", 0xA1B2C3D4)[:4], "before the file header", 4),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 3, 0, 0, 0, 1), "version 2.3", 4),
        (classic("<", 0xA1B2C3D4, network=113), "link type 113", 20),
        (classic("<", 0xA1B2C3D4, network=0x44000001), "FCS", 20),
        (classic("<", 0xA1B2C3D4, bytes(15)), "inside a packet header", 24),
        (classic("<", 0xA1B2C3D4, record("<", 1, 1_000_000, b"")), "1000000 ticks", 28),
        (classic("<", 0xA1B23C4D, record("<", 1, 1_000_000_000, b"")), "ticks", 28),
        (classic("<", 0xA1B2C3D4, struct.pack("<IIII", 0, 0, 5, 4)), "5 captured bytes of a packet of 4", 32),
        (classic("<", 0xA1B2C3D4, struct.pack("<IIII", 0, 0, 1 << 30, 1 << 30)), "captured bytes", 32),
        (classic("<", 0xA1B2C3D4, record("<", 1, 0, b"abcd")[:-1]), "inside a packet, 1 bytes", 40),
        (classic("<", 0xA1B2C3D4, record("<", 1, 0, b"abcd")[:16]), "before a packet", 40),
        (section("<")[:8] + b"\x01\x02\x03\x04" + section("<")[12:], "byte-order magic 01020304", 8),
        (section("<", (2, 0)), "version 2.0", 12),
        (section("<")[:-1] + b"\x01", "closes with", 24),
        (section("<")[:4] + struct.pack("<I", 24) + section("<")[8:], "section header of length 24", 4),
        (section("<")[:-2], "inside a section header", 12),
        (NG[:29], "inside a block type", 28),
        (NG[:32], "before a block length", 32),
        (NG[:32] + struct.pack("<I", 8), "a block length of 8", 32),
        (NG[:32] + struct.pack("<I", 22), "a block length of 22", 32),
        (NG[:32] + struct.pack("<I", 0x7FFFFFFC), "a block length of 2147483644", 32),
        (NG[:-1] + b"\x01", "closes with", 44),
        (NG[:-6], "inside a block", 36),
        (section("<") + block("<", 1, bytes(4)), "an interface description of 4", 36),
        (section("<") + interface("<", option("<", 9, b"\x06\x00")), "option 9 of 2 bytes where 1", 36),
        (section("<") + interface("<", option("<", 14, bytes(4))), "option 14 of 4 bytes where 8", 36),
        (section("<") + interface("<", option("<", 13, b"\x04")), "FCS", 36),
        (section("<") + interface("<", struct.pack("<HH", 2, 9)), "reaches past its block", 44),
        (NG + block("<", 6, bytes(16)), "an enhanced packet block of 16", 56),
        (NG + block("<", 2, bytes(16)), "a packet block of 16", 56),
        (NG + enhanced("<", b"abcd", number=1), "interface 1, which is not described", 56),
        (section("<") + enhanced("<", b"abcd"), "interface 0, which is not described", 36),
        (NG + section("<") + enhanced("<", b"abcd"), "interface 0, which is not described", 84),
        (NG + enhanced("<", b"abcd", captured=5, original=5), "do not fit their block", 68),
        (NG + enhanced("<", b"abcd", captured=4, original=3), "4 captured bytes of a packet of 3", 68),
        (section("<") + interface("<", link=113) + enhanced("<", b"abcd"), "link type 113", 56),
        (NG + block("<", 3, b""), "a simple packet block of 0", 56),
        (NG + block("<", 3, struct.pack("<I", 9) + bytes(8)), "for 9 captured", 56),
        (NG + enhanced("<", b"ab", options=struct.pack("<HH", 1, 5)), "option 1 of 5", 80),
    ],
)
def test_what_breaks_the_format_is_named_with_its_offset(data: bytes, message: str, offset: int) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        read(data)
    assert caught.value.offset == offset


def test_an_option_that_is_cut_off() -> None:
    # Only a body that is no multiple of four can hold half an option head, and no block has one.
    reader = pcap.PcapngReader(io.BytesIO(NG))
    with pytest.raises(CaptureError, match="cut off"):
        list(reader._options(bytes(3), 0))


def test_each_reader_refuses_the_other_s_magic() -> None:
    with pytest.raises(CaptureError, match="not that of a pcap"):
        pcap.PcapReader(io.BytesIO(NG))
    with pytest.raises(CaptureError, match="where a section header belongs"):
        pcap.PcapngReader(io.BytesIO(classic("<", 0xA1B2C3D4)))


def test_an_interface_of_another_link_type_does_no_harm_without_packets() -> None:
    data = NG + interface("<", link=113) + enhanced("<", b"abcd")
    assert [packet.data for packet in read(data)] == [b"abcd"]


def test_a_comment_that_is_not_utf_8_is_kept_readable() -> None:
    (packet,) = read(NG + enhanced("<", b"", options=option("<", 1, b"a\xff")))
    assert packet.comments == ("a\\xff",)


# Writers.


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("nanoseconds", [True, False])
def test_a_classic_file_as_bytes(order: Any, nanoseconds: bool) -> None:
    stream = io.BytesIO()
    writer = pcap.PcapWriter(stream, Interface(LinkType.RAW, 100), nanoseconds=nanoseconds, order=order)
    writer.write(Packet(b"abc", TIME, original_length=80))
    prefix = "<" if order == "little" else ">"
    magic, fraction = (0xA1B23C4D, 123456789) if nanoseconds else (0xA1B2C3D4, 123456)
    expected = classic(
        prefix, magic, record(prefix, 1_700_000_000, fraction, b"abc", 80), network=101, snaplen=100
    )
    assert stream.getvalue() == expected


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_pcapng_file_as_bytes(order: Any) -> None:
    stream = io.BytesIO()
    writer = PcapngWriter(stream, [], order=order, comments=["hello"], application="")
    assert writer.add_interface(Interface(1, 0, "wire", "both")) == 0
    writer.write(Packet(b"abcde", TIME, comments=("why",)))
    writer.write(Packet(b"abc", None))
    p = "<" if order == "little" else ">"
    expected = (
        block(
            p, 0x0A0D0D0A, struct.pack(p + "IHHq", 0x1A2B3C4D, 1, 0, -1) + option(p, 1, b"hello") + bytes(4)
        )
        + interface(p, option(p, 9, b"\x09") + option(p, 2, b"wire") + option(p, 3, b"both") + bytes(4))
        + enhanced(p, b"abcde", TIME, options=option(p, 1, b"why") + bytes(4))
        + block(p, 3, struct.pack(p + "I", 3) + b"abc\0")
    )
    assert stream.getvalue() == expected


packets = st.lists(
    st.builds(
        lambda data, more, time, number, comments: Packet(
            data, time, number, len(data) + more, tuple(comments)
        ),
        st.binary(max_size=70),
        st.integers(0, 5),
        st.integers(0, (1 << 62)),
        st.integers(0, 1),
        st.lists(st.text(st.characters(codec="utf-8"), max_size=9), max_size=2),
    ),
    max_size=6,
)


@settings(max_examples=25)
@given(packets, st.sampled_from(["little", "big"]))
def test_pcapng_round_trip(written: list[Packet], order: Any) -> None:
    stream = io.BytesIO()
    writer = PcapngWriter(stream, [Interface(), Interface(LinkType.IPV6, 0, "six")], order=order)
    for packet in written:
        writer.write(packet)
    assert read(stream.getvalue()) == written


@given(packets)
def test_pcap_round_trip(written: list[Packet]) -> None:
    stream = io.BytesIO()
    writer = create_capture(stream, "pcap", [Interface()])
    written = [Packet(p.data, (p.timestamp or 0) % (1 << 61), 0, p.original_length) for p in written]
    for packet in written:
        writer.write(packet)
    assert read(stream.getvalue()) == written


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
@pytest.mark.parametrize(
    "packet",
    [
        Packet(bytes(262_145)),
        Packet(b"abc", original_length=2),
        Packet(b"abc", original_length=1 << 32),
        Packet(b"abc", interface=1),
        Packet(b"abc", interface=-1),
        Packet(b"abc", 1 << 64),
        Packet(b"abc", -1),
    ],
)
def test_packets_that_no_file_can_hold_are_refused_and_nothing_is_written(form: str, packet: Packet) -> None:
    stream = io.BytesIO()
    writer = create_capture(stream, form, [Interface()])
    before = stream.getvalue()
    with pytest.raises(CaptureError):
        writer.write(packet)
    assert stream.getvalue() == before


@pytest.mark.parametrize(
    "packet",
    [
        Packet(b"abc", None, comments=("no place",)),
        Packet(b"abc", None, 1),
        Packet(b"abc", None, original_length=4),
        Packet(b"abc", 0, comments=("x" * 65536,)),
        Packet(b"abcdefghi", 0, 1),
    ],
)
def test_packets_that_pcapng_blocks_cannot_say_are_refused(packet: Packet) -> None:
    writer = PcapngWriter(io.BytesIO(), [Interface(), Interface(snaplen=8)])
    with pytest.raises(CaptureError):
        writer.write(packet)


def test_a_missing_timestamp_is_zero_in_a_classic_file() -> None:
    stream = io.BytesIO()
    create_capture(stream, "pcap", [Interface()]).write(Packet(b"abc", None))
    assert read(stream.getvalue()) == [Packet(b"abc", 0, 0, 3)]


def test_formats_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CaptureError, match="2 interfaces"):
        create_capture(io.BytesIO(), "pcap", [Interface(), Interface()])
    with pytest.raises(CaptureError, match="'erf'"):
        create_capture(io.BytesIO(), "erf", [Interface()])
    for form in ("pcap", "pcapng"):
        with pytest.raises(CaptureError, match="link type 113"):
            create_capture(io.BytesIO(), form, [Interface(113)])


def test_link_types_that_start_with_ip() -> None:
    assert [each.name for each in LinkType if each.is_ip] == ["RAW_OPENBSD", "RAW", "IPV4", "IPV6"]


# Witnesses.


@pytest.mark.parametrize("nano", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_scapy_s_classic_files_are_read(tmp_path: Path, nano: bool, order: str) -> None:
    path = tmp_path / "a.pcap"
    packet = Ether(FRAME)
    packet.time = 1_700_000_000.25
    with PcapWriter(str(path), nano=nano, endianness=order, linktype=1) as writer:
        writer.write(packet)
    with path.open("rb") as stream:
        reader = open_capture(stream)
        assert list(reader) == [Packet(FRAME, 1_700_000_000_250_000_000, 0, len(FRAME))]
        assert reader.interfaces[0].link_type == 1


def test_scapy_s_pcapng_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    packet = Ether(FRAME)
    packet.time = 1_700_000_000.25
    packet.comments = [b"from scapy"]
    with PcapNgWriter(str(path)) as writer:
        writer.write(packet)
    with path.open("rb") as stream:
        (found,) = open_capture(stream)
    assert (found.data, found.timestamp) == (FRAME, 1_700_000_000_250_000_000)
    assert found.comments == ("from scapy",)


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("nanoseconds", [True, False])
def test_scapy_reads_our_classic_files(tmp_path: Path, order: Any, nanoseconds: bool) -> None:
    path = tmp_path / "a.pcap"
    with path.open("wb") as stream:
        writer = pcap.PcapWriter(stream, nanoseconds=nanoseconds, order=order)
        writer.write(Packet(FRAME, TIME, original_length=99))
    with RawPcapReader(str(path)) as reader:
        ((data, meta),) = list(reader)
    assert (data, meta.wirelen) == (FRAME, 99)
    assert (meta.sec, meta.usec) == (1_700_000_000, 123456789 if nanoseconds else 123456)
    with PcapReader(str(path)) as reader:
        assert bytes(next(iter(reader))) == FRAME


@pytest.mark.parametrize("order", ["little", "big"])
def test_scapy_reads_our_pcapng_files(tmp_path: Path, order: Any) -> None:
    path = tmp_path / "a.pcapng"
    with path.open("wb") as stream:
        # scapy takes a snap length of 0 literally in simple packet blocks, so this one has a limit.
        first = Interface(snaplen=65535, name="one")
        writer = PcapngWriter(stream, [first, Interface(LinkType.RAW)], order=order)
        writer.write(Packet(FRAME, TIME, comments=("why",)))
        writer.write(Packet(FRAME[14:], TIME, 1))
        writer.write(Packet(FRAME, None))
    with PcapNgReader(str(path)) as reader:
        found = list(reader)
    assert [bytes(each) for each in found] == [FRAME, FRAME[14:], FRAME]
    assert int(found[0].time) == TIME // 10**9
    assert found[0].comments == [b"why"]
    assert found[1].name == "IP"
