"""Tunnel parameters of an SA (virtio v1.4 5.9.7): addresses and header fields of the outer IP header.

The two forms share their bytes; ``type`` tells them apart (1 IPv4, 2 IPv6: E22). IPv4 addresses are le32
numbers, 10.0.0.1 being 0x0a000001 (E23), unless the dialect says that the bytes are in network order.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.codec import Codec
from virtio_ipsec.wire.fields import (
    Field,
    FieldLayout,
    FieldView,
    Members,
    field_layout,
    field_views,
    hexadecimal,
    le32,
    named,
    octets,
    reserved,
    u8,
)
from virtio_ipsec.wire.numbers import TunnelType
from virtio_ipsec.wire.quick import quick_init


@quick_init
@dataclass(frozen=True, slots=True)
class TunnelIPv4:
    """Outer IPv4 header: ``dscp`` 0-63, ``df`` 0 or 1, ``ttl`` 0 for the device's default (E26)."""

    src_ip: IPv4Address
    dst_ip: IPv4Address
    dscp: int = 0
    df: int = 0
    ttl: int = 0


@quick_init
@dataclass(frozen=True, slots=True)
class TunnelIPv6:
    """Outer IPv6 header: ``flabel`` 20 bits, ``hlimit`` 0 for the device's default, ``dscp`` 0-63 (E26)."""

    src_addr: IPv6Address
    dst_addr: IPv6Address
    flabel: int = 0
    hlimit: int = 0
    dscp: int = 0


@dataclass(frozen=True, slots=True)
class TunnelRaw:
    """Parameters of any other type, or none at all: the bytes behind ``type``, without trailing zeros."""

    type: int = 0
    data: bytes = b""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", self.data.rstrip(b"\0"))


TunnelParam = TunnelIPv4 | TunnelIPv6 | TunnelRaw

NO_TUNNEL = TunnelRaw()
"""All zero: what transport modes and inbound SAs carry."""


def _address6(raw: bytes) -> str:
    return str(IPv6Address(raw))


class TunnelParamCodec(Codec[TunnelParam]):
    """``virtio_crypto_ipsec_tunnel_param``.

    ``ipv4_tail`` and ``ipv6_tail`` are the reserved members that end the two forms, ``little_endian`` the
    byte order of IPv4 addresses.
    """

    name = "virtio_crypto_ipsec_tunnel_param"

    def __init__(self, *, ipv4_tail: int, ipv6_tail: int, little_endian: bool) -> None:
        self._order: Literal["little", "big"] = "little" if little_endian else "big"
        self.head: tuple[Field, ...] = (u8("type", named(TunnelType)), reserved("reserved", 3))
        self.ipv4: tuple[Field, ...] = (
            octets("ipv4.src_ip", 4, self._address4_text, to="src_ip"),
            octets("ipv4.dst_ip", 4, self._address4_text, to="dst_ip"),
            u8("ipv4.dscp", to="dscp"),
            u8("ipv4.df", to="df"),
            u8("ipv4.ttl", to="ttl"),
            *((reserved("ipv4.reserved1", ipv4_tail),) if ipv4_tail else ()),
        )
        self.ipv6: tuple[Field, ...] = (
            octets("ipv6.src_addr", 16, _address6, to="src_addr"),
            octets("ipv6.dst_addr", 16, _address6, to="dst_addr"),
            le32("ipv6.flabel", hexadecimal, to="flabel"),
            u8("ipv6.hlimit", to="hlimit"),
            u8("ipv6.dscp", to="dscp"),
            *((reserved("ipv6.reserved2", ipv6_tail),) if ipv6_tail else ()),
        )
        self._four = Members(self.name, (*self.head, *self.ipv4))
        self._six = Members(self.name, (*self.head, *self.ipv6))
        self._raw = Members(self.name, (*self.head, octets("data", self._six.size - 4)))
        self.size = self.fixed_size = self._six.size

    def _address4(self, raw: bytes) -> IPv4Address:
        return IPv4Address(int.from_bytes(raw, self._order))

    def _address4_text(self, raw: bytes) -> str:
        return str(self._address4(raw))

    def build(self, value: TunnelParam) -> bytes:
        if isinstance(value, TunnelIPv4):
            src, dst = (int(each).to_bytes(4, self._order) for each in (value.src_ip, value.dst_ip))
            members = (TunnelType.IPV4, src, dst, value.dscp, value.df, value.ttl)
            return self._four.pack_values(members).ljust(self.fixed_size, b"\0")
        if isinstance(value, TunnelIPv6):
            src, dst = value.src_addr.packed, value.dst_addr.packed
            return self._six.pack_values((TunnelType.IPV6, src, dst, value.flabel, value.hlimit, value.dscp))
        room = self.fixed_size - 4
        if len(value.data) > room:
            raise WireError(f"{self.name}: {len(value.data)} bytes do not fit the union of {room}")
        return self._raw.pack_values((value.type, value.data.ljust(room, b"\0")))

    def read(self, data: bytes, at: int) -> tuple[TunnelParam, int]:
        end = at + self.fixed_size
        kind = data[at] if at < len(data) else 0
        if kind == TunnelType.IPV4:
            _, src, dst, dscp, df, ttl = self._four.unpack_values(data, at)
            return TunnelIPv4(self._address4(src), self._address4(dst), dscp, df, ttl), end
        if kind == TunnelType.IPV6:
            _, src, dst, flabel, hlimit, dscp = self._six.unpack_values(data, at)
            return TunnelIPv6(IPv6Address(src), IPv6Address(dst), flabel, hlimit, dscp), end
        return TunnelRaw(kind, data[at + 4 : end]), end

    def layout(self) -> tuple[FieldLayout, ...]:
        return (*field_layout(self.head), *field_layout(self.ipv4, 4), *field_layout(self.ipv6, 4))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        kind = data[at] if at < len(data) else 0
        room = self.fixed_size - 4
        if kind == TunnelType.IPV4:
            used = sum(each.size for each in self.ipv4)
            form = (*self.ipv4, reserved("unused", room - used))
        elif kind == TunnelType.IPV6:
            form = self.ipv6
        else:
            form = (reserved("union", room),)
        return field_views((*self.head, *form), data, at, prefix)
