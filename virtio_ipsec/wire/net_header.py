"""``virtio_net_hdr`` in each negotiated size (virtio v1.4 5.1.6); it is on the packet path.

Fields have fixed offsets whatever is negotiated; the size says how many of them are there (E15, E16).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from enum import IntFlag
from operator import attrgetter

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.codec import Codec, Data
from virtio_ipsec.wire.fields import (
    Field,
    FieldLayout,
    FieldView,
    Members,
    field_layout,
    field_views,
    flagged,
    hexadecimal,
    le16,
    le32,
    named,
    reserved,
    u8,
)
from virtio_ipsec.wire.numbers import Feature, GsoType, HashReport, HdrFlag, ResourceType, mask


@dataclass(frozen=True, slots=True)
class NetHdr:
    """Every member of the header; those beyond the negotiated size are 0."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0
    hash_value: int = 0
    hash_report: int = 0
    outer_th_offset: int = 0
    inner_nh_offset: int = 0
    outer_nh_offset: int = 0
    resource_id: int = 0
    resource_type: int = 0


_ATTRIBUTES = tuple(each.name for each in fields(NetHdr))
_GSO_BITS = (GsoType.UDP_TUNNEL_IPV4, GsoType.UDP_TUNNEL_IPV6, GsoType.ECN)


def _gso(value: int) -> str:
    parts = [named(GsoType)(value & ~sum(_GSO_BITS))]
    parts += [bit.name for bit in _GSO_BITS if value & bit]
    return "|".join(parts)


def _common(flags: type[IntFlag]) -> tuple[Field, ...]:
    return (
        u8("flags", flagged(flags)),
        u8("gso_type", _gso),
        le16("hdr_len"),
        le16("gso_size"),
        le16("csum_start"),
        le16("csum_offset"),
        le16("num_buffers"),
    )


_HASH = (
    le32("hash_value", hexadecimal),
    le16("hash_report", named(HashReport)),
    reserved("padding_reserved", 2),
)
_TUNNEL = (le16("outer_th_offset"), le16("inner_nh_offset"))
_OUT_NET = (le16("outer_nh_offset"),)
_RESOURCE = (
    le32("ipsec_resource_hdr.resource_id", to="resource_id"),
    le16("ipsec_resource_hdr.resource_type", named(ResourceType), to="resource_type"),
)


class RfcFlag(IntFlag):
    """``flags`` of the January-2025 RFC: 8 and 16 mean other things than in v1.4."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4
    SECURITY = 8
    SECURITY_ERR = 16


class NetHdrCodec(Codec[NetHdr]):
    """The header of one negotiated size. ``size`` is in bytes and never varies."""

    name = "virtio_net_hdr"
    size: int
    zero_extends = False

    def __init__(self, members: tuple[Field, ...]) -> None:
        self._members = Members(self.name, members)
        self._names = self._members.attributes
        self._absent = tuple(name for name in _ATTRIBUTES if name not in self._names)
        self._struct = self._members.packer
        self._values = attrgetter(*self._names)
        self.size = self.fixed_size = self._members.size
        # The members that are there are the first of NetHdr's, save in the RFC's header with its resource id.
        self._in_order = self._names == _ATTRIBUTES[: len(self._names)]

    def build(self, value: NetHdr) -> bytes:
        """The header's bytes. WireError also for a member that this size has no room for, unless it is 0."""
        for name in self._absent:
            if getattr(value, name):
                raise WireError(f"{self.name}: a header of {self.size} bytes has no {name}")
        try:
            return self._struct.pack(*self._values(value))
        except struct.error:
            # The slower way says which member does not fit.
            return self._members.pack({name: getattr(value, name) for name in self._names})

    def read(self, data: bytes, at: int) -> tuple[NetHdr, int]:
        return self.parse(data[at:]), at + self.size

    def parse(self, data: Data, *, complete: bool = True, exact: bool = False) -> NetHdr:
        """The header at the start of ``data``, any buffer. WireError when it is cut, ``complete`` or not."""
        if len(data) < self.size or (exact and len(data) != self.size):
            raise WireError(f"{self.name}: {len(data)} bytes where {self.size} are needed")
        members = self._struct.unpack_from(data)
        return NetHdr(*members) if self._in_order else NetHdr(**dict(zip(self._names, members, strict=True)))

    def layout(self) -> tuple[FieldLayout, ...]:
        return tuple(field_layout(self._members.fields))

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        return field_views(self._members.fields, data, at, prefix)


_V14 = _common(HdrFlag)
V14_32 = NetHdrCodec((*_V14, *_HASH, *_TUNNEL, *_OUT_NET, *_RESOURCE))
V14_24 = NetHdrCodec((*_V14, *_HASH, *_TUNNEL))
V14_20 = NetHdrCodec((*_V14, *_HASH))
V14_12 = NetHdrCodec(_V14)

_RFC = _common(RfcFlag)
RFC_26 = NetHdrCodec((*_RFC, *_HASH, *_RESOURCE))
RFC_20 = NetHdrCodec((*_RFC, *_HASH))
RFC_12 = NetHdrCodec(_RFC)

_OUT_OR_IPSEC = mask(Feature.NET_F_OUT_NET_HEADER, Feature.NET_F_IPSEC)
_UDP_TUNNEL = mask(Feature.NET_F_HOST_UDP_TUNNEL_GSO, Feature.NET_F_GUEST_UDP_TUNNEL_GSO)
_HASH_REPORT = mask(Feature.NET_F_HASH_REPORT)
_IPSEC = mask(Feature.NET_F_IPSEC)


def v14(features: int) -> NetHdrCodec:
    """The header that v1.4 uses when ``features`` are negotiated (5.1.6.3, size rule; E18 for 24 bytes)."""
    if features & _OUT_OR_IPSEC:
        return V14_32
    if features & _UDP_TUNNEL:
        return V14_24
    return V14_20 if features & _HASH_REPORT else V14_12


def rfc_202501(features: int) -> NetHdrCodec:
    """The header of the January-2025 RFC: the resource header at offset 20 when IPSEC is negotiated."""
    if features & _IPSEC:
        return RFC_26
    return RFC_20 if features & _HASH_REPORT else RFC_12
