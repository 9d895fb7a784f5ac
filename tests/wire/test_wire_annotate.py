"""What people see of admin bytes, and that they never see a key."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from virtio_ipsec.wire.admin import (
    ADMIN_COMMAND,
    ADMIN_REPLY,
    CAP_COMMAND,
    OBJECT_COMMAND,
    RESOURCE_HEADER,
    AdminCommand,
    AdminReply,
    CapCommand,
    ObjectCommand,
    ResourceHeader,
    id_bitmap_build,
)
from virtio_ipsec.wire.annotate import annotate_admin, annotate_reply, annotate_sa
from virtio_ipsec.wire.codec import FieldView
from virtio_ipsec.wire.dialect import DIALECTS, RFC_2025_01, V14, Dialect
from virtio_ipsec.wire.flow_filter import FF_ACTION_CAP, FF_CLASSIFIER, FfActionCap, FfClassifier, Selector
from virtio_ipsec.wire.ipsec import IpsecSa, IpsecSaCap, ModeCap
from virtio_ipsec.wire.net_control import (
    HASH_CONFIG,
    MAC_TABLES,
    RSS_CONFIG,
    HashConfig,
    MacTables,
    RssConfig,
)
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import CapId, Feature, Opcode, ResourceType, mask
from virtio_ipsec.wire.redact import admin_secrets, masked_hex, reply_secrets, sa_secrets
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

KEY = bytes(range(0xA0, 0xC0))
SALT = b"\xd1\xd2\xd3\xd4"
SA = IpsecSa(
    mode=1,
    direction=1,
    spi=0x1234,
    salt=SALT,
    options=3,
    param=TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")),
    cipher_algo=1,
    cipher_key=KEY,
    auth_key=KEY[::-1],
)
SECRETS = SALT + KEY + KEY[::-1]
OUTB = ResourceType.NET_IPSEC_OUTB_SA
ALL = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)


def command(opcode: int, data: bytes = b"") -> bytes:
    return ADMIN_COMMAND.build(AdminCommand(opcode, data=data))


def object_command(opcode: int, data: bytes, type: int = OUTB) -> bytes:
    return command(opcode, OBJECT_COMMAND.build(ObjectCommand(type, 5, data=data)))


def texts(views: tuple[FieldView, ...]) -> dict[str, str]:
    return {view.name.rpartition("specific_data.")[2]: view.text for view in views}


def natural(sa: bytes) -> bytes:
    """A v1.4 SA as a C compiler lays it out without packing: 208 bytes (E19)."""
    return sa[:76] + bytes(4) + sa[76:120] + bytes(4) + sa[120:164] + bytes(4) + sa[164:]


@ALL
def test_a_create_command_is_taken_apart(dialect: Dialect) -> None:
    wire = object_command(Opcode.RESOURCE_OBJ_CREATE, dialect.sa.build(SA))
    views = annotate_admin(wire, dialect)
    seen = texts(views)
    assert seen["opcode"] == "RESOURCE_OBJ_CREATE (0xa)"
    assert seen["group_type"] == "SELF (0x0)"
    assert seen["hdr.type"] == "NET_IPSEC_OUTB_SA (0x203)"
    assert seen["hdr.id"] == "5"
    assert seen["mode"] == "ESP_TUNNEL (0x1)"
    assert seen["direction"] == "OUTBOUND (0x1)"
    assert seen["spi"] == "0x1234"
    assert seen["options"] == "ESN|UDP_ENCAP (0x3)"
    assert seen["param.type"] == "IPV4 (0x1)"
    assert seen["param.ipv4.src_ip"] == "192.0.2.1"
    assert seen["cipher_algo"] == "GCM (0x1)"
    assert seen["salt"] == "4 secret bytes"
    assert seen["cipher_key.length"] == "32"
    assert seen["cipher_key.data"] == seen["auth_key.data"] == "32 secret bytes"
    assert ("esn" in seen, "life.packets_soft_limit" in seen) == (
        dialect.has_initial_esn,
        dialect.has_lifetime,
    )


@ALL
def test_views_cover_every_byte_once(dialect: Dialect) -> None:
    wire = object_command(Opcode.RESOURCE_OBJ_CREATE, dialect.sa.build(SA)) + b"\1" * 8
    for length in range(len(wire) + 1):
        views = annotate_admin(wire[:length], dialect)
        assert b"".join(view.raw for view in views) == wire[:length]
        at = 0
        for view in views:
            assert view.offset == at
            at += len(view.raw)


def test_cut_and_surplus_bytes_are_marked() -> None:
    wire = object_command(Opcode.RESOURCE_OBJ_CREATE, V14.sa.build(SA))
    assert texts(annotate_admin(wire[:50], V14))["spi"] == "0x1234 (cut: 2 of 4 bytes)"
    assert texts(annotate_admin(wire[:54], V14))["salt"] == "2 secret bytes"
    assert texts(annotate_admin(wire[:1], V14)) == {"opcode": "RESOURCE_OBJ_CREATE (0xa)"}
    assert texts(annotate_admin(wire, V14))["trailing"] == "4 zero bytes"
    assert annotate_admin(b"", V14) == ()
    odd = RESOURCE_HEADER.build(ResourceHeader(OUTB, 5)) + b"\1\2\3\4\5\6\7\x08"
    assert (
        texts(annotate_admin(command(Opcode.RESOURCE_OBJ_DESTROY, odd), V14))["trailing"]
        == "0102030405060708"
    )


def test_reserved_bytes_show_only_when_they_are_not_zero() -> None:
    wire = bytearray(command(Opcode.LIST_QUERY))
    assert texts(annotate_admin(bytes(wire), V14))["reserved1"] == "0"
    wire[4] = 0xAB
    assert texts(annotate_admin(bytes(wire), V14))["reserved1"] == "ab" + "00" * 11


def test_an_ipv6_tunnel_and_an_unknown_one() -> None:
    six = replace(SA, param=TunnelIPv6(IPv6Address("2001:db8::1"), IPv6Address("::"), flabel=0x12345))
    seen = texts(annotate_sa(V14.sa.build(six), V14))
    assert seen["param.ipv6.src_addr"] == "2001:db8::1"
    assert seen["param.ipv6.flabel"] == "0x12345"
    wire = bytearray(V14.sa.build(six))
    wire[24] = 9
    seen = texts(annotate_sa(bytes(wire), V14))
    assert seen["param.type"] == "unknown (0x9)"
    assert seen["param.union"].startswith("20010db8")


def test_algorithms_of_an_sa_with_a_mac_and_of_one_without_cipher() -> None:
    wire = V14.sa.build(replace(SA, cipher_algo=3, auth_algo=4))
    assert texts(annotate_sa(wire, V14))["cipher_algo"] == "AES_CBC (0x3)"
    assert texts(annotate_sa(wire, V14))["auth_algo"] == "HMAC_SHA_256 (0x4)"
    wire = V14.sa.build(replace(SA, cipher_algo=0, auth_algo=0))
    assert texts(annotate_sa(wire, V14))["cipher_algo"] == "NO_CIPHER (0x0)"


def test_capabilities_in_command_and_reply() -> None:
    cap = V14.sa_cap.build(IpsecSaCap((ModeCap(2, 64, 0x101, 0x18, 0x10, 2, 32, 32),)))
    set_cap = command(Opcode.DRIVER_CAP_SET, CAP_COMMAND.build(CapCommand(CapId.NET_IPSEC_SA_CAP, cap)))
    seen = texts(annotate_admin(set_cap, V14))
    assert seen["id"] == "NET_IPSEC_SA_CAP (0x804)"
    assert seen["cap_mode[0].mode"] == "ESP_TRANSPORT (0x2)"
    assert seen["cap_mode[0].options"] == "ESN|bit 8 (0x101)"
    assert seen["cap_mode[0].cipher_algo"] == "AES_CBC|AES_CTR (0x18)"
    get = command(Opcode.DEVICE_CAP_GET, CAP_COMMAND.build(CapCommand(CapId.NET_IPSEC_SA_CAP)))
    assert texts(annotate_admin(get, V14))["id"] == "NET_IPSEC_SA_CAP (0x804)"
    reply = ADMIN_REPLY.build(AdminReply(result=cap))
    assert texts(annotate_reply(get, reply, V14))["cap_mode[0].hmac_algo"] == "HMAC_SHA_256 (0x10)"
    actions = FF_ACTION_CAP.build(FfActionCap((1, 9)))
    get = command(Opcode.DEVICE_CAP_GET, CAP_COMMAND.build(CapCommand(CapId.NET_FF_ACTION_CAP)))
    seen = texts(annotate_reply(get, ADMIN_REPLY.build(AdminReply(result=actions)), V14))
    assert (seen["actions[0]"], seen["actions[1]"]) == ("DROP (0x1)", "unknown (0x9)")


def test_what_has_no_name_is_shown_as_bytes() -> None:
    unknown = command(Opcode.DRIVER_CAP_SET, CAP_COMMAND.build(CapCommand(0x999, b"\xab" * 8)))
    seen = texts(annotate_admin(unknown, V14))
    assert (seen["id"], seen["cap_specific_data"]) == ("unknown (0x999)", "ab" * 8)
    assert texts(annotate_admin(command(0x77, b"\xcd" * 8), V14))["trailing"] == "cd" * 8
    assert texts(annotate_admin(command(0x77), V14))["opcode"] == "0x77 (0x77)"
    other = object_command(Opcode.RESOURCE_OBJ_CREATE, b"\xef" * 8, type=0x300)
    assert texts(annotate_admin(other, V14))["resource_obj_specific_data"] == "ef" * 8


def test_id_bitmaps_show_names() -> None:
    use = command(Opcode.LIST_USE, id_bitmap_build([0, 0xA, 0xC, 0x30]))
    seen = texts(annotate_admin(use, V14))["device_admin_cmd_opcodes"]
    assert seen == "LIST_QUERY, RESOURCE_OBJ_CREATE, RESOURCE_OBJ_MODIFY, 0x30"
    swapped = replace(V14, query_opcode=0xC, modify_opcode=0xB)
    assert "RESOURCE_OBJ_QUERY" in texts(annotate_admin(use, swapped))["device_admin_cmd_opcodes"]
    reply = ADMIN_REPLY.build(AdminReply(result=id_bitmap_build([1, 0x804, 0x900])))
    assert texts(annotate_reply(command(Opcode.LIST_QUERY), reply[:16], V14)) == {
        "status": "OK (0x0)",
        "status_qualifier": "OK (0x0)",
        "reserved2": "0",
        "device_admin_cmd_opcodes": "LIST_USE",
    }
    seen = texts(annotate_reply(command(Opcode.CAP_ID_LIST_QUERY), reply, V14))["supported_caps"]
    assert seen == "0x1, NET_IPSEC_SA_CAP, 0x900"
    empty = ADMIN_REPLY.build(AdminReply(result=bytes(8)))
    assert texts(annotate_reply(command(Opcode.LIST_QUERY), empty, V14))["device_admin_cmd_opcodes"] == "none"


def test_opcodes_follow_the_dialect() -> None:
    swapped = replace(V14, query_opcode=0xC, modify_opcode=0xB)
    wire = object_command(0xB, V14.sa.build(SA))
    assert texts(annotate_admin(wire, swapped))["opcode"] == "RESOURCE_OBJ_MODIFY (0xb)"
    assert texts(annotate_admin(wire, swapped))["mode"] == "ESP_TUNNEL (0x1)"
    assert texts(annotate_admin(wire, V14))["opcode"] == "RESOURCE_OBJ_QUERY (0xb)"


def test_flow_filter_objects() -> None:
    data = FF_CLASSIFIER.build(FfClassifier((Selector(1, 0, b"\xff" * 14), Selector(6, 1, b"\xff" * 8))))
    wire = object_command(Opcode.RESOURCE_OBJ_CREATE, data, type=ResourceType.NET_FF_CLASSIFIER)
    seen = texts(annotate_admin(wire, V14))
    assert seen["selectors[1].type"] == "ESP (0x6)"
    assert seen["selectors[1].flags"] == "PARTIAL_MASK (0x1)"
    assert seen["selectors[0].mask"] == "ff" * 14
    cut = annotate_admin(wire[:-15], V14)
    assert texts(cut)["selectors[1].type"] == "ESP (0x6)"


def test_net_headers_show_flags_by_dialect() -> None:
    features = mask(Feature.NET_F_IPSEC)
    header = NetHdr(flags=24, gso_type=0x81, resource_id=9, resource_type=OUTB)
    v14 = texts(V14.net_hdr(features).annotate(V14.net_hdr(features).build(header) + b"frame"))
    rfc = texts(RFC_2025_01.net_hdr(features).annotate(RFC_2025_01.net_hdr(features).build(header)))
    assert v14["flags"] == "UDP_TUNNEL_CSUM|SECURITY (0x18)"
    assert rfc["flags"] == "SECURITY|SECURITY_ERR (0x18)"
    assert v14["gso_type"] == "TCPV4 (0x1)|ECN"
    assert v14["ipsec_resource_hdr.resource_type"] == "NET_IPSEC_OUTB_SA (0x203)"
    assert v14["trailing"] == b"frame".hex()


def test_control_queue_data() -> None:
    macs = MAC_TABLES.build(MacTables((b"\2\0\0\0\0\1",), (b"\1\0\x5e\0\0\1",)))
    seen = {view.name: view.text for view in MAC_TABLES.annotate(macs)}
    assert seen["unicast.macs[0]"] == "02:00:00:00:00:01"
    assert seen["multicast.entries"] == "1"
    assert len(MAC_TABLES.annotate(b"\xff" * 20)) == 4
    rss = RSS_CONFIG.build(RssConfig(0x3, 1, (0, 1), 2, b"\xaa" * 4))
    seen = {view.name: view.text for view in RSS_CONFIG.annotate(rss)}
    assert seen["hash_types"] == "IPV4|TCPV4 (0x3)"
    assert seen["indirection_table"] == "00000100"
    assert seen["hash_key_data"] == "aaaaaaaa"
    seen = {view.name: view.text for view in HASH_CONFIG.annotate(HASH_CONFIG.build(HashConfig(1, b"\xbb")))}
    assert (seen["hash_key_length"], seen["hash_key_data"]) == ("1", "bb")


def shown(views: tuple[FieldView, ...]) -> str:
    return repr(views) + "".join(view.text for view in views)


def leaks(text: str) -> bool:
    """Whether four neighbouring bytes of key or salt stand in the text, as digits or as a number."""
    pieces = [piece[at : at + 4] for piece in (SALT, KEY, KEY[::-1]) for at in range(len(piece) - 3)]
    numbers = [
        str(int.from_bytes(piece[at : at + 8], "little")) for piece in (KEY, KEY[::-1]) for at in range(25)
    ]
    return any(piece.hex() in text for piece in pieces) or any(number in text for number in numbers)


@ALL
@pytest.mark.parametrize("opcode", [0xA, 0xB, 0xC, 0xD])
@pytest.mark.parametrize("form", ["own", "other dialect", "natural", "cut", "longer"])
def test_no_form_of_an_sa_shows_its_keys(dialect: Dialect, opcode: int, form: str) -> None:
    own = dialect.sa.build(SA)
    other = next(each for each in DIALECTS.values() if each is not dialect)
    data = {
        "own": own,
        "other dialect": other.sa.build(SA),
        "natural": natural(V14.sa.build(SA)),
        "cut": own[:150],
        "longer": own + bytes(16),
    }[form]
    wire = object_command(opcode, data)
    assert leaks(wire.hex())
    assert not leaks(masked_hex(wire, admin_secrets(wire, dialect)))
    assert not leaks(shown(annotate_admin(wire, dialect)))
    reply = ADMIN_REPLY.build(AdminReply(result=data))
    assert not leaks(masked_hex(reply, reply_secrets(wire, reply, dialect)))
    assert not leaks(shown(annotate_reply(wire, reply, dialect)))
    assert not leaks(masked_hex(data, sa_secrets(data, dialect)))
    assert not leaks(shown(annotate_sa(data, dialect)))
    assert not leaks(shown(ADMIN_COMMAND.annotate(wire)))
    assert not leaks(shown(ADMIN_REPLY.annotate(reply)))
    assert not leaks(shown(OBJECT_COMMAND.annotate(wire[24:])))


@pytest.mark.parametrize(
    ("dialect", "places"),
    [(V14, [(52, 4), (128, 32), (172, 32)]), (RFC_2025_01, [(52, 4), (132, 32), (174, 32)])],
    ids=["v14", "rfc"],
)
def test_only_keys_and_salt_of_a_well_formed_sa_are_masked(
    dialect: Dialect, places: list[tuple[int, int]]
) -> None:
    wire = object_command(Opcode.RESOURCE_OBJ_CREATE, dialect.sa.build(SA))
    secrets = admin_secrets(wire, dialect)
    assert [(secret.offset, secret.length) for secret in secrets] == places
    masked = list(wire.hex(" ").split())
    for offset, length in places:
        masked[offset : offset + length] = ["xx"] * length
    assert masked_hex(wire, secrets) == "".join(masked)


def test_nothing_else_is_masked() -> None:
    rule = object_command(Opcode.RESOURCE_OBJ_CREATE, bytes(64), type=ResourceType.NET_FF_RULE)
    cap = command(Opcode.DRIVER_CAP_SET, CAP_COMMAND.build(CapCommand(OUTB, bytes(200))))
    for wire in (rule, cap, command(Opcode.LIST_QUERY), b""):
        assert admin_secrets(wire, V14) == ()
        assert reply_secrets(wire, bytes(204), V14) == ()
