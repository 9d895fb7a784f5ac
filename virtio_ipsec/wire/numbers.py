"""Every constant that goes on the wire, as enums. Names are the specification's without ``VIRTIO_``.

Sources: virtio v1.4 2.1 (status), 2.12 (administration commands), 5.1 (network device), 5.9 (crypto device,
for the IPsec structures that the network device borrows), 6 (transport features). Where the text
contradicts itself the ledger id is named.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from virtio_ipsec.errors import AdminQualifier, AdminStatus

__all__ = [
    "AdminQualifier",
    "AdminStatus",
    "AeadAlgo",
    "CapId",
    "CipherAlgo",
    "CtrlAck",
    "CtrlAnnounce",
    "CtrlClass",
    "CtrlGuestOffloads",
    "CtrlMac",
    "CtrlMq",
    "CtrlRx",
    "CtrlVlan",
    "Direction",
    "Feature",
    "FfAction",
    "GroupType",
    "GsoType",
    "GuestOffload",
    "HashReport",
    "HashType",
    "HdrFlag",
    "IpsecMode",
    "IpsecOption",
    "MacAlgo",
    "NetStatus",
    "Opcode",
    "ResourceType",
    "SelectorFlag",
    "SelectorType",
    "Status",
    "TunnelType",
    "has",
    "mask",
]


class Status(IntFlag):
    """Device status field (virtio v1.4 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    SUSPEND = 16
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Feature(IntEnum):
    """Feature bit numbers (virtio v1.4 6 and 5.1.3). Bits 64 and above need feature words 2 and 3 (E10)."""

    NET_F_CSUM = 0
    NET_F_GUEST_CSUM = 1
    NET_F_CTRL_GUEST_OFFLOADS = 2
    NET_F_MTU = 3
    NET_F_MAC = 5
    NET_F_GUEST_TSO4 = 7
    NET_F_GUEST_TSO6 = 8
    NET_F_GUEST_ECN = 9
    NET_F_GUEST_UFO = 10
    NET_F_HOST_TSO4 = 11
    NET_F_HOST_TSO6 = 12
    NET_F_HOST_ECN = 13
    NET_F_HOST_UFO = 14
    NET_F_MRG_RXBUF = 15
    NET_F_STATUS = 16
    NET_F_CTRL_VQ = 17
    NET_F_CTRL_RX = 18
    NET_F_CTRL_VLAN = 19
    NET_F_CTRL_RX_EXTRA = 20
    NET_F_GUEST_ANNOUNCE = 21
    NET_F_MQ = 22
    NET_F_CTRL_MAC_ADDR = 23
    F_INDIRECT_DESC = 28
    F_EVENT_IDX = 29
    F_VERSION_1 = 32
    F_ACCESS_PLATFORM = 33
    F_RING_PACKED = 34
    F_IN_ORDER = 35
    F_ORDER_PLATFORM = 36
    F_SR_IOV = 37
    F_NOTIFICATION_DATA = 38
    F_NOTIF_CONFIG_DATA = 39
    F_RING_RESET = 40
    F_ADMIN_VQ = 41
    F_SUSPEND = 43
    NET_F_DEVICE_STATS = 50
    NET_F_HASH_TUNNEL = 51
    NET_F_VQ_NOTF_COAL = 52
    NET_F_NOTF_COAL = 53
    NET_F_GUEST_USO4 = 54
    NET_F_GUEST_USO6 = 55
    NET_F_HOST_USO = 56
    NET_F_HASH_REPORT = 57
    NET_F_GUEST_HDRLEN = 59
    NET_F_RSS = 60
    NET_F_RSC_EXT = 61
    NET_F_STANDBY = 62
    NET_F_SPEED_DUPLEX = 63
    NET_F_RSS_CONTEXT = 64
    NET_F_GUEST_UDP_TUNNEL_GSO = 65
    NET_F_GUEST_UDP_TUNNEL_GSO_CSUM = 66
    NET_F_HOST_UDP_TUNNEL_GSO = 67
    NET_F_HOST_UDP_TUNNEL_GSO_CSUM = 68
    NET_F_OUT_NET_HEADER = 69
    NET_F_IPSEC = 70


def mask(*features: Feature) -> int:
    """The feature word (any width) that holds exactly these bits."""
    word = 0
    for feature in features:
        word |= 1 << feature
    return word


def has(word: int, feature: Feature) -> bool:
    """Whether ``feature`` is set in the feature word."""
    return bool(word >> feature & 1)


class Opcode(IntEnum):
    """Administration command opcodes (virtio v1.4 2.12.1, table). QUERY and MODIFY: see E01."""

    LIST_QUERY = 0x0000
    LIST_USE = 0x0001
    LEGACY_COMMON_CFG_WRITE = 0x0002
    LEGACY_COMMON_CFG_READ = 0x0003
    LEGACY_DEV_CFG_WRITE = 0x0004
    LEGACY_DEV_CFG_READ = 0x0005
    LEGACY_NOTIFY_INFO = 0x0006
    CAP_ID_LIST_QUERY = 0x0007
    DEVICE_CAP_GET = 0x0008
    DRIVER_CAP_SET = 0x0009
    RESOURCE_OBJ_CREATE = 0x000A
    RESOURCE_OBJ_QUERY = 0x000B
    RESOURCE_OBJ_MODIFY = 0x000C
    RESOURCE_OBJ_DESTROY = 0x000D
    DEV_PARTS_METADATA_GET = 0x000E
    DEV_PARTS_GET = 0x000F
    DEV_PARTS_SET = 0x0010
    DEV_MODE_SET = 0x0011


class GroupType(IntEnum):
    """``group_type`` of an administration command."""

    SELF = 0
    SRIOV = 1


class CapId(IntEnum):
    """Capability ids: common (below 0x0800) and those of the network device (virtio v1.4 5.1.6)."""

    DEV_PARTS_CAP = 0x0000
    NET_FF_RESOURCE_CAP = 0x0800
    NET_FF_SELECTOR_CAP = 0x0801
    NET_FF_ACTION_CAP = 0x0802
    NET_IPSEC_RESOURCE_CAP = 0x0803
    NET_IPSEC_SA_CAP = 0x0804


class ResourceType(IntEnum):
    """Resource object types: generic (below 0x200) and those of the network device."""

    DEV_PARTS = 0x0000
    NET_FF_GROUP = 0x0200
    NET_FF_CLASSIFIER = 0x0201
    NET_FF_RULE = 0x0202
    NET_IPSEC_OUTB_SA = 0x0203
    NET_IPSEC_INB_SA = 0x0204


class IpsecMode(IntEnum):
    """``mode`` of a capability entry and of an SA; 0 is reserved."""

    ESP_TUNNEL = 1
    ESP_TRANSPORT = 2
    AH_TUNNEL = 3
    AH_TRANSPORT = 4


class Direction(IntEnum):
    """``direction`` of an SA; 0 is reserved."""

    OUTBOUND = 1
    INBOUND = 2


class IpsecOption(IntFlag):
    """``options`` of a capability entry (le32) and of an SA (le64, upper half zero: E21)."""

    ESN = 1
    UDP_ENCAP = 2
    COPY_DSCP = 4
    DEC_TTL = 8
    COPY_DF = 16
    ECN = 32
    SA_LIFETIME = 64


class TunnelType(IntEnum):
    """``type`` of the tunnel parameters; the text gives no values (E22)."""

    IPV4 = 1
    IPV6 = 2


class CipherAlgo(IntEnum):
    """Cipher ids: bit numbers in capability masks, values in an SA. ``DES3`` is the text's ``3DES``."""

    NO_CIPHER = 0
    ARC4 = 1
    AES_ECB = 2
    AES_CBC = 3
    AES_CTR = 4
    DES_ECB = 5
    DES_CBC = 6
    DES3_ECB = 7
    DES3_CBC = 8
    DES3_CTR = 9
    KASUMI_F8 = 10
    SNOW3G_UEA2 = 11
    AES_F8 = 12
    AES_XTS = 13
    ZUC_EEA3 = 14


class MacAlgo(IntEnum):
    """MAC ids: bit numbers in ``hmac_algo``, values in ``auth_algo``."""

    NO_MAC = 0
    HMAC_MD5 = 1
    HMAC_SHA1 = 2
    HMAC_SHA_224 = 3
    HMAC_SHA_256 = 4
    HMAC_SHA_384 = 5
    HMAC_SHA_512 = 6
    CMAC_3DES = 25
    CMAC_AES = 26
    KASUMI_F9 = 27
    SNOW3G_UIA2 = 28
    GMAC_AES = 41
    GMAC_TWOFISH = 42
    CBCMAC_AES = 49
    CBCMAC_KASUMI_F9 = 50
    XCBC_AES = 53
    ZUC_EIA3 = 54


class AeadAlgo(IntEnum):
    """AEAD ids: bit numbers in ``aead_algo``; in an SA they stand in ``cipher_algo`` (E28)."""

    NO_AEAD = 0
    GCM = 1
    CCM = 2
    CHACHA20_POLY1305 = 3


class HdrFlag(IntFlag):
    """``flags`` of ``virtio_net_hdr`` in v1.4; the RFC dialect moves SECURITY (see ``dialect.py``)."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4
    UDP_TUNNEL_CSUM = 8
    SECURITY = 16
    SECURITY_ERR = 32
    SECURITY_SA_SOFT_EXPIRY_WARN = 64


class GsoType(IntEnum):
    """``gso_type``: one of NONE..UDP_L4, to which the three last are OR-ed as flags."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5
    UDP_TUNNEL_IPV4 = 0x20
    UDP_TUNNEL_IPV6 = 0x40
    ECN = 0x80


class NetStatus(IntFlag):
    """``status`` in the device configuration."""

    S_LINK_UP = 1
    S_ANNOUNCE = 2


class HashType(IntFlag):
    """``hash_types`` masks (virtio v1.4 5.1.6.4.3.1)."""

    IPV4 = 1 << 0
    TCPV4 = 1 << 1
    UDPV4 = 1 << 2
    IPV6 = 1 << 3
    TCPV6 = 1 << 4
    UDPV6 = 1 << 5
    IP_EX = 1 << 6
    TCP_EX = 1 << 7
    UDP_EX = 1 << 8


class HashReport(IntEnum):
    """``hash_report`` of a received packet's header."""

    NONE = 0
    IPV4 = 1
    TCPV4 = 2
    UDPV4 = 3
    IPV6 = 4
    TCPV6 = 5
    UDPV6 = 6
    IPV6_EX = 7
    TCPV6_EX = 8
    UDPV6_EX = 9


class SelectorType(IntEnum):
    """Flow-filter selector types; 0 and 7-0xff are reserved."""

    ETH = 1
    IPV4 = 2
    IPV6 = 3
    TCP = 4
    UDP = 5
    ESP = 6


class SelectorFlag(IntFlag):
    """``flags`` of a selector (E75: here, not in the command's flags)."""

    PARTIAL_MASK = 1


class FfAction(IntEnum):
    """``action`` of a flow-filter rule; 0 and 5-0xff are reserved."""

    DROP = 1
    DIRECT_RX_VQ = 2
    IPSEC = 3
    IPSEC_RECIRCULATE = 4


class CtrlAck(IntEnum):
    """``ack`` of a control-queue command."""

    OK = 0
    ERR = 1


class CtrlClass(IntEnum):
    """``class`` of a control-queue command."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5
    NOTF_COAL = 6
    HASH_TUNNEL = 7
    STATS = 8


class CtrlRx(IntEnum):
    """Commands of ``CtrlClass.RX``: one byte of data, 0 or 1."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


class CtrlMac(IntEnum):
    """Commands of ``CtrlClass.MAC``."""

    TABLE_SET = 0
    ADDR_SET = 1


class CtrlVlan(IntEnum):
    """Commands of ``CtrlClass.VLAN``: le16 VLAN id."""

    ADD = 0
    DEL = 1


class CtrlAnnounce(IntEnum):
    """Commands of ``CtrlClass.ANNOUNCE``: no data."""

    ACK = 0


class CtrlMq(IntEnum):
    """Commands of ``CtrlClass.MQ``."""

    VQ_PAIRS_SET = 0
    RSS_CONFIG = 1
    HASH_CONFIG = 2


class CtrlGuestOffloads(IntEnum):
    """Commands of ``CtrlClass.GUEST_OFFLOADS``: le64 mask of offloads."""

    SET = 0


class GuestOffload(IntEnum):
    """Bit numbers of the ``offloads`` mask of GUEST_OFFLOADS_SET; two differ from their feature bits."""

    GUEST_CSUM = 1
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    GUEST_UFO = 10
    GUEST_UDP_TUNNEL_GSO = 46
    GUEST_UDP_TUNNEL_GSO_CSUM = 47
    GUEST_USO4 = 54
    GUEST_USO6 = 55
