"""Properties of every codec: values survive bytes, canonical bytes survive values, junk is only refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire import admin, flow_filter, net_config, net_control
from virtio_ipsec.wire.annotate import annotate_admin, annotate_reply, annotate_sa
from virtio_ipsec.wire.codec import Codec
from virtio_ipsec.wire.dialect import DIALECTS, Dialect
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSa, IpsecSaCap, Lifetime, ModeCap
from virtio_ipsec.wire.net_header import NetHdr, NetHdrCodec
from virtio_ipsec.wire.numbers import Feature, mask
from virtio_ipsec.wire.redact import admin_secrets, reply_secrets, sa_secrets
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6, TunnelRaw

U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
KEYS = st.binary(max_size=32)
ANY_LENGTH = st.integers(0, 300).map(lambda size: bytes(at % 251 for at in range(size)))


def tunnels(dialect: Dialect) -> st.SearchStrategy[Any]:
    ipv4 = st.builds(IPv4Address, U32)
    ipv6 = st.builds(IPv6Address, st.integers(0, (1 << 128) - 1))
    other = U8.filter(lambda kind: kind not in (1, 2))
    return st.one_of(
        st.builds(TunnelIPv4, ipv4, ipv4, U8, U8, U8),
        st.builds(TunnelIPv6, ipv6, ipv6, U32, U8, U8),
        st.builds(TunnelRaw, other, st.binary(max_size=dialect.tunnel_param.fixed_size - 4)),
    )


def sas(dialect: Dialect) -> st.SearchStrategy[IpsecSa]:
    plain = st.builds(
        IpsecSa,
        mode=U8,
        direction=U8,
        spi=U32,
        salt=st.binary(min_size=4, max_size=4),
        options=U64,
        param=tunnels(dialect),
        udp_sport=U16,
        udp_dport=U16,
        replay_win_sz=U32,
        cipher_algo=U64,
        cipher_key=KEYS,
        auth_algo=U64,
        auth_key=KEYS,
        life=st.builds(Lifetime, U64, U64, U64, U64) if dialect.has_lifetime else st.just(Lifetime()),
        obj_id=U32,
        esn=U64 if dialect.has_initial_esn else st.just(0),
    )
    too_long = st.integers(33, 0xFFFF)
    overlong = st.builds(
        lambda sa, key, length: replace(sa, cipher_key=key, cipher_key_len=length),
        plain,
        st.binary(min_size=32, max_size=32),
        too_long,
    )
    return st.one_of(plain, overlong)


def selectors() -> st.SearchStrategy[Any]:
    return st.lists(st.builds(flow_filter.Selector, U8, U8, st.binary(max_size=255)), max_size=8).map(tuple)


def headers(codec: NetHdrCodec) -> st.SearchStrategy[NetHdr]:
    widths = {1: U8, 2: U16, 4: U32}
    names = {row.name.rpartition(".")[2]: widths[row.size or 0] for row in codec.layout()}
    names.pop("padding_reserved", None)
    return st.builds(NetHdr, **names)


MODE_CAPS = st.builds(ModeCap, U8, U32, U32, U64, U64, U32, U32, U32)
MACS = st.lists(st.binary(min_size=6, max_size=6), max_size=5).map(tuple)
QUEUES = st.integers(0, 0x7FFF)

CASES: dict[str, tuple[Codec[Any], st.SearchStrategy[Any]]] = {
    "resource header": (admin.RESOURCE_HEADER, st.builds(admin.ResourceHeader, U16, U32)),
    "object command": (
        admin.OBJECT_COMMAND,
        st.builds(admin.ObjectCommand, U16, U32, U64, st.binary(max_size=64)),
    ),
    "cap command": (admin.CAP_COMMAND, st.builds(admin.CapCommand, U16, st.binary(max_size=64))),
    "ff resource cap": (
        flow_filter.FF_RESOURCE_CAP,
        st.builds(flow_filter.FfResourceCap, U32, U32, U32, U32, U8, U8),
    ),
    "ff selector cap": (flow_filter.FF_SELECTOR_CAP, st.builds(flow_filter.FfSelectorCap, selectors())),
    "ff action cap": (
        flow_filter.FF_ACTION_CAP,
        st.builds(flow_filter.FfActionCap, st.lists(U8, max_size=255).map(tuple)),
    ),
    "ff group": (flow_filter.FF_GROUP, st.builds(flow_filter.FfGroup, U16)),
    "ff classifier": (flow_filter.FF_CLASSIFIER, st.builds(flow_filter.FfClassifier, selectors())),
    "ff rule": (
        flow_filter.FF_RULE,
        st.builds(flow_filter.FfRule, U32, U32, U8, U8, U16, st.binary(max_size=255)),
    ),
    "net config": (
        net_config.NET_CONFIG,
        st.builds(
            net_config.NetConfig, st.binary(min_size=6, max_size=6), U16, U16, U16, U32, U8, U8, U16, U32, U32
        ),
    ),
    "control command": (
        net_control.CTRL_COMMAND,
        st.builds(net_control.CtrlCommand, U8, U8, st.binary(max_size=64)),
    ),
    "mac tables": (net_control.MAC_TABLES, st.builds(net_control.MacTables, MACS, MACS)),
    "rss config": (
        net_control.RSS_CONFIG,
        st.builds(
            net_control.RssConfig,
            U32,
            QUEUES,
            st.lists(QUEUES, min_size=1, max_size=16).map(tuple),
            U16,
            st.binary(max_size=255),
        ),
    ),
    "hash config": (
        net_control.HASH_CONFIG,
        st.builds(net_control.HashConfig, U32, st.binary(max_size=255)),
    ),
}
for each in DIALECTS.values():
    CASES |= {
        f"sa {each.name}": (each.sa, sas(each)),
        f"mode cap {each.name}": (each.mode_cap, MODE_CAPS),
        f"sa cap {each.name}": (
            each.sa_cap,
            st.builds(IpsecSaCap, st.lists(MODE_CAPS, max_size=6).map(tuple)),
        ),
        f"resource cap {each.name}": (each.resource_cap, st.builds(IpsecResourceCap, U32, U32)),
        f"tunnel param {each.name}": (each.tunnel_param, tunnels(each)),
    }
    for feature in (Feature.NET_F_IPSEC, Feature.NET_F_HOST_UDP_TUNNEL_GSO, Feature.NET_F_HASH_REPORT):
        codec = each.net_hdr(mask(feature))
        CASES[f"header {each.name} {codec.size}"] = (codec, headers(codec))

EACH = pytest.mark.parametrize("case", CASES)
#: There are dozens of codecs, and they are made of the same parts.
SHARE = settings(max_examples=25)
REORDERED = {name: replace(each, in_addr_little_endian=False) for name, each in DIALECTS.items()}


@EACH
@SHARE
@given(data=st.data())
def test_a_value_survives_bytes(case: str, data: st.DataObject) -> None:
    codec, values = CASES[case]
    value = data.draw(values)
    wire = codec.build(value)
    assert codec.parse(wire, exact=True) == value
    assert codec.size in (None, len(wire))


@EACH
@SHARE
@given(data=st.data())
def test_bytes_that_parse_become_canonical_at_once(case: str, data: st.DataObject) -> None:
    codec, values = CASES[case]
    wire = bytearray(codec.build(data.draw(values)))
    for _ in range(data.draw(st.integers(0, 4))):
        if wire:
            wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(U8)
    try:
        value = codec.parse(wire)
    except WireError:
        return
    canonical = codec.build(value)
    assert codec.parse(canonical, exact=True) == value
    assert codec.build(codec.parse(canonical)) == canonical


@EACH
@SHARE
@given(data=st.data())
def test_missing_bytes_are_zeros_or_refused(case: str, data: st.DataObject) -> None:
    codec, values = CASES[case]
    wire = codec.build(data.draw(values))
    length = data.draw(st.integers(0, len(wire)))
    short, filled = wire[:length], wire[:length].ljust(len(wire), b"\0")
    try:
        value = codec.parse(short)
    except WireError:
        assert not codec.zero_extends or codec is flow_filter.FF_ACTION_CAP
        return
    if codec.zero_extends and codec.size is not None:
        assert value == codec.parse(filled)
    if codec.size is not None and length < codec.size:
        with pytest.raises(WireError):
            codec.parse(short, complete=True)


@EACH
@SHARE
@given(junk=st.binary(max_size=300))
def test_junk_is_parsed_or_refused_and_always_annotated(case: str, junk: bytes) -> None:
    codec, _ = CASES[case]
    assert b"".join(view.raw for view in codec.annotate(junk)) == junk
    for options in ({}, {"complete": True}, {"exact": True}):
        with suppress(WireError):
            codec.parse(junk, **options)


@pytest.mark.parametrize("name", DIALECTS)
@given(data=st.data())
def test_the_order_of_ipv4_addresses_changes_their_bytes_only(name: str, data: st.DataObject) -> None:
    plain, other = DIALECTS[name], REORDERED[name]
    value = data.draw(sas(plain))
    assert other.sa.parse(other.sa.build(value), exact=True) == value
    differing = {
        at
        for at, (a, b) in enumerate(zip(plain.sa.build(value), other.sa.build(value), strict=True))
        if a != b
    }
    assert differing <= (set(range(28, 36)) if isinstance(value.param, TunnelIPv4) else set())


@given(
    opcode=U16,
    group=U16,
    member=U64,
    payload=st.binary(max_size=100),
    status=U16,
    qualifier=U16,
)
def test_frames_survive_up_to_their_padding(
    opcode: int, group: int, member: int, payload: bytes, status: int, qualifier: int
) -> None:
    padded = payload + bytes(-len(payload) % 8)
    command = admin.AdminCommand(opcode, group, member, payload)
    assert admin.ADMIN_COMMAND.parse(admin.ADMIN_COMMAND.build(command)) == replace(command, data=padded)
    reply = admin.AdminReply(status, qualifier, payload)
    assert admin.ADMIN_REPLY.parse(admin.ADMIN_REPLY.build(reply)) == replace(reply, result=padded)


@given(ids=st.frozensets(U16, max_size=40))
def test_id_bitmaps_survive(ids: frozenset[int]) -> None:
    wire = admin.id_bitmap_build(ids)
    assert admin.id_bitmap_parse(wire) == ids
    assert len(wire) % 8 == 0
    assert admin.id_bitmap_parse(wire + bytes(16)) == ids


@pytest.mark.parametrize("name", DIALECTS)
@given(
    opcode=st.one_of(st.integers(0, 0x12), U16),
    kind=st.one_of(st.sampled_from([0x200, 0x201, 0x202, 0x203, 0x204, 0x800, 0x802, 0x804]), U16),
    rest=ANY_LENGTH,
    writable=ANY_LENGTH,
)
def test_any_admin_bytes_can_be_shown(
    name: str, opcode: int, kind: int, rest: bytes, writable: bytes
) -> None:
    dialect = DIALECTS[name]
    readable = opcode.to_bytes(2, "little") + bytes(22) + kind.to_bytes(2, "little") + rest
    for views, secrets, data in (
        (annotate_admin(readable, dialect), admin_secrets(readable, dialect), readable),
        (annotate_reply(readable, writable, dialect), reply_secrets(readable, writable, dialect), writable),
        (annotate_sa(rest, dialect), sa_secrets(rest, dialect), rest),
        (annotate_admin(rest, dialect), admin_secrets(rest, dialect), rest),
    ):
        assert b"".join(view.raw for view in views) == data
        hidden = {at for each in secrets for at in range(each.offset, each.offset + each.length)}
        assert not hidden or max(hidden) < len(data)
        assert len(hidden) == sum(each.length for each in secrets), "ranges do not overlap"
        shown = {
            at for view in views if not view.secret for at in range(view.offset, view.offset + len(view.raw))
        }
        assert not shown & hidden
