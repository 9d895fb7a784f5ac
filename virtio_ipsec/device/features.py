"""Which feature words are valid: the dependency table of virtio v1.4 5.1.3.1 over 128-bit integers."""

from __future__ import annotations

from typing import Final

from virtio_ipsec.wire.numbers import Feature, has, mask

#: Number of feature bits that the registers of this device show (ledger E10).
FEATURE_BITS: Final = 128

_F = Feature

#: For each feature the features it needs: every group must be met, by any one of its members.
#: IPSEC has no entry: by the text it needs nothing, not even ADMIN_VQ (ledger E12).
REQUIRES: Final[dict[Feature, tuple[tuple[Feature, ...], ...]]] = {
    _F.NET_F_GUEST_TSO4: ((_F.NET_F_GUEST_CSUM,),),
    _F.NET_F_GUEST_TSO6: ((_F.NET_F_GUEST_CSUM,),),
    _F.NET_F_GUEST_ECN: ((_F.NET_F_GUEST_TSO4, _F.NET_F_GUEST_TSO6),),
    _F.NET_F_GUEST_UFO: ((_F.NET_F_GUEST_CSUM,),),
    _F.NET_F_GUEST_USO4: ((_F.NET_F_GUEST_CSUM,),),
    _F.NET_F_GUEST_USO6: ((_F.NET_F_GUEST_CSUM,),),
    _F.NET_F_GUEST_UDP_TUNNEL_GSO: (
        (_F.NET_F_GUEST_TSO4,),
        (_F.NET_F_GUEST_TSO6,),
        (_F.NET_F_GUEST_USO4,),
        (_F.NET_F_GUEST_USO6,),
    ),
    _F.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM: ((_F.NET_F_GUEST_UDP_TUNNEL_GSO,),),
    _F.NET_F_HOST_TSO4: ((_F.NET_F_CSUM,),),
    _F.NET_F_HOST_TSO6: ((_F.NET_F_CSUM,),),
    _F.NET_F_HOST_ECN: ((_F.NET_F_HOST_TSO4, _F.NET_F_HOST_TSO6),),
    _F.NET_F_HOST_UFO: ((_F.NET_F_CSUM,),),
    _F.NET_F_HOST_USO: ((_F.NET_F_CSUM,),),
    _F.NET_F_HOST_UDP_TUNNEL_GSO: (
        (_F.NET_F_HOST_TSO4,),
        (_F.NET_F_HOST_TSO6,),
        (_F.NET_F_HOST_USO,),
    ),
    _F.NET_F_HOST_UDP_TUNNEL_GSO_CSUM: ((_F.NET_F_HOST_UDP_TUNNEL_GSO,),),
    _F.NET_F_CTRL_RX: ((_F.NET_F_CTRL_VQ,),),
    _F.NET_F_CTRL_VLAN: ((_F.NET_F_CTRL_VQ,),),
    _F.NET_F_GUEST_ANNOUNCE: ((_F.NET_F_CTRL_VQ,),),
    _F.NET_F_MQ: ((_F.NET_F_CTRL_VQ,),),
    _F.NET_F_CTRL_MAC_ADDR: ((_F.NET_F_CTRL_VQ,),),
    _F.NET_F_NOTF_COAL: ((_F.NET_F_CTRL_VQ,),),
    _F.NET_F_RSC_EXT: ((_F.NET_F_HOST_TSO4, _F.NET_F_HOST_TSO6),),
    _F.NET_F_RSS: ((_F.NET_F_CTRL_VQ,),),
    _F.NET_F_VQ_NOTF_COAL: ((_F.NET_F_CTRL_VQ,),),
    _F.NET_F_HASH_TUNNEL: ((_F.NET_F_CTRL_VQ,), (_F.NET_F_RSS, _F.NET_F_HASH_REPORT)),
    _F.NET_F_RSS_CONTEXT: ((_F.NET_F_CTRL_VQ,), (_F.NET_F_RSS,)),
}

#: Everything that this device does when it is accepted (BAS-FEAT-09: nothing else may be offered).
IMPLEMENTED: Final = mask(
    _F.F_INDIRECT_DESC,
    _F.F_EVENT_IDX,
    _F.F_VERSION_1,
    _F.F_RING_PACKED,
    _F.F_IN_ORDER,
    _F.F_RING_RESET,
    _F.F_ADMIN_VQ,
    _F.NET_F_CSUM,
    _F.NET_F_GUEST_CSUM,
    _F.NET_F_CTRL_GUEST_OFFLOADS,
    _F.NET_F_MTU,
    _F.NET_F_MAC,
    _F.NET_F_GUEST_TSO4,
    _F.NET_F_GUEST_TSO6,
    _F.NET_F_GUEST_ECN,
    _F.NET_F_HOST_TSO4,
    _F.NET_F_HOST_TSO6,
    _F.NET_F_HOST_ECN,
    _F.NET_F_HOST_UFO,
    _F.NET_F_MRG_RXBUF,
    _F.NET_F_STATUS,
    _F.NET_F_CTRL_VQ,
    _F.NET_F_CTRL_RX,
    _F.NET_F_CTRL_VLAN,
    _F.NET_F_CTRL_RX_EXTRA,
    _F.NET_F_GUEST_ANNOUNCE,
    _F.NET_F_MQ,
    _F.NET_F_CTRL_MAC_ADDR,
    _F.NET_F_GUEST_USO4,
    _F.NET_F_GUEST_USO6,
    _F.NET_F_HOST_USO,
    _F.NET_F_HASH_REPORT,
    _F.NET_F_GUEST_HDRLEN,
    _F.NET_F_RSS,
    _F.NET_F_SPEED_DUPLEX,
    _F.NET_F_HOST_UDP_TUNNEL_GSO,
    _F.NET_F_HOST_UDP_TUNNEL_GSO_CSUM,
    _F.NET_F_OUT_NET_HEADER,
    _F.NET_F_IPSEC,
)


def unmet(word: int) -> tuple[Feature, ...]:
    """Features of ``word`` whose needs ``word`` does not meet."""
    return tuple(
        feature
        for feature, groups in REQUIRES.items()
        if has(word, feature) and not all(any(has(word, f) for f in group) for group in groups)
    )


def acceptable(word: int, offered: int) -> bool:
    """Whether FEATURES_OK may be set: subset of the offer, closed, VERSION_1 (BAS-FEAT-08, BAS-RSVD-07)."""
    return word & ~offered == 0 and has(word, Feature.F_VERSION_1) and not unmet(word)
