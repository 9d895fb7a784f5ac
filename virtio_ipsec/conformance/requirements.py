"""Which network features require which others, as the specification lists them (virtio v1.4 5.1.3.1)."""

from __future__ import annotations

from collections.abc import Mapping

from virtio_ipsec.wire.numbers import Feature, has

_CTRL = ((Feature.NET_F_CTRL_VQ,),)
_CSUM = ((Feature.NET_F_CSUM,),)
_GUEST_CSUM = ((Feature.NET_F_GUEST_CSUM,),)

#: feature -> groups; of every group one member is required. IPSEC requires nothing (ledger E12).
REQUIREMENTS: Mapping[Feature, tuple[tuple[Feature, ...], ...]] = {
    Feature.NET_F_GUEST_TSO4: _GUEST_CSUM,
    Feature.NET_F_GUEST_TSO6: _GUEST_CSUM,
    Feature.NET_F_GUEST_ECN: ((Feature.NET_F_GUEST_TSO4, Feature.NET_F_GUEST_TSO6),),
    Feature.NET_F_GUEST_UFO: _GUEST_CSUM,
    Feature.NET_F_GUEST_USO4: _GUEST_CSUM,
    Feature.NET_F_GUEST_USO6: _GUEST_CSUM,
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO: (
        (Feature.NET_F_GUEST_TSO4,),
        (Feature.NET_F_GUEST_TSO6,),
        (Feature.NET_F_GUEST_USO4,),
        (Feature.NET_F_GUEST_USO6,),
    ),
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM: ((Feature.NET_F_GUEST_UDP_TUNNEL_GSO,),),
    Feature.NET_F_HOST_TSO4: _CSUM,
    Feature.NET_F_HOST_TSO6: _CSUM,
    Feature.NET_F_HOST_ECN: ((Feature.NET_F_HOST_TSO4, Feature.NET_F_HOST_TSO6),),
    Feature.NET_F_HOST_UFO: _CSUM,
    Feature.NET_F_HOST_USO: _CSUM,
    Feature.NET_F_HOST_UDP_TUNNEL_GSO: (
        (Feature.NET_F_HOST_TSO4,),
        (Feature.NET_F_HOST_TSO6,),
        (Feature.NET_F_HOST_USO,),
    ),
    Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM: ((Feature.NET_F_HOST_UDP_TUNNEL_GSO,),),
    Feature.NET_F_CTRL_RX: _CTRL,
    Feature.NET_F_CTRL_VLAN: _CTRL,
    Feature.NET_F_GUEST_ANNOUNCE: _CTRL,
    Feature.NET_F_MQ: _CTRL,
    Feature.NET_F_CTRL_MAC_ADDR: _CTRL,
    Feature.NET_F_NOTF_COAL: _CTRL,
    Feature.NET_F_RSC_EXT: ((Feature.NET_F_HOST_TSO4, Feature.NET_F_HOST_TSO6),),
    Feature.NET_F_RSS: _CTRL,
    Feature.NET_F_VQ_NOTF_COAL: _CTRL,
    Feature.NET_F_HASH_TUNNEL: (*_CTRL, (Feature.NET_F_RSS, Feature.NET_F_HASH_REPORT)),
    Feature.NET_F_RSS_CONTEXT: (*_CTRL, (Feature.NET_F_RSS,)),
}


def unmet(word: int) -> list[Feature]:
    """The features of ``word`` that lack something they require."""
    return [
        feature
        for feature, groups in REQUIREMENTS.items()
        if has(word, feature) and not all(any(has(word, one) for one in group) for group in groups)
    ]


def closure(feature: Feature, offered: int) -> int:
    """``feature`` with what it requires, chosen among ``offered``; 0 when that cannot be."""
    word = 1 << feature
    for group in REQUIREMENTS.get(feature, ()):
        choices = [closure(one, offered) for one in group if has(offered, one)]
        if not any(choices):
            return 0
        word |= next(choice for choice in choices if choice)
    return word
