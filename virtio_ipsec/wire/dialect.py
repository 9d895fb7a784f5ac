"""The two dialects as data: which codecs, which numbers, and every difference of behaviour by name.

Code asks for a switch, never for a dialect's name. A variant is made with ``dataclasses.replace``; the codecs
follow (``replace(V14, in_addr_little_endian=False).sa`` writes IPv4 addresses in network order).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from virtio_ipsec.wire import device_parts, flow_filter, ipsec, ipsec_rfc202501, net_header
from virtio_ipsec.wire.codec import Codec, Counted, Record
from virtio_ipsec.wire.ipsec import IpsecResourceCap, IpsecSaCap, ModeCap, SaCodec
from virtio_ipsec.wire.net_header import NetHdrCodec
from virtio_ipsec.wire.numbers import (
    CapId,
    Feature,
    HdrFlag,
    IpsecOption,
    Opcode,
    ResourceType,
    SelectorType,
    mask,
)
from virtio_ipsec.wire.tunnel import TunnelParamCodec

_EVERY_FEATURE = mask(*Feature)


@dataclass(frozen=True)
class Dialect:
    """One reading of virtio-net IPsec. The fields without comment are explained by their name."""

    name: str
    mode_cap: Record[ModeCap]
    sa_cap: Counted[IpsecSaCap]
    sa_form: Callable[[TunnelParamCodec], SaCodec] = field(repr=False)
    """Makes the SA codec around the tunnel parameters' codec."""
    tunnel_reserved: tuple[int, int]
    """Reserved bytes that end the IPv4 and the IPv6 tunnel parameters."""
    header: Callable[[int], NetHdrCodec] = field(repr=False)
    """Negotiated features to the codec of ``virtio_net_hdr``; call it as :meth:`net_hdr`."""

    known_features: int
    """Feature bits that the dialect defines."""
    selector_types: frozenset[int]
    """Flow-filter selector types that the dialect defines."""
    ipsec_options: int
    """Option bits that the dialect defines."""

    flag_security: int
    flag_security_err: int
    flag_soft_expiry: int
    """0 where there is no such flag."""
    flag_udp_tunnel_csum: int
    """0 where there is no such flag (the RFC uses its bit for SECURITY)."""

    has_lifetime: bool
    has_initial_esn: bool
    """The SA object carries the first sequence number (``esn``)."""
    sa_lookup_without_rule: bool
    """Inbound packets are opened by SPI even when no flow-filter rule says so (E56)."""
    tx_resource_type_required: bool
    """On transmit ``resource_type`` must name the outbound SA type; otherwise 0 will do too (E60)."""
    supports_modify_query: bool
    """MODIFY and QUERY exist for SAs."""

    query_opcode: int = Opcode.RESOURCE_OBJ_QUERY
    modify_opcode: int = Opcode.RESOURCE_OBJ_MODIFY
    """E01: the table's numbers; swap the two for the prose's."""
    in_addr_little_endian: bool = True
    """E23: an IPv4 address is an le32 number; False for bytes in network order."""

    resource_cap: Record[IpsecResourceCap] = ipsec.RESOURCE_CAP

    @property
    def error_flags(self) -> int:
        """Header flags of a received packet that IPsec processing refused (E53)."""
        return self.flag_security | self.flag_security_err

    def net_hdr(self, features: int) -> NetHdrCodec:
        """The codec of ``virtio_net_hdr`` for the negotiated features."""
        return self.header(features)

    @cached_property
    def tunnel_param(self) -> TunnelParamCodec:
        """The codec of the tunnel parameters."""
        ipv4_tail, ipv6_tail = self.tunnel_reserved
        return TunnelParamCodec(
            ipv4_tail=ipv4_tail, ipv6_tail=ipv6_tail, little_endian=self.in_addr_little_endian
        )

    @cached_property
    def sa(self) -> SaCodec:
        """The codec of the SA object, both directions."""
        return self.sa_form(self.tunnel_param)

    @cached_property
    def capabilities(self) -> Mapping[int, Codec[Any]]:
        """Codecs of the capabilities' data by capability id."""
        return MappingProxyType(
            {
                CapId.DEV_PARTS_CAP: device_parts.DEV_PARTS_CAP,
                CapId.NET_FF_RESOURCE_CAP: flow_filter.FF_RESOURCE_CAP,
                CapId.NET_FF_SELECTOR_CAP: flow_filter.FF_SELECTOR_CAP,
                CapId.NET_FF_ACTION_CAP: flow_filter.FF_ACTION_CAP,
                CapId.NET_IPSEC_RESOURCE_CAP: self.resource_cap,
                CapId.NET_IPSEC_SA_CAP: self.sa_cap,
            }
        )

    @cached_property
    def objects(self) -> Mapping[int, Codec[Any]]:
        """Codecs of the resource objects' specific data by object type."""
        return MappingProxyType(
            {
                ResourceType.DEV_PARTS: device_parts.DEV_PARTS_OBJECT,
                ResourceType.NET_FF_GROUP: flow_filter.FF_GROUP,
                ResourceType.NET_FF_CLASSIFIER: flow_filter.FF_CLASSIFIER,
                ResourceType.NET_FF_RULE: flow_filter.FF_RULE,
                ResourceType.NET_IPSEC_OUTB_SA: self.sa,
                ResourceType.NET_IPSEC_INB_SA: self.sa,
            }
        )


V14 = Dialect(
    name="virtio-1.4",
    mode_cap=ipsec.MODE_CAP,
    sa_cap=ipsec.SA_CAP,
    sa_form=ipsec.sa,
    tunnel_reserved=(1, 2),
    header=net_header.v14,
    known_features=_EVERY_FEATURE,
    selector_types=frozenset(SelectorType),
    ipsec_options=int(~IpsecOption(0)),
    flag_security=HdrFlag.SECURITY,
    flag_security_err=HdrFlag.SECURITY_ERR,
    flag_soft_expiry=HdrFlag.SECURITY_SA_SOFT_EXPIRY_WARN,
    flag_udp_tunnel_csum=HdrFlag.UDP_TUNNEL_CSUM,
    has_lifetime=True,
    has_initial_esn=False,
    sa_lookup_without_rule=False,
    tx_resource_type_required=False,
    supports_modify_query=True,
)
"""virtio v1.4-cs01."""

RFC_2025_01 = Dialect(
    name="rfc-2025-01",
    mode_cap=ipsec_rfc202501.MODE_CAP,
    sa_cap=ipsec_rfc202501.SA_CAP,
    sa_form=ipsec_rfc202501.sa,
    tunnel_reserved=(0, 0),
    header=net_header.rfc_202501,
    known_features=_EVERY_FEATURE
    & ~mask(
        Feature.NET_F_GUEST_UDP_TUNNEL_GSO,
        Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM,
        Feature.NET_F_HOST_UDP_TUNNEL_GSO,
        Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM,
        Feature.NET_F_OUT_NET_HEADER,
    ),
    selector_types=frozenset(SelectorType) - {SelectorType.ESP},
    ipsec_options=int(~(IpsecOption.ECN | IpsecOption.SA_LIFETIME)),
    flag_security=net_header.RfcFlag.SECURITY,
    flag_security_err=net_header.RfcFlag.SECURITY_ERR,
    flag_soft_expiry=0,
    flag_udp_tunnel_csum=0,
    has_lifetime=False,
    has_initial_esn=True,
    sa_lookup_without_rule=True,
    tx_resource_type_required=True,
    supports_modify_query=False,
)
"""The January-2025 RFC, as its slides show it; the header is 26 bytes packed (our choice)."""

DIALECTS: Mapping[str, Dialect] = MappingProxyType({each.name: each for each in (V14, RFC_2025_01)})
"""Dialects by the name that users type."""
