"""The suite's own hash against published results, and against what the specification says is hashed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from rss_vectors import KEY, V4, V6

from virtio_ipsec.conformance.frames import TCP, UDP
from virtio_ipsec.conformance.hashing import OTHER, Flow, toeplitz
from virtio_ipsec.wire.numbers import HashReport, HashType


@pytest.mark.parametrize("vector", [*V4, *V6], ids=lambda vector: vector[0])
def test_published_results(vector: tuple[str, int, str, int, int, int]) -> None:
    source, sport, target, dport, addresses, ports = vector
    ends = ip_address(source).packed + ip_address(target).packed
    assert toeplitz(KEY, ends) == addresses
    assert toeplitz(KEY, ends + sport.to_bytes(2) + dport.to_bytes(2)) == ports
    version = ip_address(source).version
    flow = Flow(version, TCP, ends[: len(ends) // 2], ends[len(ends) // 2 :], bytes(4))
    every = sum(HashType)
    report = HashReport.TCPV4 if version == 4 else HashReport.TCPV6
    assert flow.hashed(every, KEY)[1] == report
    assert flow.hashed(every & ~(HashType.TCPV4 | HashType.TCPV6), KEY)[0] == addresses
    assert flow.hashed(0, KEY) == (0, HashReport.NONE)


def test_what_counts_of_extension_headers() -> None:
    plain = Flow(6, UDP, bytes(16), bytes(15) + b"\1", b"\1\2\3\4", extended=True)
    mobile = replace(plain, home=b"\2" * 16, way=b"\3" * 16)
    ends = mobile.home + mobile.way
    assert mobile.hashed(HashType.UDP_EX, KEY) == (toeplitz(KEY, ends + plain.ports), HashReport.UDPV6_EX)
    assert mobile.hashed(HashType.IP_EX, KEY) == (toeplitz(KEY, ends), HashReport.IPV6_EX)
    ends = plain.source + plain.target
    assert mobile.hashed(HashType.UDPV6, KEY) == (toeplitz(KEY, ends + plain.ports), HashReport.UDPV6)
    assert replace(plain, protocol=OTHER, ports=b"").hashed(HashType.UDP_EX, KEY) == (0, HashReport.NONE)
