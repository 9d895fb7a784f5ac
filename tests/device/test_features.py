"""Feature dependencies over 128 bits (virtio v1.4 5.1.3.1, BAS-FEAT, NET-FEAT, E10, E12)."""

from __future__ import annotations

import re

import pytest

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.features import IMPLEMENTED, REQUIRES, acceptable, unmet
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.numbers import Feature, has, mask

V1 = mask(Feature.F_VERSION_1)

#: The table of the specification, typed in by hand as its words stand.
SPECIFICATION = """
GUEST_TSO4 GUEST_CSUM
GUEST_TSO6 GUEST_CSUM
GUEST_ECN GUEST_TSO4|GUEST_TSO6
GUEST_UFO GUEST_CSUM
GUEST_USO4 GUEST_CSUM
GUEST_USO6 GUEST_CSUM
GUEST_UDP_TUNNEL_GSO GUEST_TSO4 GUEST_TSO6 GUEST_USO4 GUEST_USO6
GUEST_UDP_TUNNEL_GSO_CSUM GUEST_UDP_TUNNEL_GSO
HOST_TSO4 CSUM
HOST_TSO6 CSUM
HOST_ECN HOST_TSO4|HOST_TSO6
HOST_UFO CSUM
HOST_USO CSUM
HOST_UDP_TUNNEL_GSO HOST_TSO4 HOST_TSO6 HOST_USO
HOST_UDP_TUNNEL_GSO_CSUM HOST_UDP_TUNNEL_GSO
CTRL_RX CTRL_VQ
CTRL_VLAN CTRL_VQ
GUEST_ANNOUNCE CTRL_VQ
MQ CTRL_VQ
CTRL_MAC_ADDR CTRL_VQ
NOTF_COAL CTRL_VQ
RSC_EXT HOST_TSO4|HOST_TSO6
RSS CTRL_VQ
VQ_NOTF_COAL CTRL_VQ
HASH_TUNNEL CTRL_VQ RSS|HASH_REPORT
RSS_CONTEXT CTRL_VQ RSS
"""


def test_the_table_is_that_of_the_specification() -> None:
    rows = [line.split() for line in SPECIFICATION.strip().splitlines()]
    expected = {
        Feature[f"NET_F_{name}"]: tuple(
            tuple(Feature[f"NET_F_{each}"] for each in group.split("|")) for group in groups
        )
        for name, *groups in rows
    }
    assert expected == REQUIRES


def test_ipsec_without_the_admin_queue_is_accepted() -> None:
    """E12: then only the header grows."""
    device = Device(DeviceConfig(), lambda n: bytes(n))
    device.negotiate(V1 | mask(Feature.NET_F_IPSEC))
    assert device.context.header.size == 32


def test_the_default_offer_is_closed_and_pairs_ipsec_with_outer_header() -> None:
    offered = DeviceConfig().offered_features
    assert not unmet(offered)
    assert has(offered, Feature.NET_F_IPSEC)
    assert has(offered, Feature.NET_F_OUT_NET_HEADER)
    assert has(offered, Feature.F_VERSION_1)
    assert offered == IMPLEMENTED


@pytest.mark.parametrize("feature", sorted(f for f in REQUIRES if has(IMPLEMENTED, f)))
def test_a_feature_without_what_it_needs_is_refused(feature: Feature) -> None:
    assert not acceptable(V1 | mask(feature), IMPLEMENTED)


@pytest.mark.parametrize("feature", [f for f in Feature if has(IMPLEMENTED, f) and f not in REQUIRES])
def test_a_feature_without_needs_is_accepted_alone(feature: Feature) -> None:
    assert acceptable(V1 | mask(feature), IMPLEMENTED)


@pytest.mark.parametrize("bit", [b for b in range(128) if not IMPLEMENTED >> b & 1])
def test_a_bit_that_is_not_offered_is_refused(bit: int) -> None:
    assert not acceptable(V1 | 1 << bit, IMPLEMENTED)


def test_version_1_is_required() -> None:
    assert not acceptable(0, IMPLEMENTED)
    assert acceptable(V1, IMPLEMENTED)


def test_one_of_two_alternatives_is_enough() -> None:
    word = V1 | mask(Feature.NET_F_CSUM, Feature.NET_F_HOST_TSO6, Feature.NET_F_HOST_ECN)
    assert acceptable(word, IMPLEMENTED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": V1 | mask(Feature.NET_F_MQ)}, "NET_F_MQ"),
        ({"features": 0}, "VERSION_1"),
        ({"features": V1 | 1 << 4}, "not implemented"),
        ({"features": V1 | mask(Feature.NET_F_RSS_CONTEXT)}, "not implemented"),
        ({"mac": bytes(5)}, "mac"),
        ({"mac": b"\x01\0\0\0\0\0"}, "mac"),
        ({"mtu": 67}, "mtu"),
        ({"mtu": 65536}, "mtu"),
        ({"max_queue_pairs": 0}, "max_queue_pairs"),
        ({"max_queue_pairs": 0x8001}, "max_queue_pairs"),
        ({"queue_size": 3}, "queue_size"),
        ({"queue_size": 0}, "queue_size"),
        ({"rss_max_key_size": 39}, "rss_max_key_size"),
        ({"rss_max_indirection_table_length": 127}, "rss_max_indirection"),
    ],
)
def test_a_configuration_that_no_device_may_have(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        DeviceConfig(**changes)  # type: ignore[arg-type]


def test_the_rfc_dialect_does_not_offer_what_it_does_not_know() -> None:
    offered = DeviceConfig(dialect=RFC_2025_01).offered_features
    assert not has(offered, Feature.NET_F_OUT_NET_HEADER)
    assert has(offered, Feature.NET_F_IPSEC)
    assert not unmet(offered)
