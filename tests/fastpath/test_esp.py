"""SAs of the C fast path seen from Python: what they offer to the device, layouts, published packets."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from esp_traffic import GCM
from ipsec_samples import ipv4

from virtio_ipsec.crypto.algorithms import by_name
from virtio_ipsec.errors import AlreadyExists, IntegrityError, NoSpace, PacketError, Reason
from virtio_ipsec.fastpath import gcm, native
from virtio_ipsec.fastpath.esp import MAX_SAS, FastInboundSa, FastOutboundSa, FastSaTable, accepts
from virtio_ipsec.ipsec.params import BadSaParameters, SaParams
from virtio_ipsec.ipsec.process import inbound, outbound
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa
from virtio_ipsec.wire.dialect import RFC_2025_01, V14
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption, MacAlgo
from virtio_ipsec.wire.tunnel import TunnelIPv4

each_engine = pytest.mark.parametrize("name", gcm.engine_names())
SPI = 0x1234ABCD
TUNNEL = TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2"))
INNER = bytes.fromhex("4500001c000700004011623a0a0100010a02000200010002000800000000")[:28]
VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "esp_packets.json").read_text())["tests"]
GCM_VECTORS = [
    v for v in VECTORS if v["suite"] == GCM.name and "NoIcv" not in v["flags"] and int(v["spi"], 16)
]


def zeros(count: int) -> bytes:
    return bytes(count)


def params(direction: Direction, **fields: Any) -> SaParams:
    given: dict[str, Any] = {
        "mode": IpsecMode.ESP_TUNNEL, "spi": SPI, "salt": b"salt", "param": TUNNEL, "replay_win_sz": 64,
        "cipher_algo": GCM.cipher_algo, "cipher_key": bytes(range(16)),
    }  # fmt: skip
    return SaParams.from_wire(IpsecSa(direction=direction, **given | fields), V14)


def pair(table: FastSaTable, **fields: Any) -> tuple[FastOutboundSa, FastInboundSa]:
    sender = FastOutboundSa(table, 7, params(Direction.OUTBOUND, **fields), zeros)
    return sender, FastInboundSa(table, 7, params(Direction.INBOUND, **fields))


@pytest.fixture
def table() -> FastSaTable:
    return FastSaTable(zeros)


def refusal(call: Callable[[], object]) -> Reason:
    with pytest.raises(PacketError) as caught:
        call()
    return caught.value.reason


def test_the_same_packets_and_numbers_as_the_python_sas(table: FastSaTable) -> None:
    sender, receiver = pair(table)
    slow_out = OutboundSa(params(Direction.OUTBOUND), zeros)
    slow_in = InboundSa(params(Direction.INBOUND))
    for number in range(1, 6):
        protected = sender.protect(INNER)
        assert protected == outbound(slow_out, INNER)
        assert receiver.unprotect(protected) == inbound(slow_in, protected)
        assert (sender.sequence, receiver.top) == (number, number)
    assert refusal(lambda: receiver.unprotect(protected)) is Reason.REPLAY
    assert (sender.packets, sender.bytes) == (slow_out.packets, slow_out.bytes)
    assert (receiver.packets, receiver.bytes) == (slow_in.packets, slow_in.bytes)
    assert receiver.stats == {Reason.REPLAY: 1}
    assert not sender.stats


def test_no_number_above_the_ceiling_is_used_until_it_is_raised(table: FastSaTable) -> None:
    sender, receiver = pair(table)
    sender.set_ceiling(1)
    receiver.unprotect(sender.protect(INNER))
    assert refusal(lambda: sender.protect(INNER)) is Reason.HELD
    assert (sender.sequence, sender.packets, sender.stats) == (1, 1, {Reason.HELD: 1})
    sender.set_ceiling(2)
    receiver.unprotect(sender.protect(INNER))
    assert receiver.top == 2
    sender.wipe()
    sender.set_ceiling(3)  # of nothing


def test_a_wrong_icv_is_an_integrity_error(table: FastSaTable) -> None:
    sender, receiver = pair(table)
    with pytest.raises(IntegrityError):
        receiver.unprotect(sender.protect(INNER)[:-1] + b"\0")


def test_packets_that_are_not_this_sas_are_counted_here(table: FastSaTable) -> None:
    sender, receiver = pair(table)
    other = FastOutboundSa(table, 8, params(Direction.OUTBOUND, spi=SPI + 1), zeros)
    assert refusal(lambda: receiver.unprotect(other.protect(INNER))) is Reason.UNKNOWN_SA
    assert refusal(lambda: receiver.unprotect(b"")) is Reason.NOT_IP
    assert refusal(lambda: receiver.unprotect(ipv4(b"", 6))) is Reason.NOT_IPSEC
    assert refusal(lambda: sender.protect(b"\x45")) is Reason.MALFORMED
    assert receiver.stats == {Reason.UNKNOWN_SA: 1, Reason.NOT_IP: 1, Reason.NOT_IPSEC: 1}
    assert sender.stats == {Reason.MALFORMED: 1}


def test_soft_and_hard_limits(table: FastSaTable) -> None:
    limited = {
        "options": IpsecOption.SA_LIFETIME,
        "life": Lifetime(packets_soft_limit=2, packets_hard_limit=3),
    }
    sender, receiver = pair(table, **limited)
    soft = []
    for _ in range(3):
        opened = receiver.unprotect(sender.protect(INNER))
        soft.append((sender.soft_expired, receiver.soft_expired, opened.soft_expired))
    assert soft == [(False,) * 3, (True,) * 3, (True,) * 3]
    assert refusal(lambda: sender.protect(INNER)) is Reason.HARD_LIFETIME
    sender.update(params(Direction.OUTBOUND))
    assert sender.protect(INNER)
    assert (sender.sequence, sender.soft_expired) == (4, False)


def test_modify_keeps_what_the_window_saw(table: FastSaTable) -> None:
    sender, receiver = pair(table)
    packets = [sender.protect(INNER) for _ in range(10)]
    receiver.unprotect(packets[9])
    for size in (4096, 100, 1, 200):
        receiver.update(params(Direction.INBOUND, replay_win_sz=size))
        assert refusal(lambda: receiver.unprotect(packets[9])) is Reason.REPLAY
    assert refusal(lambda: receiver.unprotect(packets[0])) is Reason.REPLAY  # left the window of 1
    assert receiver.top == 10


@pytest.mark.parametrize(
    ("field", "value"),
    [("spi", 9), ("cipher_key", bytes(16)), ("salt", bytes(4)), ("options", IpsecOption.ESN)],
)
def test_modify_refuses_what_is_fixed(table: FastSaTable, field: str, value: Any) -> None:
    sender, _ = pair(table)
    with pytest.raises(BadSaParameters):
        sender.update(params(Direction.OUTBOUND, **{field: value}))
    assert sender.protect(INNER)


def test_c_refuses_a_change_of_what_is_fixed_by_itself(table: FastSaTable) -> None:
    sender, _ = pair(table)
    for forged in ({"spi": 9}, {"options": IpsecOption.ESN}, {"mode": IpsecMode.ESP_TRANSPORT}):
        sender.params = params(Direction.OUTBOUND, **forged)
        with pytest.raises(BadSaParameters, match="refuses this change"):
            sender.update(sender.params)


def test_numbers_and_spis_are_unique(table: FastSaTable) -> None:
    pair(table)
    with pytest.raises(AlreadyExists):
        FastOutboundSa(table, 7, params(Direction.OUTBOUND, spi=5), zeros)
    with pytest.raises(AlreadyExists):
        FastInboundSa(table, 8, params(Direction.INBOUND))
    FastOutboundSa(table, 8, params(Direction.OUTBOUND), zeros)  # outbound SPIs are the peer's
    with pytest.raises(BadSaParameters):
        FastOutboundSa(table, MAX_SAS, params(Direction.OUTBOUND), zeros)


def test_a_wiped_sa_is_gone_and_keeps_its_counters(table: FastSaTable) -> None:
    sender, receiver = pair(table)
    protected = sender.protect(INNER)
    receiver.unprotect(protected)
    for sa in (sender, receiver):
        sa.wipe()
        sa.wipe()
        assert (sa.packets, sa.params.cipher_key, sa.params.salt) == (1, b"", b"")
    assert refusal(lambda: sender.protect(INNER)) is Reason.UNKNOWN_SA
    assert refusal(lambda: receiver.unprotect(protected)) is Reason.UNKNOWN_SA
    assert sender.stats == receiver.stats == {Reason.UNKNOWN_SA: 1}
    assert [each.reason for each in table.protect([(7, INNER, None)])] == [Reason.UNKNOWN_SA]
    again, _ = pair(table)
    assert (again.packets, again.sequence, again.stats) == (0, 0, {})


def test_what_the_fast_path_does_not_do_is_refused(table: FastSaTable) -> None:
    hmac = {"cipher_algo": 0, "cipher_key": b"", "auth_algo": MacAlgo.HMAC_SHA_256, "auth_key": bytes(32)}
    assert accepts(params(Direction.INBOUND))
    for other in (
        params(Direction.INBOUND, **hmac),
        params(Direction.INBOUND, **hmac, mode=IpsecMode.AH_TUNNEL),
        params(Direction.INBOUND, cipher_algo=by_name("aes-ccm-16").cipher_algo),
    ):
        assert not accepts(other)
        with pytest.raises(BadSaParameters):
            FastInboundSa(table, 1, other)


def test_a_batch_has_the_order_of_its_packets(table: FastSaTable) -> None:
    pair(table)
    batch = [(7, INNER, None), (9, INNER, None), (7, b"", None), (7, INNER, 20)] * 40
    done = table.protect(batch)
    assert [each.reason for each in done[:3]] == [None, Reason.UNKNOWN_SA, Reason.NOT_IP]
    assert [each.sequence for each in done if each.reason is None] == list(range(1, 81))
    assert [each.sa_id for each in done[:3]] == [7, None, 7]
    opened = table.unprotect([each.packet for each in done if each.reason is None] + [INNER])
    assert [each.sequence for each in opened] == [*range(1, 81), 0]
    assert {each.packet for each in opened} == {INNER}
    assert all(b"\0\1\2\3\4" not in repr(each).encode() for each in done)


def test_a_table_of_many_sas(table: FastSaTable) -> None:
    """Past the sizes at which pages, slots and the index of SPIs grow, with holes, and again."""
    base = params(Direction.INBOUND)
    sas = {n: FastInboundSa(table, n * 257, replace(base, spi=n + 1)) for n in range(3000)}
    for n in range(0, 3000, 2):
        sas.pop(n).wipe()
    for n in range(0, 3000, 4):
        sas[n] = FastInboundSa(table, n * 257, replace(base, spi=n + 1))
    senders = [
        FastOutboundSa(table, n, replace(params(Direction.OUTBOUND), spi=n + 1), zeros) for n in range(3000)
    ]
    protected = table.protect([(n, INNER, None) for n in range(3000)])
    for n, each in enumerate(table.unprotect([each.packet for each in protected])):
        expected = (None, n * 257) if n in sas else (Reason.UNKNOWN_SA, None)
        assert (each.reason, each.sa_id) == expected
    assert all(sa.packets == 1 for sa in senders)


def test_readers_are_limited_and_given_back(table: FastSaTable) -> None:
    _, lib = native.extension()
    taken = [lib.vipsec_reader_register(table.handle) for _ in range(lib.VIPSEC_MAX_READERS)]
    assert taken == list(range(lib.VIPSEC_MAX_READERS))
    assert lib.vipsec_reader_register(table.handle) == -1
    lib.vipsec_reader_unregister(table.handle, 5)
    with table.reader() as reader:
        assert reader == 5


def test_errors_of_memory_have_a_name(table: FastSaTable, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, _ = pair(table)
    ffi, lib = native.extension()

    class Exhausted:
        def __getattr__(self, name: str) -> Any:
            if name in ("vipsec_sa_add", "vipsec_sa_modify"):
                return lambda *_: lib.VIPSEC_SA_NO_MEMORY
            return (lambda *_: ffi.NULL) if name.endswith("_new") else getattr(lib, name)

    monkeypatch.setattr(native, "extension", lambda: (ffi, Exhausted()))
    with pytest.raises(NoSpace):
        sender.update(params(Direction.OUTBOUND))
    with pytest.raises(NoSpace):
        FastOutboundSa(table, 1, params(Direction.OUTBOUND), zeros)
    with pytest.raises(MemoryError):
        FastSaTable(zeros, table.engine)


# ---- layouts -----------------------------------------------------------------------------------


class Packet(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("len", ctypes.c_uint32), ("headroom", ctypes.c_uint32),
        ("tailroom", ctypes.c_uint32), ("mtu", ctypes.c_uint32), ("sa_id", ctypes.c_uint32),
        ("reason", ctypes.c_uint8), ("soft_expired", ctypes.c_uint8), ("next_header", ctypes.c_uint8),
        ("known", ctypes.c_uint8), ("sequence", ctypes.c_uint64), ("follows", ctypes.c_uint8),
        ("skipped", ctypes.c_uint8), ("reserved", ctypes.c_uint8 * 6), ("user", ctypes.c_uint64 * 2),
    )  # fmt: skip


class Config(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint8) for name in (
            "direction", "is_tunnel", "tunnel_family", "dscp", "df", "ttl", "key_len", "icv_len",
        )),
        *((name, ctypes.c_uint32) for name in ("spi", "options", "flow_label", "replay_window")),
        ("udp_sport", ctypes.c_uint16), ("udp_dport", ctypes.c_uint16), ("salt", ctypes.c_uint8 * 4),
        ("source", ctypes.c_uint8 * 16), ("destination", ctypes.c_uint8 * 16), ("key", ctypes.c_uint8 * 32),
        *((name, ctypes.c_uint64) for name in (
            "packets_soft", "bytes_soft", "packets_hard", "bytes_hard", "first_sequence", "iv_base",
        )),
        ("frozen", ctypes.c_uint32), ("reserved", ctypes.c_uint32),
    )  # fmt: skip


class State(ctypes.Structure):
    _fields_ = (
        ("sequence", ctypes.c_uint64), ("packets", ctypes.c_uint64), ("bytes", ctypes.c_uint64),
        ("soft_expired", ctypes.c_uint32), ("reserved", ctypes.c_uint32),
        ("refused", ctypes.c_uint64 * (len(Reason) + 1)),
    )  # fmt: skip


class Progress(ctypes.Structure):
    _fields_ = (
        ("sequence", ctypes.c_uint64), ("iv_base", ctypes.c_uint64), ("packets", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64), ("refused", ctypes.c_uint64 * (len(Reason) + 1)),
        ("frozen", ctypes.c_uint32), ("window", ctypes.c_uint32), ("seen", ctypes.c_uint64 * 64),
    )  # fmt: skip


class Found(ctypes.Structure):
    _fields_ = (
        ("spi", ctypes.c_uint32), ("sequence", ctypes.c_uint32), ("offset", ctypes.c_uint32),
        ("end", ctypes.c_uint32), ("udp_sport", ctypes.c_uint16), ("udp_dport", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8), ("in_udp", ctypes.c_uint8), ("reserved", ctypes.c_uint8 * 10),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "layout", "size"),
    [
        ("packet", Packet, 64),
        ("sa_config", Config, 152),
        ("sa_state", State, 32 + 8 * (len(Reason) + 1)),
        ("sa_progress", Progress, 552 + 8 * (len(Reason) + 1)),
        ("esp_found", Found, 32),
    ],
)
def test_public_structs_have_the_layout_that_is_written_down(
    name: str, layout: type[ctypes.Structure], size: int
) -> None:
    ffi, _ = native.extension()
    kind = ffi.typeof(f"struct vipsec_{name}")
    fields = kind.fields
    assert fields is not None
    assert ffi.sizeof(kind) == ctypes.sizeof(layout) == size
    assert [(n, f.offset) for n, f in fields] == [(n, getattr(layout, n).offset) for n, *_ in layout._fields_]
    assert [ffi.sizeof(f.type) for _, f in fields] == [getattr(layout, n).size for n, *_ in layout._fields_]


def test_reasons_have_the_same_names_in_the_same_order() -> None:
    ffi, lib = native.extension()
    names = [ffi.string(lib.vipsec_reason_name(n)) for n in range(lib.VIPSEC_REASON_COUNT)]
    assert names == [b"none", *(reason.value.encode() for reason in Reason)]
    assert {lib.vipsec_reason_name(n) for n in (-1, lib.VIPSEC_REASON_COUNT)} == {ffi.NULL}


def test_what_no_sa_can_be_is_refused_by_c_itself(table: FastSaTable) -> None:
    ffi, lib = native.extension()
    good = {
        "direction": 1, "is_tunnel": 1, "tunnel_family": 4, "key_len": 16, "icv_len": 16, "spi": 1,
        "first_sequence": 1,
    }  # fmt: skip
    bad: list[dict[str, int]] = [
        {"direction": 3}, {"is_tunnel": 2}, {"spi": 0}, {"key_len": 17}, {"icv_len": 10}, {"icv_len": 200},
        {"options": 128}, {"is_tunnel": 0, "options": 4}, {"tunnel_family": 5}, {"dscp": 64}, {"df": 2},
        {"flow_label": 1 << 20}, {"direction": 2, "replay_window": 4097}, {"direction": 2, "options": 1},
        {"first_sequence": 0}, {"first_sequence": 1 << 32},
    ]  # fmt: skip
    for change in bad:
        config = ffi.new("struct vipsec_sa_config *", good | change)
        assert lib.vipsec_sa_add(table.handle, 1, config) == lib.VIPSEC_SA_REFUSED, change
        assert lib.vipsec_sa_modify(table.handle, 1, 1, config) == lib.VIPSEC_SA_REFUSED, change
    config = ffi.new("struct vipsec_sa_config *", good)
    state = ffi.new("struct vipsec_sa_state *")
    assert lib.vipsec_sa_modify(table.handle, 1, 1, config) == lib.VIPSEC_SA_MISSING
    assert lib.vipsec_sa_remove(table.handle, 2, 1) == lib.VIPSEC_SA_MISSING
    assert lib.vipsec_sa_remove(table.handle, 3, 1) == lib.VIPSEC_SA_MISSING
    assert lib.vipsec_sa_read(table.handle, 1, MAX_SAS, state) == lib.VIPSEC_SA_MISSING
    assert lib.vipsec_sa_add(table.handle, 1, config) == lib.VIPSEC_SA_OK


@pytest.mark.parametrize("short", ["headroom", "tailroom"])
@pytest.mark.parametrize("tunnel", [1, 0])
def test_too_little_room_is_refused(table: FastSaTable, short: str, tunnel: int) -> None:
    ffi, lib = native.extension()
    sender, _ = pair(table, mode=IpsecMode.ESP_TUNNEL if tunnel else IpsecMode.ESP_TRANSPORT)
    need = {"headroom": 20 * tunnel + 16, "tailroom": 20}
    for missing in (1, 0):
        memory = ffi.new("uint8_t[]", bytes(64) + INNER + bytes(64))
        packet: Any = ffi.new("struct vipsec_packet *", {"data": memory + 64, "len": len(INNER), "sa_id": 7})
        packet.headroom, packet.tailroom = need["headroom"], need["tailroom"]
        setattr(packet, short, need[short] - missing)
        with table.reader() as reader:
            lib.vipsec_esp_outbound(table.handle, reader, packet, 1)
        assert packet.reason == (list(Reason).index(Reason.NO_BUFFER) + 1 if missing else 0)
    assert sender.stats == {Reason.NO_BUFFER: 1}


# ---- published packets ---------------------------------------------------------------------------


def vector_params(vector: dict[str, Any], direction: Direction) -> SaParams:
    tunnel = vector["next_header"] in (4, 41)
    sa = IpsecSa(
        mode=IpsecMode.ESP_TUNNEL if tunnel else IpsecMode.ESP_TRANSPORT, direction=direction,
        spi=int(vector["spi"], 16), salt=bytes.fromhex(vector["salt"]), param=TUNNEL, replay_win_sz=32,
        options=IpsecOption.ESN if vector["seq_hi"] else 0, cipher_algo=GCM.cipher_algo,
        cipher_key=bytes.fromhex(vector["cipher_key"]), esn=int(vector["seq_hi"] + vector["seq"], 16),
    )  # fmt: skip
    return SaParams.from_wire(sa, RFC_2025_01)


def vector_inner(vector: dict[str, Any]) -> bytes:
    payload = bytes.fromhex(vector["payload"])
    return payload if vector["next_header"] == 4 else ipv4(payload, vector["next_header"])


@each_engine
def test_published_packets_both_ways(name: str) -> None:
    assert len(GCM_VECTORS) >= 5
    for vector in GCM_VECTORS:
        table, sequence = FastSaTable(zeros, gcm.Engine(name)), int(vector["seq_hi"] + vector["seq"], 16)
        base = ((int(vector["iv"], 16) - sequence) % 2**64).to_bytes(8)
        sender = FastOutboundSa(
            table, 1, vector_params(vector, Direction.OUTBOUND), lambda n, base=base: base
        )
        receiver = FastInboundSa(table, 1, vector_params(vector, Direction.INBOUND))
        assert sender.protect(vector_inner(vector))[20:].hex() == vector["packet"], vector["tcId"]
        opened = receiver.unprotect(ipv4(bytes.fromhex(vector["packet"]), 50))
        assert (opened.packet, opened.sequence) == (vector_inner(vector), sequence), vector["tcId"]
