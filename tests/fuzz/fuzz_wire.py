"""Fuzz the parsers and annotators of ``wire/``: nothing but WireError, and what parses builds again.

python tests/fuzz/fuzz_wire.py --seconds 300
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from harness import Target, fuzz

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire import admin, flow_filter, net_config, net_control
from virtio_ipsec.wire.annotate import annotate_admin, annotate_reply, annotate_sa
from virtio_ipsec.wire.codec import Codec
from virtio_ipsec.wire.dialect import DIALECTS, Dialect
from virtio_ipsec.wire.flow_filter import FfActionCap, FfClassifier, FfRule, Selector
from virtio_ipsec.wire.ipsec import IpsecSa, IpsecSaCap, ModeCap
from virtio_ipsec.wire.net_control import HashConfig, MacTables, RssConfig
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, Opcode, ResourceType, mask
from virtio_ipsec.wire.redact import admin_secrets, masked_hex, reply_secrets
from virtio_ipsec.wire.tunnel import NO_TUNNEL, TunnelIPv4, TunnelIPv6, TunnelParam


def sa(rng: random.Random) -> IpsecSa:
    four, six = IPv4Address(rng.getrandbits(32)), IPv6Address(rng.getrandbits(128))
    tunnels: tuple[TunnelParam, ...] = (NO_TUNNEL, TunnelIPv4(four, four), TunnelIPv6(six, six))
    return IpsecSa(
        mode=rng.randrange(6),
        direction=rng.randrange(4),
        spi=rng.getrandbits(32),
        salt=rng.randbytes(4),
        options=rng.getrandbits(7),
        param=rng.choice(tunnels),
        cipher_algo=rng.randrange(16),
        cipher_key=rng.randbytes(rng.randrange(33)),
        auth_algo=rng.randrange(56),
        auth_key=rng.randbytes(rng.randrange(33)),
    )


def selectors(rng: random.Random) -> tuple[Selector, ...]:
    lengths = ((1, 14), (2, 20), (3, 40), (4, 20), (5, 8), (6, 8))
    return tuple(
        Selector(kind, rng.randrange(2), rng.randbytes(n)) for kind, n in lengths[: rng.randrange(7)]
    )


def object_data(rng: random.Random, dialect: Dialect, kind: int) -> bytes:
    if kind == ResourceType.NET_FF_GROUP:
        return rng.randbytes(2)
    if kind == ResourceType.NET_FF_CLASSIFIER:
        return flow_filter.FF_CLASSIFIER.build(FfClassifier(selectors(rng)))
    if kind == ResourceType.NET_FF_RULE:
        return flow_filter.FF_RULE.build(FfRule(1, 2, 3, rng.randrange(6), keys=rng.randbytes(42)))
    return dialect.sa.build(sa(rng))


def command(rng: random.Random, dialect: Dialect) -> bytes:
    opcode = rng.choice((*Opcode, 0x12))
    if opcode == Opcode.LIST_USE:
        data = admin.id_bitmap_build(rng.sample(range(20), 5))
    elif opcode in (Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET):
        cap = rng.choice((*dialect.capabilities, 0))
        caps = dialect.sa_cap.build(IpsecSaCap((ModeCap(1, 64, 127, 8, 16, 2, 32, 32),) * rng.randrange(5)))
        data = admin.CAP_COMMAND.build(admin.CapCommand(cap, caps))
    else:
        kind = rng.choice(tuple(dialect.objects))
        data = admin.OBJECT_COMMAND.build(admin.ObjectCommand(kind, 1, 0, object_data(rng, dialect, kind)))
    return admin.ADMIN_COMMAND.build(admin.AdminCommand(opcode, data=data))


def again(codec: Codec[Any]) -> Callable[[bytes], None]:
    """Parse; what parses must build, and parse to the same value; annotate must cover each byte once."""

    def run(data: bytes) -> None:
        views = codec.annotate(data)
        assert b"".join(view.raw for view in views) == data
        value = codec.parse(data)
        wire = codec.build(value)
        assert codec.parse(wire, complete=True) == value
        assert codec.build(codec.parse(wire)) == wire

    return run


def parses(codec: Codec[Any]) -> Callable[[bytes], None]:
    """For structures whose build pads, so that the value grows by the padding."""

    def run(data: bytes) -> None:
        wire = codec.build(codec.parse(data))
        assert codec.build(codec.parse(wire)) == wire
        assert len(wire) % 8 == 0

    return run


def walk(dialect: Dialect) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        cut = data[0] if data else 0
        for views, whole in (
            (annotate_admin(data, dialect), data),
            (annotate_reply(data, data[cut:], dialect), data[cut:]),
            (annotate_sa(data, dialect), data),
        ):
            assert b"".join(view.raw for view in views) == whole
        assert len(masked_hex(data, admin_secrets(data, dialect))) == 2 * len(data)
        assert len(masked_hex(data, reply_secrets(data, data[cut:], dialect))) == 2 * len(data)
        admin.id_bitmap_parse(data)

    return run


def built(codec: Codec[Any], *values: object) -> Callable[[random.Random], bytes]:
    """A seed that is one of these values' bytes."""
    return lambda rng: codec.build(rng.choice(values))


def of(codec: Codec[Any], seed: Callable[[random.Random], bytes], name: str = "") -> Target:
    return Target(name or codec.name, seed, again(codec), (WireError,))


def of_dialect(dialect: Dialect) -> list[Target]:
    header = dialect.net_hdr(mask(Feature.NET_F_IPSEC))
    caps = (IpsecSaCap(), IpsecSaCap((ModeCap(1), ModeCap(2))))
    return [
        Target(f"walk-{dialect.name}", lambda rng: command(rng, dialect), walk(dialect), (WireError,)),
        of(dialect.sa, lambda rng: dialect.sa.build(sa(rng)), f"sa-{dialect.name}"),
        of(dialect.sa_cap, built(dialect.sa_cap, *caps), f"sa-cap-{dialect.name}"),
        of(header, built(header, NetHdr(1, 1, 54, 1400), NetHdr(resource_id=1)), f"header-{dialect.name}"),
    ]


V14, RFC = DIALECTS.values()
TARGETS = [
    Target("admin", lambda rng: command(rng, V14), parses(admin.ADMIN_COMMAND), (WireError,)),
    Target("reply", lambda rng: rng.randbytes(24), parses(admin.ADMIN_REPLY), (WireError,)),
    of(admin.OBJECT_COMMAND, lambda rng: rng.randbytes(40)),
    of(admin.CAP_COMMAND, lambda rng: rng.randbytes(40)),
    of(flow_filter.FF_CLASSIFIER, lambda rng: object_data(rng, V14, ResourceType.NET_FF_CLASSIFIER)),
    of(flow_filter.FF_RULE, lambda rng: object_data(rng, V14, ResourceType.NET_FF_RULE)),
    of(flow_filter.FF_ACTION_CAP, built(flow_filter.FF_ACTION_CAP, FfActionCap((1, 2, 3)))),
    of(flow_filter.FF_RESOURCE_CAP, lambda rng: rng.randbytes(20)),
    of(net_config.NET_CONFIG, lambda rng: rng.randbytes(28)),
    of(net_control.CTRL_COMMAND, lambda rng: rng.randbytes(10)),
    of(net_control.MAC_TABLES, built(net_control.MAC_TABLES, MacTables((bytes(6),), (bytes(6),)))),
    of(net_control.RSS_CONFIG, built(net_control.RSS_CONFIG, RssConfig(1, 0, (0, 1), 1, bytes(40)))),
    of(net_control.HASH_CONFIG, built(net_control.HASH_CONFIG, HashConfig(1, bytes(40)))),
    *of_dialect(V14),
    *of_dialect(RFC),
]

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
