"""Uplinks that need no privilege: what each carries, drops and counts, and what it says about a wrong URI."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet as ScapyPacket
from scapy.packet import Raw
from scapy.utils import rdpcap, wrpcap

from virtio_ipsec.errors import ConfigError, PacketError, TransportError, VirtioIpsecError
from virtio_ipsec.fastpath import native
from virtio_ipsec.transport.uplink import KINDS, MAX_FRAME, Uplink, grammar, open_uplink
from virtio_ipsec.transport.uplinks import vnet
from virtio_ipsec.transport.uplinks.capture import CaptureFiles
from virtio_ipsec.transport.uplinks.crossed import End, crossed
from virtio_ipsec.transport.uplinks.stream import FrameByFrame

FRAMES = [bytes(range(14)) + bytes([number]) * (50 + number) for number in range(5)]
BIGGEST = bytes(14) + bytes(65507 - 14)

ETHERNET = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")

Open = Callable[[str], Uplink]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens uplinks and closes them, twice, when the test ends; no descriptor may be left."""
    before = len(os.listdir("/proc/self/fd"))
    made: list[Uplink] = []

    def open_one(uri: str) -> Uplink:
        made.append(open_uplink(uri))
        assert made[-1].name == uri
        return made[-1]

    yield open_one
    for _ in range(2):
        for uplink in made:
            uplink.close()
    assert len(os.listdir("/proc/self/fd")) == before


def ports(count: int) -> list[int]:
    """UDP ports of 127.0.0.1 that are free."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


def readable(uplink: Uplink, timeout: float = 0) -> bool:
    fd = uplink.fileno()
    assert fd is not None
    return bool(select.select([fd], [], [], timeout)[0])


def arrived(uplink: Uplink, count: int, timeout: float = 5) -> list[bytes]:
    """``count`` frames, waited for by the descriptor."""
    frames: list[bytes] = []
    while len(frames) < count:
        assert readable(uplink, timeout)
        frames += uplink.receive(count - len(frames))
    return frames


# -- URIs


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "known: tap, afpacket"),
        ("carrier-pigeon:x", "no uplink is called 'carrier-pigeon'"),
        ("tap", "needs an argument: tap:NAME"),
        ("udp:", "needs an argument: udp:LOCAL,REMOTE"),
        ("null:x", "takes no argument"),
        ("udp:127.0.0.1:1", "not LOCAL,REMOTE"),
        ("udp:127.0.0.1,127.0.0.1:2", "'127.0.0.1' is not HOST:PORT"),
        ("udp:127.0.0.1:x,127.0.0.1:2", "is not HOST:PORT"),
        ("udp:127.0.0.1:70000,127.0.0.1:2", "port 70000 is above 65535"),
        ("udp:127.0.0.1:1,[::1]:2", "one address family"),
        ("udp:no.such.host.invalid:1,127.0.0.1:2", "no.such.host.invalid: "),
        ("udp:192.0.2.77:1,192.0.2.78:2", "Cannot assign requested address"),
        ("tap:nosuchtap0", "there is no such interface; make it with `ip tuntap add nosuchtap0 mode tap`"),
        ("tap:a-name-too-long-for-one", "no interface can have that name"),
        ("afpacket:nosuchif0", "there is no such interface"),
        ("unix:/nonexistent/wire", "No such file or directory"),
        ("pcap:/nonexistent/out.pcap", "/nonexistent/out.pcap: No such file or directory"),
        ("pcap:in.pcap,", "not OUT or IN,OUT"),
        ("vhost-user:/run/s", "only `serve` has such an uplink"),
        ("vhost-user", "needs an argument: vhost-user:PATH"),
        ("generator:x", "not SIZE or SIZE,COUNT"),
        ("generator:41", "SIZE is 42 to 65549"),
        ("generator:70000", "SIZE is 42 to 65549"),
        ("generator:64,0", "COUNT at least 1"),
    ],
)
def test_a_wrong_uri_is_one_line(uri: str, words: str) -> None:
    with pytest.raises(VirtioIpsecError) as refused:
        open_uplink(uri)
    assert isinstance(refused.value, ConfigError | TransportError)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_grammar_lists_every_kind() -> None:
    assert [line.split()[0].split(":")[0] for line in grammar().splitlines()] == list(KINDS)


# -- null and generator


def test_null_counts_and_nothing_arrives(opened: Open) -> None:
    uplink = opened("null")
    uplink.send(FRAMES)
    assert uplink.fileno() is None
    assert uplink.receive(8) == []
    assert uplink.counters() == {
        "tx_frames": 5, "tx_bytes": sum(map(len, FRAMES)), "rx_frames": 0, "rx_bytes": 0
    }  # fmt: skip


def test_counts_are_exact_over_threads(opened: Open) -> None:
    uplink = opened("null")
    threads = [threading.Thread(target=lambda: [uplink.send(FRAMES) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert uplink.counters()["tx_frames"] == 4 * 500 * 5


def test_the_generator_makes_datagrams_that_scapy_reads(opened: Open) -> None:
    uplink = opened("generator:100")
    assert readable(uplink)
    frames = uplink.receive(32)
    assert len(frames) == 32
    frame = Ether(frames[0])
    assert len(frames[0]) == 100
    assert (frame[IP].src, frame[IP].dst, frame[UDP].len) == ("198.18.0.1", "198.18.0.2", 66)
    checksum = frame[IP].chksum
    del frame[IP].chksum
    assert Ether(bytes(frame))[IP].chksum == checksum
    uplink.send(FRAMES)
    assert (uplink.counters()["rx_frames"], uplink.counters()["tx_frames"]) == (32, 5)


def test_the_generator_ends_after_its_count(opened: Open) -> None:
    uplink = opened("generator:64,5")
    assert [len(uplink.receive(3)), len(uplink.receive(3)), len(uplink.receive(3))] == [3, 2, 0]
    assert not readable(uplink)


# -- udp


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_udp_carries_frames_both_ways_up_to_the_largest(opened: Open, host: str) -> None:
    one, two = ports(2)
    left = opened(f"udp:{host}:{one},{host}:{two}")
    right = opened(f"udp:{host}:{two},{host}:{one}")
    left.send(FRAMES)
    assert arrived(right, 5) == FRAMES
    right.send([BIGGEST])
    assert arrived(left, 1) == [BIGGEST]
    assert left.receive(4) == []
    assert right.counters() == {
        "tx_frames": 1, "tx_bytes": len(BIGGEST), "rx_frames": 5, "rx_bytes": sum(map(len, FRAMES))
    }  # fmt: skip


def test_udp_gives_at_most_what_is_asked_for(opened: Open) -> None:
    one, two = ports(2)
    left, right = (
        opened(f"udp:127.0.0.1:{one},127.0.0.1:{two}"),
        opened(f"udp:127.0.0.1:{two},127.0.0.1:{one}"),
    )
    left.send(FRAMES)
    assert readable(right, 5)
    assert right.receive(2) == FRAMES[:2]
    assert right.receive(9) == FRAMES[2:]


def test_udp_hears_nobody_but_its_peer_and_ignores_empty_datagrams(opened: Open) -> None:
    one, two, three = ports(3)
    uplink = opened(f"udp:127.0.0.1:{one},127.0.0.1:{two}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", three))
        stranger.sendto(b"intruder", ("127.0.0.1", one))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", two))
        peer.sendto(b"", ("127.0.0.1", one))
        peer.sendto(FRAMES[0], ("127.0.0.1", one))
    assert readable(uplink, 5)
    assert uplink.receive(9) == [FRAMES[0]]


def test_udp_counts_what_is_too_big_and_what_nobody_listens_for(opened: Open) -> None:
    one, two = ports(2)
    uplink = opened(f"udp:127.0.0.1:{one},127.0.0.1:{two}")
    uplink.send([bytes(MAX_FRAME)])
    assert uplink.counters()["tx_dropped_too_big"] == 1
    uplink.send(FRAMES[:1])
    assert readable(uplink, 5)  # the ICMP error
    assert uplink.receive(4) == []
    assert uplink.counters()["rx_dropped_down"] == 1
    assert uplink.receive(4) == []


def test_a_port_in_use_is_busy(opened: Open) -> None:
    one, two = ports(2)
    opened(f"udp:127.0.0.1:{one},127.0.0.1:{two}")
    with pytest.raises(TransportError, match="Address already in use"):
        open_uplink(f"udp:127.0.0.1:{one},127.0.0.1:{two}")


# -- unix


def test_unix_ends_are_opened_alike_and_carry_frames_both_ways(opened: Open, tmp_path: Path) -> None:
    uri = f"unix:{tmp_path}/wire"
    left = opened(uri)
    left.send(FRAMES)
    assert left.counters()["tx_dropped_down"] == 5
    right = opened(uri)
    right.send(FRAMES)
    assert arrived(left, 5) == FRAMES
    left.send([BIGGEST])
    assert arrived(right, 1) == [BIGGEST]
    assert left.receive(3) == right.receive(3) == []


def test_either_end_of_a_unix_wire_can_be_restarted(opened: Open, tmp_path: Path) -> None:
    uri = f"unix:{tmp_path}/wire"
    left, right = opened(uri), opened(uri)
    for _ in range(2):
        left.send(FRAMES)
        left.close()  # it listened: now right does
        assert arrived(right, 5) == FRAMES
        assert right.receive(4) == []
        left = opened(uri)
        left.send(FRAMES[:1])
        assert arrived(right, 1) == FRAMES[:1]
        left.close()  # it had connected
        assert right.receive(4) == []
        assert not readable(right)
        left, right = right, opened(uri)
        right.send(FRAMES[:2])
        assert arrived(left, 2) == FRAMES[:2]


def test_a_third_end_waits_until_one_is_free(opened: Open, tmp_path: Path) -> None:
    uri = f"unix:{tmp_path}/wire"
    first, second = opened(uri), opened(uri)
    second.send(FRAMES[:1])
    assert arrived(first, 1) == FRAMES[:1]
    third = opened(uri)
    third.send(FRAMES[1:2])
    assert not readable(first)
    second.close()
    assert arrived(first, 1) == FRAMES[1:2]
    first.send(FRAMES)
    assert arrived(third, 5) == FRAMES


def test_a_full_unix_wire_drops_and_counts(opened: Open, tmp_path: Path) -> None:
    left, right = opened(f"unix:{tmp_path}/wire"), opened(f"unix:{tmp_path}/wire")
    for _ in range(200):
        right.send([BIGGEST, BIGGEST])
    counts = right.counters()
    assert counts["tx_dropped_full"] > 0
    assert counts["tx_frames"] + counts["tx_dropped_full"] == 400
    assert len(arrived(left, counts["tx_frames"])) == counts["tx_frames"]


def test_a_unix_wire_that_cannot_listen_again_counts_that(opened: Open, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    left, right = opened(f"unix:{folder}/wire"), opened(f"unix:{folder}/wire")
    right.send(FRAMES[:1])
    assert arrived(left, 1)
    left.close()
    folder.rmdir()
    assert right.receive(4) == []
    assert right.counters()["rx_dropped_down"] == 1
    right.send(FRAMES)
    assert right.counters()["tx_dropped_down"] == 5


def test_a_unix_wire_of_another_kind_of_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(TransportError, match="wrong type for socket"):
            open_uplink(f"unix:{tmp_path}/s")


# -- pcap


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_what_leaves_stands_in_the_capture_at_once(opened: Open, tmp_path: Path, form: str) -> None:
    out = tmp_path / f"out.{form}"
    uplink = opened(f"pcap:{out}")
    uplink.send(FRAMES[:3])
    assert [bytes(packet) for packet in rdpcap(str(out))] == FRAMES[:3]
    uplink.send(FRAMES[3:])
    assert [bytes(packet) for packet in rdpcap(str(out))] == FRAMES
    assert uplink.receive(4) == []
    assert not readable(uplink)
    uplink.close()
    uplink.send(FRAMES)
    assert uplink.counters()["tx_dropped_down"] == 5


def test_the_frames_of_a_capture_arrive_once(opened: Open, tmp_path: Path) -> None:
    wrpcap(str(tmp_path / "in.pcap"), [Ether(frame) for frame in FRAMES])
    uplink = opened(f"pcap:{tmp_path}/in.pcap,{tmp_path}/out.pcap")
    assert readable(uplink)
    assert uplink.receive(2) + uplink.receive(9) + uplink.receive(9) == FRAMES
    assert not readable(uplink)
    assert uplink.receive(9) == []
    assert uplink.counters()["rx_frames"] == 5


def test_captures_that_cannot_be_replayed_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.pcap"
    for packets, linktype, words in (
        ([IP() / UDP()], 101, "without Ethernet headers"),
        ([Ether(FRAMES[0])], 1, "cut by the capture"),
    ):
        if linktype == 1:
            packets[0].wirelen = 1500
        wrpcap(str(source), packets, linktype=linktype)
        with pytest.raises(ConfigError, match=words):
            CaptureFiles(f"{source},{tmp_path}/out.pcap")
    source.write_bytes(b"no capture")
    with pytest.raises(ConfigError, match="neither pcap nor pcapng"):
        CaptureFiles(f"{source},{tmp_path}/out.pcap")
    with pytest.raises(ConfigError, match="the same file"):
        CaptureFiles(f"{source},{tmp_path}/../{tmp_path.name}/in.pcap")
    assert source.read_bytes() == b"no capture"


def test_a_full_disk_drops_and_counts() -> None:
    with pytest.raises(TransportError, match="No space left"):
        open_uplink("pcap:/dev/full")


def test_a_disk_that_fills_up_drops_and_counts(opened: Open, tmp_path: Path) -> None:
    uplink = opened(f"pcap:{tmp_path}/out.pcap")
    assert isinstance(uplink, CaptureFiles)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, uplink._stream.fileno())
    os.close(full)
    uplink.send(FRAMES)
    assert uplink.counters()["tx_dropped_down"] == 5
    uplink.close()  # what could not be written is not written now either


# -- one system call per frame


class Scripted(FrameByFrame):
    """Reads and writes what the script says: frames, or errors by number."""

    def __init__(self, script: list[bytes | int]) -> None:
        super().__init__("scripted", os.eventfd(1, os.EFD_CLOEXEC))
        self.script = script

    def _next(self) -> list[bytes]:
        step = self.script.pop(0) if self.script else errno.EAGAIN
        if isinstance(step, int):
            raise OSError(step, os.strerror(step))
        return [step]

    def _read(self) -> list[bytes]:
        return self._next()

    def _write(self, frame: bytes) -> None:
        self._next()


def test_reading_goes_on_after_an_error() -> None:
    uplink = Scripted([FRAMES[0], errno.ENETDOWN, FRAMES[1]])
    assert uplink.receive(9) == FRAMES[:2]
    assert uplink.counters()["rx_dropped_down"] == 1
    uplink.close()


def test_an_interface_that_was_deleted_is_not_polled_for_ever() -> None:
    uplink = Scripted([FRAMES[0], errno.EBADFD, FRAMES[1]])
    assert readable(uplink)
    assert uplink.receive(9) == FRAMES[:1]
    assert not readable(uplink)
    uplink.close()


def test_each_cause_of_a_drop_has_its_counter() -> None:
    uplink = Scripted([b"ok", errno.EMSGSIZE, errno.EIO, b"ok", errno.ENOBUFS])
    uplink.send(FRAMES + FRAMES)
    counts = uplink.counters()
    assert counts["tx_frames"] == 2
    assert {name: count for name, count in counts.items() if "dropped" in name} == {
        "tx_dropped_too_big": 1, "tx_dropped_down": 1, "tx_dropped_full": 6
    }  # fmt: skip
    uplink.close()


# -- the header of taps and packet sockets


def _tcp(network: ScapyPacket, size: int) -> bytes:
    """A frame as the local stack leaves it: the pseudo header's sum where the checksum belongs."""
    tcp = TCP(sport=1, dport=2, seq=7, flags="PA")
    frame = bytearray(bytes(ETHERNET / network / tcp / Raw(bytes(range(256)) * 16)))
    del frame[14 + len(network) + 20 + size :]
    return bytes(frame)


@pytest.mark.parametrize("python", [False, True], ids=["c", "python"])
@pytest.mark.parametrize("version", [4, 6])
def test_large_frames_of_the_local_stack_become_segments_that_scapy_finds_right(
    version: int, python: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if python:
        monkeypatch.setattr(native, "available", lambda: False)
    network = (
        IP(src="192.0.2.1", dst="192.0.2.2") if version == 4 else IPv6(src="2001:db8::1", dst="2001:db8::2")
    )
    frame = bytearray(_tcp(network, 3000))
    l4 = 14 + len(network)
    addresses = frame[26:34] if version == 4 else frame[22:54]
    words = addresses + (6).to_bytes(2, "big") + (len(frame) - l4).to_bytes(2, "big")
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    frame[l4 + 16 : l4 + 18] = total.to_bytes(2, "big")
    gso = 1 if version == 4 else 4
    header = vnet._FORM.pack(1, gso, l4 + 20, 1400, l4, 16)
    segments = vnet.finish(header, bytes(frame))
    assert [len(segment) - l4 - 20 for segment in segments] == [1400, 1400, 200]
    assert b"".join(segment[l4 + 20 :] for segment in segments) == bytes(frame[l4 + 20 :])
    for number, segment in enumerate(segments):
        packet = Ether(segment)
        assert packet[TCP].seq == 7 + 1400 * number
        checksum = packet[TCP].chksum
        del packet[TCP].chksum
        assert Ether(bytes(packet))[TCP].chksum == checksum


def test_an_open_checksum_is_finished() -> None:
    frame = bytearray(
        bytes(ETHERNET / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2) / b"data")
    )
    right = bytes(frame)
    frame[40:42] = (0x192).to_bytes(2, "big")  # anything but right
    pseudo = 0xC000 + 0x0201 + 0xC000 + 0x0202 + 17 + 12
    frame[40:42] = ((pseudo & 0xFFFF) + (pseudo >> 16)).to_bytes(2, "big")
    assert vnet.finish(vnet._FORM.pack(1, 0, 0, 0, 34, 6), bytes(frame)) == [right]
    assert vnet.finish(vnet._FORM.pack(2, 0, 0, 0, 0, 0), right) == [right]  # DATA_VALID
    assert vnet.finish(vnet.PLAIN, right) == [right]


@pytest.mark.parametrize("header", [(1, 0, 0, 0, 9000, 6), (1, 1, 0, 0, 34, 16), (0, 77, 0, 10, 34, 16)])
def test_a_header_that_does_not_fit_its_frame_is_refused(header: tuple[int, ...]) -> None:
    with pytest.raises(PacketError):
        vnet.finish(vnet._FORM.pack(*header), FRAMES[0])


@pytest.mark.parametrize("python", [False, True], ids=["c", "python"])
def test_udp_fragmentation_is_done_too(python: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if python:
        monkeypatch.setattr(native, "available", lambda: False)
    frame = bytes(ETHERNET / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2) / Raw(bytes(3000)))
    pieces = vnet.finish(vnet._FORM.pack(1, 3, 42, 1480, 34, 6), frame)
    assert [Ether(piece)[IP].frag for piece in pieces] == [0, 185, 370]


# -- crossed


@pytest.fixture(params=["c", "python"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[End, End]]:
    if request.param == "python":
        monkeypatch.setattr(native, "available", lambda: False)
    near, far = crossed("vhost-user:/s", "far")
    assert (near.native is None) == (request.param == "python")
    yield near, far
    near.close()
    far.close()


def test_what_leaves_at_one_end_of_a_crossed_wire_arrives_at_the_other(ends: tuple[End, End]) -> None:
    near, far = ends
    near.send(FRAMES)
    assert readable(far)
    assert far.receive(2) == FRAMES[:2]
    assert readable(far)
    assert far.receive(9) == FRAMES[2:]
    assert not readable(far)
    assert far.receive(9) == []
    far.send(FRAMES[:1])
    assert arrived(near, 1) == FRAMES[:1]
    assert near.counters()["tx_frames"] == 5
    assert far.counters()["rx_frames"] == 5
    near.close()
    far.send(FRAMES)
    assert far.counters()["tx_dropped_full"] == 5
    far.close()


def test_a_crossed_wire_holds_so_many_frames_and_no_more(ends: tuple[End, End]) -> None:
    near, far = ends
    for _ in range(1000):
        near.send(FRAMES)
    assert near.counters()["tx_frames"] == 4096
    assert near.counters()["tx_dropped_full"] == 904
    assert sum(map(len, iter(lambda: far.receive(1000), []))) == 4096
