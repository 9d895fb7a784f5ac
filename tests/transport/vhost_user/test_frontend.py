"""The front-end against a scripted back-end: what it says, in which order, and what it makes of the answers."""

from __future__ import annotations

import gc
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peer import Peer, Told, u64

from virtio_ipsec.errors import TransportError, WireError
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.queue import allocate_layout
from virtio_ipsec.transport.framing import PeerClosed, PeerStalled, dial
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vhost_user.channel import Refused
from virtio_ipsec.transport.vhost_user.connection import await_caller
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink
from virtio_ipsec.transport.vhost_user.options import PROTOCOL, Options
from virtio_ipsec.wire.net_config import NetConfig
from virtio_ipsec.wire.numbers import Feature, has, mask

BINDING = 1 << 56
MQ, LOG, ACK, BACKEND_REQ, CONFIG, INFLIGHT, RESET, SLOTS, STATUS = (
    1 << bit for bit in (0, 1, 3, 5, 9, 12, 13, 15, 16)
)
BASIC = mask(Feature.F_VERSION_1, Feature.F_RING_PACKED, Feature.NET_F_MAC, Feature.NET_F_CTRL_VQ)
IPSEC = BASIC | mask(Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC, Feature.F_RING_RESET)
OPTIONS = Options(memory=1 << 20, patience=2.0)
Make = Callable[..., tuple[VhostUserLink, Peer]]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[tuple[VhostUserLink, Peer]] = []
    gc.collect()  # what other tests left behind
    before = len(os.listdir("/proc/self/fd"))

    def build(
        protocol: int | None,
        features: int = BASIC,
        *,
        options: Options = OPTIONS,
        connections: int = 1,
        **script: object,
    ) -> tuple[VhostUserLink, Peer]:
        peer = Peer(features, protocol, connections)
        peer.script |= script  # type: ignore[arg-type]
        try:
            link = VhostUserLink(peer.connect, options)
        except BaseException:
            peer.close()
            raise
        made.append((link, peer))
        return link, peer

    yield build
    while made:
        link, peer = made.pop()
        link.close()
        peer.close()
        del link, peer
    gc.collect()  # a mapping goes with the last reference, and tracebacks hold some
    assert len(os.listdir("/proc/self/fd")) == before


def device_info(driver_features: int = 0, version: int = 1) -> bytes:
    def words(value: int) -> bytes:
        return value.to_bytes(16, "little")

    return struct.pack("=IIHHHH", version, 9, 5, 5, 1, 128) + words(IPSEC) + words(driver_features)


def with_binding(
    make: Make, protocol: int = ACK | MQ | CONFIG | STATUS, **script: object
) -> tuple[VhostUserLink, Peer]:
    script.setdefault("GET_DEVICE", lambda _: device_info())
    return make(protocol | BINDING, **script)


def queue(link: VhostUserLink, size: int = 8) -> QueueLayout:
    return allocate_layout(link.allocator, size, link.driver_features())


def test_the_conversation_begins_as_the_protocol_says(make: Make) -> None:
    _, peer = make(MQ | ACK | CONFIG | SLOTS | STATUS | BACKEND_REQ | 1 << 40)
    assert peer.names() == [
        *(
            "GET_FEATURES",
            "GET_PROTOCOL",
            "SET_PROTOCOL",
            "GET_QUEUE_NUM",
            "SLOTS",
            "BACKEND_FD",
            "SET_OWNER",
        ),
    ]
    assert peer.last("SET_PROTOCOL").payload == u64(MQ | ACK | CONFIG | SLOTS | STATUS | BACKEND_REQ)
    assert peer.last("SET_PROTOCOL").flags == 1  # nothing is agreed yet
    assert peer.last("SET_OWNER").flags == 9
    assert len(peer.last("BACKEND_FD").fds) == 1


def test_a_back_end_without_protocol_features_is_not_asked_for_them(make: Make) -> None:
    link, peer = make(None)
    assert peer.last("SET_OWNER").flags == 1
    assert peer.names() == ["GET_FEATURES", "SET_OWNER"]
    link.write_driver_features(mask(Feature.F_VERSION_1))
    assert peer.last("SET_FEATURES").payload == u64(1 << 32)
    link.enable_queue(0, queue(link))
    link.write_status(15)
    assert link.stop_queue(0) == 7
    assert "ENABLE" not in peer.names()
    assert (link.status(), link.num_queues(), link.admin_queue_num()) == (15, 2, 0)


def test_a_virtqueue_is_memory_then_number_base_addresses_and_descriptors(make: Make) -> None:
    link, peer = make(ACK | STATUS | SLOTS)
    link.write_driver_features(mask(Feature.F_VERSION_1))
    layout = queue(link, 16)
    link.enable_queue(1, layout)
    names = peer.names()
    at = names.index("ADD_REGION")
    assert names[at:] == ["ADD_REGION", "NUM", "BASE", "ADDR", "KICK", "CALL", "ERR", "ENABLE"]
    assert (peer.last("NUM").words, peer.last("BASE").words) == ((1, 16), (1, 0))
    assert peer.last("ENABLE").words == (1, 1)
    assert [peer.last(name).payload for name in ("KICK", "CALL", "ERR")] == [u64(1)] * 3
    view, guest, user = peer.map_memory()
    assert guest != user
    _, descriptor, used, available, log = struct.unpack("=8sQQQQ", peer.last("ADDR").payload)
    assert [each - user + guest for each in (descriptor, used, available)] == [
        *(layout.desc, layout.device, layout.driver)
    ]
    assert log == 0
    link.memory.write(layout.desc, b"seen by the other side")
    assert view[descriptor - user :][:22] == b"seen by the other side"
    view.close()
    link.enable_queue(0, queue(link))
    assert peer.names().count("ADD_REGION") == 1


def test_memory_goes_in_a_table_where_there_are_no_slots(make: Make) -> None:
    link, peer = make(ACK)
    link.enable_queue(0, queue(link))
    view, guest, user = peer.map_memory()
    assert (peer.last("SET_MEM_TABLE").words[:2], len(view)) == ((1, 0), 1 << 20)
    assert (user, guest) == (link.shared.user_address(guest), link.memory.regions[0][0])
    view.close()


def test_packed_rings_begin_with_both_wrap_counters_set(make: Make) -> None:
    link, peer = make(ACK)
    link.write_driver_features(mask(Feature.F_VERSION_1, Feature.F_RING_PACKED))
    link.enable_queue(0, queue(link))
    assert peer.last("BASE").words == (0, 0x80008000)


def test_without_status_rings_are_enabled_at_driver_ok(make: Make) -> None:
    link, peer = make(ACK)
    link.enable_queue(0, queue(link))
    link.write_status(3)
    assert "ENABLE" not in peer.names()
    link.write_status(7)
    assert peer.last("ENABLE").words == (0, 1)
    link.write_status(15)
    link.enable_queue(1, queue(link))
    assert [each.words for each in peer.told if each.name == "ENABLE"] == [(0, 1), (1, 1)]
    assert link.status() == 15


def test_kick_and_call_are_the_descriptors_that_were_sent(make: Make) -> None:
    link, peer = make(ACK | STATUS)
    for index in (0, 1):
        link.enable_queue(index, queue(link))
    link.kick(1)
    assert os.eventfd_read(peer.last("KICK").fds[0]) == 1
    link.kick(5)  # no such queue: nothing
    os.eventfd_write(peer.last("CALL").fds[0], 1)
    os.eventfd_write(peer.last("ERR").fds[0], 1)
    link.poll(1)
    link.poll(0)
    assert (link.interrupts(), link.interrupts(), link.vrings.failed) == ({1}, set(), {1})


def test_a_kick_never_waits_for_the_back_end(make: Make) -> None:
    link, peer = make(ACK | STATUS)
    link.enable_queue(0, queue(link))
    os.eventfd_write(peer.last("KICK").fds[0], (1 << 64) - 2)
    link.kick(0)


def test_a_plain_back_end_shows_no_control_queue_and_our_own_configuration(make: Make) -> None:
    offered = BASIC | mask(Feature.NET_F_MTU, Feature.NET_F_STATUS, Feature.NET_F_MQ) | 1 << 26
    offered |= (
        1 << 6 | 1 << 24 | 1 << 27
    )  # of the legacy interface: linux/virtio_net.h, linux/virtio_config.h
    mac = bytes.fromhex("525400000001")
    link, peer = make(ACK, offered, options=Options(memory=1 << 20, config=NetConfig(mac=mac)))
    assert link.device_features() == mask(Feature.F_VERSION_1, Feature.F_RING_PACKED, Feature.NET_F_MAC)
    assert link.transport_features() == mask(Feature.F_RING_RESET)
    assert link.read_config(0, 6) == mac
    link.write_config(0, b"\0")  # nowhere to
    assert link.config_generation() == 0
    link.write_driver_features(link.device_features())
    assert link.driver_features() == link.device_features()
    assert peer.last("SET_FEATURES").payload == u64(offered & link.device_features() | 1 << 30)
    without, peer = make(ACK, mask(Feature.F_VERSION_1))
    assert without.device_features() == mask(Feature.F_VERSION_1)
    assert (without.queue_max_size(0), without.queue_max_size(2)) == (256, 0)


def test_a_mac_of_our_own_is_not_acknowledged_to_a_back_end_without(make: Make) -> None:
    config = NetConfig(mac=bytes.fromhex("525400000001"))
    link, peer = make(ACK, mask(Feature.F_VERSION_1), options=Options(memory=1 << 20, config=config))
    assert has(link.device_features(), Feature.NET_F_MAC)
    link.write_driver_features(link.device_features())
    assert peer.last("SET_FEATURES").payload == u64(1 << 32 | 1 << 30)


@pytest.mark.parametrize("protocol", [ACK, ACK | STATUS])
def test_features_that_a_plain_back_end_refuses_are_not_ok(make: Make, protocol: int) -> None:
    link, peer = make(protocol)
    peer.refuse.add("SET_FEATURES")
    link.write_driver_features(1 << 2)
    link.write_status(11)
    assert link.status() == 3
    peer.refuse.clear()
    link.write_driver_features(1 << 32)
    link.write_status(11)
    assert link.status() == 11
    peer.refuse.add("SET_FEATURES")
    link.write_driver_features(1 << 2)
    link.write_status(0)
    link.write_status(11)
    assert link.status() == 11
    peer.refuse.clear()
    unseen = (6, Feature.NET_F_CTRL_VQ, 24, 27, Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC)
    unoffered = Feature.NET_F_MTU, Feature.NET_F_MAC, Feature.NET_F_STATUS, Feature.NET_F_SPEED_DUPLEX
    for beyond in (*unseen, *unoffered):
        link.write_driver_features(1 << 32 | 1 << beyond)
        link.write_status(11)
        assert link.status() == 3


def test_configuration_is_read_in_pieces_and_written_in_vain(make: Make) -> None:
    link, peer = make(ACK | CONFIG)
    peer.config = bytes(range(256)) + bytes(44)
    assert link.read_config(0, 300) == peer.config
    assert link.read_config(3, 2) == b"\3\4"
    assert peer.last("GET_CONFIG").payload == struct.pack("=III", 3, 2, 0) + bytes(2)
    peer.refuse.add("SET_CONFIG")
    link.write_config(1, b"ab")
    assert peer.last("SET_CONFIG").payload == struct.pack("=III", 1, 2, 0) + b"ab"
    peer.script["GET_CONFIG"] = lambda told: told.payload[:4] + bytes(8)
    with pytest.raises(Refused, match="configuration at 3"):
        link.read_config(3, 2)


def test_the_reset_of_a_plain_back_end_stops_its_rings_first(make: Make) -> None:
    link, peer = make(ACK | STATUS | RESET)
    link.enable_queue(0, queue(link))
    link.enable_queue(1, queue(link))
    link.write_status(15)
    peer.forget()
    link.write_status(0)
    assert peer.names() == ["GET_BASE", "GET_BASE", "RESET", "SET_STATUS"]
    link.kick(0)
    link.enable_queue(0, queue(link))


def test_a_queue_reset_stops_the_ring_and_a_stop_says_where(make: Make) -> None:
    link, peer = make(ACK | STATUS)
    layout = queue(link)
    link.enable_queue(0, layout)
    with pytest.raises(TransportError, match="in use"):
        link.enable_queue(0, layout)
    os.eventfd_write(peer.last("CALL").fds[0], 1)
    link.poll(1)
    link.reset_queue(0)
    assert link.interrupts() == set()
    link.enable_queue(0, layout)
    assert peer.last("BASE").words == (0, 0)
    assert link.stop_queue(0) == 7
    link.vrings.remove(0)
    link.enable_queue(0, layout, base=7)
    assert peer.last("BASE").words == (0, 7)


def test_what_the_back_end_refuses_is_an_error_and_leaves_nothing(make: Make) -> None:
    link, peer = make(ACK | STATUS)
    peer.refuse.add("ADDR")
    with pytest.raises(Refused, match="SET_VRING_ADDR"):
        link.enable_queue(0, queue(link))
    peer.refuse.clear()
    link.enable_queue(0, queue(link))


def test_the_binding_carries_words_beyond_63_and_the_administration_queue(make: Make) -> None:
    link, peer = with_binding(make)
    assert link.has_binding
    assert (link.device_features(), link.config_generation()) == (IPSEC, 9)
    assert (link.num_queues(), link.admin_queue_index(), link.admin_queue_num()) == (5, 5, 1)
    assert [link.queue_max_size(index) for index in (-1, 4, 5, 6)] == [0, 128, 128, 0]
    assert has(link.transport_features(), Feature.F_ADMIN_VQ)
    link.write_driver_features(IPSEC)
    assert peer.names()[-2:] == ["SET_DRIVER", "SET_FEATURES"]
    assert peer.last("SET_DRIVER").payload == IPSEC.to_bytes(16, "little")
    plain = IPSEC & ~mask(Feature.F_ADMIN_VQ) & (1 << 64) - 1
    assert peer.last("SET_FEATURES").payload == u64(plain | 1 << 30)
    peer.script["GET_DEVICE"] = lambda _: device_info(IPSEC)
    assert link.driver_features() == IPSEC
    peer.forget()
    link.enable_queue(0, queue(link))
    link.write_status(0)
    assert peer.names()[-1] == "SET_STATUS"
    assert "GET_BASE" not in peer.names()


@pytest.mark.parametrize("missing", [MQ, ACK, CONFIG, STATUS])
def test_the_binding_is_not_acknowledged_without_what_it_needs(make: Make, missing: int) -> None:
    link, peer = make((MQ | ACK | CONFIG | STATUS | BINDING) & ~missing)
    assert not link.has_binding
    assert not struct.unpack("=Q", peer.last("SET_PROTOCOL").payload)[0] & BINDING


def test_the_binding_can_be_left_out(make: Make) -> None:
    link, _ = with_binding(make, options=Options(memory=1 << 20, protocol=PROTOCOL & ~BINDING))
    assert not link.has_binding
    assert link.admin_queue_num() == 0


def test_another_version_of_the_binding_is_refused(make: Make) -> None:
    with pytest.raises(WireError, match="version 2"):
        with_binding(make, GET_DEVICE=lambda _: device_info(version=2))


def test_a_silent_back_end_is_given_up(make: Make) -> None:
    with pytest.raises(PeerStalled, match="GET_QUEUE_NUM"):
        make(MQ | ACK, GET_QUEUE_NUM=lambda _: None, options=Options(memory=1 << 20, patience=0.02))


def test_a_back_end_without_memory_slots_is_refused(make: Make) -> None:
    with pytest.raises(TransportError, match="slots"):
        make(SLOTS | ACK, SLOTS=lambda _: u64(0))


def test_answers_of_the_wrong_form_end_the_conversation(make: Make) -> None:
    with pytest.raises(MessageError, match="3 bytes"):
        make(MQ, GET_QUEUE_NUM=lambda _: b"abc")
    with pytest.raises(MessageError, match="descriptors in answer to GET_QUEUE_NUM"):
        make(MQ, GET_QUEUE_NUM=lambda _: (u64(1), [0]))
    link, peer = make(ACK | STATUS)
    peer.socket.sendall(struct.pack("=III", 40, 5, 8) + u64(0))
    with pytest.raises(MessageError, match="to no question: GET_STATUS"):
        link.poll(1)
    peer.socket.sendall(struct.pack("=III", 17, 5, 8) + u64(0))
    with pytest.raises(MessageError, match="GET_QUEUE_NUM in answer to GET_STATUS"):
        link.status()


def test_a_back_end_that_goes_is_noticed_by_poll_and_by_questions(make: Make) -> None:
    link, peer = make(ACK | STATUS)
    peer.hang_up()
    with pytest.raises(PeerClosed):
        link.poll(1)
    with pytest.raises(PeerClosed):
        link.status()


def backend_says(peer: Peer, number: int, flags: int, payload: bytes = b"") -> bytes:
    """A request of the back-end's own; what the front-end answers."""
    channel = socket.socket(fileno=os.dup(peer.last("BACKEND_FD").fds[0]))
    with channel:
        channel.sendall(struct.pack("=III", number, flags, len(payload)) + payload)
        return channel.recv(100) if flags & 8 else b""


def test_a_change_of_configuration_is_counted_and_acknowledged(make: Make) -> None:
    link, peer = make(ACK | BACKEND_REQ | CONFIG | STATUS)
    backend_says(peer, 2, 1)
    link.poll(1)
    assert link.config_generation() == 1
    heard: list[bytes] = []
    asks = threading.Thread(target=lambda: heard.append(backend_says(peer, 2, 9)))
    asks.start()
    link.poll(1)
    asks.join(5)
    assert heard == [struct.pack("=III", 2, 5, 8) + u64(0)]
    asks = threading.Thread(target=lambda: heard.append(backend_says(peer, 7, 9, bytes(16))))
    asks.start()
    link.poll(1)
    asks.join(5)
    assert heard[1] == struct.pack("=III", 7, 5, 8) + u64(1)
    assert link.config_generation() == 2


def test_a_back_end_that_asks_before_it_answers_is_served(make: Make) -> None:
    link, peer = make(ACK | BACKEND_REQ | STATUS)

    def answer(_: Told) -> bytes:
        backend_says(peer, 2, 9)
        return u64(4)

    peer.script["GET_STATUS"] = answer
    assert link.status() == 4
    assert link.config_changes == 1


def test_a_back_end_may_close_its_own_channel(make: Make) -> None:
    link, peer = make(ACK | BACKEND_REQ | STATUS)
    told = peer.last("BACKEND_FD")
    os.close(told.fds.pop())
    link.poll(1)
    assert link.status() == 0


def inflight_answers(log: list[tuple[int, ...]]) -> Callable[[Told], tuple[bytes, list[int]]]:
    def answer(told: Told) -> tuple[bytes, list[int]]:
        log.append(struct.unpack("=QQHH", told.payload[:20]))
        return struct.pack("=QQHH4x", 4096, 0, 4, 1024), [0]

    return answer


def test_in_flight_buffers_are_fetched_given_back_and_dropped_with_a_reset(make: Make) -> None:
    asked: list[tuple[int, ...]] = []
    link, peer = make(ACK | STATUS | INFLIGHT | MQ, GET_INFLIGHT=inflight_answers(asked))
    link.enable_queue(0, queue(link))
    link.enable_queue(1, queue(link))
    names = peer.names()
    assert names.index("GET_INFLIGHT") < names.index("SET_INFLIGHT") < names.index("KICK")
    assert asked == [(0, 0, 4, 256)]
    assert peer.last("SET_INFLIGHT").payload == struct.pack("=QQHH4x", 4096, 0, 4, 1024)
    link.write_status(0)
    link.enable_queue(0, queue(link, 512))
    assert asked[1:] == [(0, 0, 4, 512)]
    none, _ = make(ACK | INFLIGHT, GET_INFLIGHT=lambda _: bytes(24))
    with pytest.raises(TransportError, match="no in-flight buffer"):
        none.enable_queue(0, queue(none))


def lost(
    make: Make, features: int, protocol: int, **script: object
) -> tuple[VhostUserLink, Peer, QueueLayout]:
    """A link in use whose back-end has gone, and what it is told when another one is there."""
    link, peer = make(protocol, connections=2, **script)
    link._connect = peer.connect
    link.write_driver_features(features)
    layout = queue(link)
    link.enable_queue(1, layout)
    link.write_status(15)
    peer.hang_up()
    with pytest.raises(PeerClosed):
        link.poll(1)
    peer.forget()
    return link, peer, layout


def test_a_split_ring_goes_on_behind_the_last_used_buffer(make: Make) -> None:
    link, peer, layout = lost(make, mask(Feature.F_VERSION_1), ACK | STATUS | SLOTS)
    link.memory.put_u16(layout.device + 2, 5)
    link.reconnect()
    assert peer.names() == [
        *("GET_FEATURES", "GET_PROTOCOL", "SET_PROTOCOL", "SLOTS", "SET_OWNER", "SET_FEATURES", "SET_STATUS"),
        *("ADD_REGION", "NUM", "BASE", "ADDR", "KICK", "CALL", "ERR", "ENABLE", "SET_STATUS"),
    ]
    assert peer.last("BASE").words == (1, 5)
    statuses = [each.payload for each in peer.told if each.name == "SET_STATUS"]
    assert statuses == [u64(11), u64(15)]
    assert select.select([peer.last("KICK").fds[0]], [], [], 0)[0]


def test_a_packed_ring_goes_on_only_with_in_flight_buffers(make: Make) -> None:
    features = mask(Feature.F_VERSION_1, Feature.F_RING_PACKED)
    link, peer, _ = lost(make, features, ACK | STATUS | INFLIGHT, GET_INFLIGHT=inflight_answers([]))
    link.reconnect()
    assert "GET_INFLIGHT" not in peer.names()
    assert peer.names().index("SET_INFLIGHT") < peer.names().index("NUM")
    assert peer.last("BASE").words == (1, 0x80008000)
    other, _, _ = lost(make, features, ACK | STATUS)
    with pytest.raises(TransportError, match="packed ring"):
        other.reconnect()


def test_a_back_end_that_comes_back_with_less_is_refused(make: Make) -> None:
    link, peer, _ = lost(make, mask(Feature.F_VERSION_1), ACK | STATUS)
    peer.script["GET_FEATURES"] = lambda _: u64(1 << 30)
    with pytest.raises(TransportError, match="without features 0x100000000"):
        link.reconnect()


def test_with_the_binding_a_new_connection_is_a_device_after_reset(make: Make) -> None:
    script = {"GET_DEVICE": lambda _: device_info()}
    link, peer, _ = lost(make, IPSEC, ACK | MQ | CONFIG | STATUS | BINDING, **script)
    link.reconnect()
    assert peer.names()[-1] == "GET_DEVICE"
    link.kick(1)
    link.enable_queue(1, queue(link))


def test_logging_is_a_file_a_feature_and_a_flag(make: Make) -> None:
    link, peer = make(ACK | STATUS | LOG)
    link.write_driver_features(mask(Feature.F_VERSION_1))
    layout = queue(link)
    link.enable_queue(0, layout)
    assert link.vrings.dirty_pages() == []
    link.start_logging()
    size, offset = struct.unpack("=QQ", peer.last("SET_LOG_BASE").payload)
    assert (size % 4096, offset) == (0, 0)
    assert size * 8 * 4096 >= sum(link.memory.regions[0])
    assert peer.last("SET_FEATURES").payload == u64(1 << 32 | 1 << 30 | 1 << 26)
    index, flags, _, _, _, log = struct.unpack("=IIQQQQ", peer.last("ADDR").payload)
    assert (index, flags, log) == (0, 1, layout.device)
    os.pwrite(peer.last("SET_LOG_BASE").fds[0], b"\x81", 3)
    assert link.vrings.dirty_pages() == [24, 31]
    link.stop_logging()
    link.stop_logging()
    assert peer.last("SET_FEATURES").payload == u64(1 << 32 | 1 << 30)
    assert struct.unpack("=IIQQQQ", peer.last("ADDR").payload)[1] == 0
    peer.script["SET_LOG_BASE"] = lambda _: u64(1)
    with pytest.raises(Refused, match="SET_LOG_BASE"):
        link.start_logging()


def test_a_log_survives_the_loss_of_the_back_end(make: Make) -> None:
    link, peer = make(ACK | STATUS | LOG, connections=2)
    link._connect = peer.connect
    link.write_driver_features(mask(Feature.F_VERSION_1))
    link.enable_queue(0, queue(link))
    link.start_logging()
    peer.hang_up()
    link.reconnect()
    assert peer.last("ADDR").words[1] == 1
    assert peer.names()[-8:].count("ADDR") == 1


def test_either_side_may_listen(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with pytest.raises(TransportError, match="No such file"):
        dial(path, 0)
    with pytest.raises(TransportError, match="no back-end connects"):
        await_caller(path, 0.01)
    with pytest.raises(TransportError, match="No such file"):
        await_caller(str(tmp_path / "none" / "socket"), 1)
    calls: list[socket.socket] = []
    caller = threading.Thread(target=lambda: calls.append(dial(path, 5)))
    caller.start()
    with await_caller(path, 5) as ours:
        caller.join(5)
        calls[0].sendall(b"x")
        assert ours.recv(1) == b"x"
        calls[0].close()
    assert not Path(path).exists()


def test_a_link_by_path(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    peer = Peer(BASIC, ACK)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        relay = threading.Thread(target=_relay, args=(listener, peer))
        relay.start()
        link = VhostUserLink.at(path, OPTIONS)
        assert link.protocol_features == ACK
        link.close()
        relay.join(5)
    peer.close()


def _relay(listener: socket.socket, peer: Peer) -> None:
    """Carry bytes between a caller and the peer: enough where no descriptors are sent."""
    caller, _ = listener.accept()
    other = peer.connect()
    with caller, other:
        while True:
            ready, _, _ = select.select([caller, other], [], [])
            for source in ready:
                data = source.recv(4096)
                if not data:
                    return
                (other if source is caller else caller).sendall(data)
