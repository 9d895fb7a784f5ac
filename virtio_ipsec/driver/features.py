"""Which features the driver accepts (virtio v1.4 2.2.1, 5.1.3.1): known, offered, and with what they need."""

from __future__ import annotations

from collections.abc import Mapping

from virtio_ipsec.driver.link import TRANSPORT_BITS
from virtio_ipsec.wire.numbers import Feature, has, mask

#: feature -> groups of alternatives; one of each group must be accepted too (BAS-FEAT-02).
#: The last block is not in the text: without the feature on the right the one on the left does nothing.
REQUIRES: Mapping[Feature, tuple[tuple[Feature, ...], ...]] = {
    Feature.NET_F_GUEST_TSO4: ((Feature.NET_F_GUEST_CSUM,),),
    Feature.NET_F_GUEST_TSO6: ((Feature.NET_F_GUEST_CSUM,),),
    Feature.NET_F_GUEST_ECN: ((Feature.NET_F_GUEST_TSO4, Feature.NET_F_GUEST_TSO6),),
    Feature.NET_F_GUEST_UFO: ((Feature.NET_F_GUEST_CSUM,),),
    Feature.NET_F_GUEST_USO4: ((Feature.NET_F_GUEST_CSUM,),),
    Feature.NET_F_GUEST_USO6: ((Feature.NET_F_GUEST_CSUM,),),
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO: (
        (Feature.NET_F_GUEST_TSO4,),
        (Feature.NET_F_GUEST_TSO6,),
        (Feature.NET_F_GUEST_USO4,),
        (Feature.NET_F_GUEST_USO6,),
    ),
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM: ((Feature.NET_F_GUEST_UDP_TUNNEL_GSO,),),
    Feature.NET_F_HOST_TSO4: ((Feature.NET_F_CSUM,),),
    Feature.NET_F_HOST_TSO6: ((Feature.NET_F_CSUM,),),
    Feature.NET_F_HOST_ECN: ((Feature.NET_F_HOST_TSO4, Feature.NET_F_HOST_TSO6),),
    Feature.NET_F_HOST_UFO: ((Feature.NET_F_CSUM,),),
    Feature.NET_F_HOST_USO: ((Feature.NET_F_CSUM,),),
    Feature.NET_F_HOST_UDP_TUNNEL_GSO: (
        (Feature.NET_F_HOST_TSO4,),
        (Feature.NET_F_HOST_TSO6,),
        (Feature.NET_F_HOST_USO,),
    ),
    Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM: ((Feature.NET_F_HOST_UDP_TUNNEL_GSO,),),
    Feature.NET_F_CTRL_RX: ((Feature.NET_F_CTRL_VQ,),),
    Feature.NET_F_CTRL_VLAN: ((Feature.NET_F_CTRL_VQ,),),
    Feature.NET_F_MQ: ((Feature.NET_F_CTRL_VQ,),),
    Feature.NET_F_CTRL_MAC_ADDR: ((Feature.NET_F_CTRL_VQ,),),
    Feature.NET_F_RSS: ((Feature.NET_F_CTRL_VQ,),),
    Feature.NET_F_CTRL_RX_EXTRA: ((Feature.NET_F_CTRL_VQ,),),
    Feature.NET_F_CTRL_GUEST_OFFLOADS: ((Feature.NET_F_CTRL_VQ,),),
    Feature.NET_F_HASH_REPORT: ((Feature.NET_F_CTRL_VQ,),),
    Feature.NET_F_IPSEC: ((Feature.F_ADMIN_VQ,),),  # E12: bit 70 without an admin queue only grows the header
}

#: Everything this driver knows how to use. Others are ignored, whoever offers them (BAS-FEAT-04, -06).
SUPPORTED = mask(
    Feature.F_INDIRECT_DESC,
    Feature.F_EVENT_IDX,
    Feature.F_VERSION_1,
    Feature.F_ACCESS_PLATFORM,
    Feature.F_RING_PACKED,
    Feature.F_IN_ORDER,
    Feature.F_ORDER_PLATFORM,
    Feature.F_SR_IOV,
    Feature.F_NOTIFICATION_DATA,
    Feature.F_NOTIF_CONFIG_DATA,
    Feature.F_RING_RESET,
    Feature.F_ADMIN_VQ,
    Feature.NET_F_CSUM,
    Feature.NET_F_GUEST_CSUM,
    Feature.NET_F_CTRL_GUEST_OFFLOADS,
    Feature.NET_F_MTU,
    Feature.NET_F_MAC,
    Feature.NET_F_GUEST_TSO4,
    Feature.NET_F_GUEST_TSO6,
    Feature.NET_F_GUEST_ECN,
    Feature.NET_F_HOST_TSO4,
    Feature.NET_F_HOST_TSO6,
    Feature.NET_F_HOST_ECN,
    Feature.NET_F_MRG_RXBUF,
    Feature.NET_F_STATUS,
    Feature.NET_F_CTRL_VQ,
    Feature.NET_F_CTRL_RX,
    Feature.NET_F_CTRL_VLAN,
    Feature.NET_F_CTRL_RX_EXTRA,
    Feature.NET_F_MQ,
    Feature.NET_F_CTRL_MAC_ADDR,
    Feature.NET_F_GUEST_USO4,
    Feature.NET_F_GUEST_USO6,
    Feature.NET_F_HOST_USO,
    Feature.NET_F_HASH_REPORT,
    Feature.NET_F_GUEST_HDRLEN,
    Feature.NET_F_RSS,
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO,
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM,
    Feature.NET_F_HOST_UDP_TUNNEL_GSO,
    Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM,
    Feature.NET_F_OUT_NET_HEADER,
    Feature.NET_F_IPSEC,
)

#: What is tried when the device refuses the full selection: enough for packets, IPsec and its own queues.
ESSENTIAL = mask(
    Feature.F_VERSION_1,
    Feature.F_ACCESS_PLATFORM,
    Feature.F_ORDER_PLATFORM,
    Feature.F_RING_PACKED,
    Feature.F_ADMIN_VQ,
    Feature.NET_F_MAC,
    Feature.NET_F_MTU,
    Feature.NET_F_OUT_NET_HEADER,
    Feature.NET_F_IPSEC,
)

GUEST_GSO = mask(
    Feature.NET_F_GUEST_TSO4,
    Feature.NET_F_GUEST_TSO6,
    Feature.NET_F_GUEST_UFO,
    Feature.NET_F_GUEST_USO4,
    Feature.NET_F_GUEST_USO6,
)


def select(offered: int, wanted: int, transport: int, defined: int) -> int:
    """The features to accept: offered, wanted, known to this driver, carried by the transport, ``defined`` by
    the dialect, and with everything they require. F_VERSION_1 is always wanted (BAS-RSVD-01)."""
    allowed = SUPPORTED & defined & ~(TRANSPORT_BITS & ~transport)
    word = offered & (wanted | mask(Feature.F_VERSION_1)) & allowed
    while True:
        unmet = mask(
            *(
                feature
                for feature, groups in REQUIRES.items()
                if has(word, feature) and not all(any(has(word, one) for one in group) for group in groups)
            )
        )
        if not unmet:
            return word
        word &= ~unmet


def names(word: int) -> str:
    """Feature names in ``word``, for messages."""
    found = [feature.name for feature in Feature if has(word, feature)]
    known = mask(*Feature)
    found += [f"bit {bit}" for bit in range(word.bit_length()) if (word & ~known) >> bit & 1]
    return ", ".join(found) or "none"
