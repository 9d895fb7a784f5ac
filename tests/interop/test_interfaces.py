"""Taps and packet sockets against the Linux stack, in a network namespace of their own (needs root and `ip`)."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from lab.namespace import enter, ip, own_namespace
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.uplink import Uplink, open_uplink

pytestmark = [pytest.mark.interop("ip"), pytest.mark.needs("namespaces")]

OURS = "02:00:00:00:00:99"
HOST, US = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def namespace() -> Iterator[int]:
    with own_namespace() as descriptor:
        yield descriptor


@pytest.fixture
def tap(namespace: int) -> Iterator[Uplink]:
    ip("tuntap", "add", "t0", "mode", "tap")
    ip("addr", "add", f"{HOST}/24", "dev", "t0")
    uplink = open_uplink("tap:t0")
    ip("link", "set", "t0", "up")
    yield uplink
    uplink.close()


@pytest.fixture
def veth(namespace: int) -> Iterator[Uplink]:
    """A packet socket on one end; the stack has the other."""
    ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
    ip("addr", "add", f"{HOST}/24", "dev", "v0")
    for name in ("v0", "v1"):
        ip("link", "set", name, "up")
    uplink = open_uplink("afpacket:v1")
    yield uplink
    uplink.close()


def wait(uplink: Uplink, wanted: Callable[[Packet], bool], seconds: float = 5) -> list[Packet]:
    """The frames up to the first one that is wanted."""
    fd, end = uplink.fileno(), time.monotonic() + seconds
    assert fd is not None
    found: list[Packet] = []
    while time.monotonic() < end:
        select.select([fd], [], [], 0.1)
        for frame in uplink.receive(64):
            found.append(Ether(frame))
            if wanted(found[-1]):
                return found
    raise AssertionError(f"not among {found}")


def host_address(name: str) -> str:
    with open(f"/sys/class/net/{name}/address") as file:
        return file.read().strip()


def meet(uplink: Uplink) -> str:
    """ARP both ways; the host's MAC."""
    uplink.send([bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src=OURS) / ARP(op=1, hwsrc=OURS, psrc=US, pdst=HOST))])
    answer = wait(uplink, lambda frame: ARP in frame and frame[ARP].op == 2)[-1]
    assert (answer[ARP].psrc, answer[ARP].pdst, answer[ARP].hwdst) == (HOST, US, OURS)
    return str(answer[ARP].hwsrc)


@pytest.mark.parametrize("kind", ["tap", "veth"])
def test_the_stack_answers_a_ping(kind: str, request: pytest.FixtureRequest) -> None:
    uplink: Uplink = request.getfixturevalue(kind)
    host = meet(uplink)
    ping = Ether(dst=host, src=OURS) / IP(src=US, dst=HOST) / ICMP(id=7, seq=9) / bytes(range(256))
    uplink.send([bytes(ping)])
    answer = wait(uplink, lambda frame: ICMP in frame)[-1]
    assert (answer[ICMP].type, answer[ICMP].id, answer[ICMP].seq) == (0, 7, 9)
    assert bytes(answer[ICMP].payload) == bytes(range(256))
    counts = uplink.counters()
    assert counts["tx_frames"] == 2
    assert not any("dropped" in name for name in counts)


@pytest.mark.parametrize("kind", ["tap", "veth"])
def test_what_the_stack_leaves_open_is_finished(
    kind: str, namespace: int, request: pytest.FixtureRequest
) -> None:
    """A TCP sender hands over segments of up to 64 KiB with open checksums. All arrive whole, cut to the MSS."""
    uplink: Uplink = request.getfixturevalue(kind)
    host = meet(uplink)
    data = bytes(range(256)) * 32  # fits the first window

    def server() -> None:
        enter(namespace)
        with socket.create_server((HOST, 5001)) as listening:
            listening.settimeout(5)
            ready.set()
            connection, _ = listening.accept()
            with connection:
                connection.sendall(data)
                connection.settimeout(5)
                connection.recv(1)  # until the other end has it

    ready = threading.Event()
    thread = threading.Thread(target=server)
    thread.start()
    assert ready.wait(5)
    base = Ether(dst=host, src=OURS) / IP(src=US, dst=HOST)
    syn = TCP(sport=6001, dport=5001, flags="S", seq=100, window=65000, options=[("MSS", 1000)])
    uplink.send([bytes(base / syn)])
    answer = wait(uplink, lambda frame: TCP in frame and frame[TCP].flags == "SA")[-1]
    first = answer[TCP].seq + 1
    uplink.send([bytes(base / TCP(sport=6001, dport=5001, flags="A", seq=101, ack=first, window=65000))])
    got: dict[int, bytes] = {}
    largest = 0

    def complete(frame: Packet) -> bool:
        nonlocal largest
        if TCP not in frame:
            return False
        length = frame[IP].len - frame[IP].ihl * 4 - frame[TCP].dataofs * 4
        got[frame[TCP].seq - first] = bytes(frame[TCP].payload)[:length]
        largest = max(largest, length)
        checksum = frame[TCP].chksum
        again = frame.copy()
        del again[TCP].chksum
        assert Ether(bytes(again))[TCP].chksum == checksum
        return sum(map(len, got.values())) == len(data)

    wait(uplink, complete)
    assert b"".join(got[at] for at in sorted(got)) == data
    assert largest == 1000
    finish = TCP(sport=6001, dport=5001, flags="PA", seq=101, ack=first + len(data), window=65000)
    uplink.send([bytes(base / finish / b"x")])
    thread.join(5)
    assert not thread.is_alive()


def test_vlan_tags_are_where_they_were(veth: Uplink) -> None:
    """The kernel takes the outer one out of the frame and hands it over beside it."""
    for tags in (Dot1Q(vlan=7, prio=3), Dot1Q(vlan=9, type=0x8100) / Dot1Q(vlan=7)):
        frame = bytes(Ether(dst=OURS, src=OURS) / tags / IP(src=HOST, dst=US) / UDP() / b"tagged")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as other:
            other.bind(("v0", 0))
            other.send(frame)
        assert bytes(wait(veth, lambda found: UDP in found)[-1]) == frame


def test_a_packet_socket_does_not_hear_its_own_machine(veth: Uplink) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as other:
        other.bind(("v1", 0))
        other.send(bytes(Ether(dst=OURS, src=OURS, type=0x88B5)) + bytes(50))
    time.sleep(0.05)
    assert not [frame for frame in veth.receive(64) if frame[12:14] == b"\x88\xb5"]


def test_a_tap_that_is_down_or_deleted_drops_and_is_not_polled_for_ever(tap: Uplink) -> None:
    ip("link", "set", "t0", "down")
    tap.send([bytes(60)])
    assert tap.counters()["tx_dropped_down"] == 1
    ip("link", "del", "t0")
    fd = tap.fileno()
    assert fd is not None
    assert tap.receive(8) == []
    assert select.select([fd], [], [], 0)[0] == []
    tap.send([bytes(60)])
    assert tap.counters()["tx_frames"] == 0


def test_an_interface_that_is_deleted_is_not_polled_for_ever(veth: Uplink) -> None:
    ip("link", "del", "v0")
    fd = veth.fileno()
    assert fd is not None
    veth.receive(8)
    assert veth.receive(8) == []
    assert select.select([fd], [], [], 0)[0] == []
    veth.send([bytes(60)])
    assert veth.counters()["tx_dropped_down"] == 1


def test_a_frame_beyond_the_mtu_is_counted(veth: Uplink) -> None:
    veth.send([bytes(3000)])
    assert veth.counters()["tx_dropped_too_big"] == 1


def test_interfaces_that_cannot_be_had_are_named_in_one_line(namespace: int) -> None:
    ip("tuntap", "add", "t0", "mode", "tap")
    ip("tuntap", "add", "n0", "mode", "tun")
    first = open_uplink("tap:t0")
    for uri, words in (
        ("tap:t0", "another program has it open"),
        ("tap:n0", "it is no tap interface"),
        ("tap:lo", "it is no tap interface"),
        ("tap:t1", "there is no such interface"),
    ):
        with pytest.raises(TransportError, match=words) as refused:
            open_uplink(uri)
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="it is no Ethernet interface"):
        open_uplink("afpacket:n0")
    first.close()


def test_a_tap_made_with_several_queues_opens_too(namespace: int) -> None:
    ip("tuntap", "add", "t0", "mode", "tap", "multi_queue")
    open_uplink("tap:t0").close()


def test_without_privilege_the_error_says_what_is_missing(namespace: int) -> None:
    ip("tuntap", "add", "t0", "mode", "tap", "user", "0")
    ip("tuntap", "add", "t1", "mode", "tap", "user", "12345")
    uid = 65534
    child = os.fork()
    if child == 0:  # pragma: no cover, runs in another process
        code = 1
        try:
            os.setresuid(uid, uid, uid)
            told = []
            for uri in ("tap:t1", "afpacket:lo"):
                try:
                    open_uplink(uri)
                except TransportError as error:
                    told.append(str(error))
            code = 0 if len(told) == 2 and all("no permission" in text for text in told) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
