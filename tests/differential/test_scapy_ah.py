"""AH against scapy: the same packets octet for octet, and each accepts what the other signed."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers import ipsec as scapy_ipsec
from scapy.layers.inet import IP, UDP, IPOption_LSRR, IPOption_Router_Alert, IPOption_Timestamp
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.ipsec import AH, AUTH_ALGOS, CRYPT_ALGOS, IPSecIntegrityError
from scapy.packet import Packet, Raw

from virtio_ipsec.crypto.algorithms import SUITES, Protocol, Suite
from virtio_ipsec.ipsec.process import inbound, outbound
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

KNOWN_FAULTS = {
    "algorithms": "no AES-XCBC-96 and no AES-GMAC for AH: test_raw_esp.py is the witness",
    "source route": "takes the next hop of an IPv4 source route for the destination; RFC 4302 3.3.3.1.1.2 the last",
    "partly used route": "rotates a whole IPv6 routing header whatever its segments left are",
    "destination options": "keeps options for the final destination in front of AH; RFC 4302 3.1.1 leaves the choice",
}

SECURITY_ASSOCIATION: Any = scapy_ipsec.SecurityAssociation  # scapy has no types here
SPI = 0xC0DEC0DE
MACS = {"hmac-sha1-96": "HMAC-SHA1-96", "hmac-sha2-256-128": "SHA2-256-128", "aes-cmac-96": "AES-CMAC-96"}
SUITES_AH = [pytest.param(s, id=s.name) for s in SUITES if s.protocol is Protocol.AH and s.name in MACS]
SHA256 = next(s for s in SUITES if s.protocol is Protocol.AH and s.name == "hmac-sha2-256-128")
TUNNELS: dict[int, tuple[Any, Packet]] = {
    4: (TunnelIPv4, IP(src="192.0.2.1", dst="198.51.100.2")),
    6: (TunnelIPv6, IPv6(src="2001:db8:a::1", dst="2001:db8:b::2")),
}
DATA = UDP(sport=7, dport=9, chksum=0x1234) / Raw(b"x" * 37)
IP4: dict[str, Any] = {"src": "10.1.0.1", "dst": "10.2.0.2", "id": 77, "ttl": 33, "tos": 0xB9}
IP6: dict[str, Any] = {"src": "2001:db8:1::1", "dst": "2001:db8:2::2", "hlim": 33, "tc": 0xB9, "fl": 0xABCDE}
CHANGING = HBHOptUnknown(otype=0x3E, optdata=b"\1\2\3\4")
PACKETS = {
    "ipv4": IP(**IP4) / DATA,
    "ipv4 df": IP(**IP4, flags="DF") / DATA,
    "ipv4 options": IP(**IP4, options=[IPOption_Router_Alert(), IPOption_Timestamp(timestamp=7)]) / DATA,
    "ipv6": IPv6(**IP6) / DATA,
    "ipv6 hop-by-hop": IPv6(**IP6) / IPv6ExtHdrHopByHop(options=[RouterAlert(), CHANGING.copy()]) / DATA,
    "ipv6 routing": IPv6(**IP6)
    / IPv6ExtHdrDestOpt(options=[CHANGING.copy()])
    / IPv6ExtHdrRouting(addresses=["2001:db8::3", "2001:db8::4"], segleft=2)
    / DATA,
    "ipv6 options behind": IPv6(**IP6)
    / IPv6ExtHdrRouting(addresses=["2001:db8::3"], segleft=1)
    / IPv6ExtHdrDestOpt(options=[CHANGING.copy()])
    / DATA,
}
ESN = IpsecOption.ESN
SEQUENCES = {0: 9, ESN: (5 << 32) + 9}


def ours(suite: Suite, mode: IpsecMode, direction: Direction, options: int, outer: int) -> SaParams:
    make, header = TUNNELS[outer]
    sa = IpsecSa(
        mode=mode,
        direction=direction,
        spi=SPI,
        options=options,
        param=make(ip_address(header.src), ip_address(header.dst)),
        replay_win_sz=64,
        auth_algo=suite.auth_algo,
        auth_key=bytes(range(max(suite.auth_key_lens))),
        esn=SEQUENCES[options & ESN],
    )
    return SaParams.from_wire(sa, RFC_2025_01)


def theirs(suite: Suite, mode: IpsecMode, options: int, outer: int) -> Any:
    return SECURITY_ASSOCIATION(
        AH,
        spi=SPI,
        auth_algo=MACS[suite.name],
        auth_key=bytes(range(max(suite.auth_key_lens))),
        tunnel_header=TUNNELS[outer][1].copy() if mode is IpsecMode.AH_TUNNEL else None,
        esn_en=bool(options & ESN),
        esn=5,
    )


def parsed(packet: bytes) -> Packet:
    return (IP if packet[0] >> 4 == 4 else IPv6)(packet)


def arrived(packet: bytes) -> bytes:
    """A packet as its final destination gets it: the routing header used up."""
    whole = parsed(packet)
    if IPv6ExtHdrRouting in whole:
        header = whole[IPv6ExtHdrRouting]
        stops = [whole.dst, *header.addresses]
        if header.segleft:
            whole.dst, header.addresses, header.segleft = stops[-1], stops[:-1], 0
    return bytes(whole)


@pytest.mark.parametrize("mode", [IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT])
@pytest.mark.parametrize("options", [0, ESN], ids=["plain", "esn"])
@pytest.mark.parametrize("suite", SUITES_AH)
@pytest.mark.parametrize("name", list(PACKETS))
def test_both_sign_the_same_packet_and_accept_each_other(
    name: str, suite: Suite, options: int, mode: IpsecMode
) -> None:
    packet = bytes(PACKETS[name])
    tunnel = mode is IpsecMode.AH_TUNNEL
    for outer in (4, 6) if tunnel else (packet[0] >> 4,):
        peer = theirs(suite, mode, options, outer)
        sender = OutboundSa(ours(suite, mode, Direction.OUTBOUND, options, outer), lambda n: bytes(n))
        receiver = InboundSa(ours(suite, mode, Direction.INBOUND, options, outer))
        if tunnel and outer == 4:
            peer.tunnel_header.id = 9  # ours follows the sequence number
        mine, signed = outbound(sender, packet), bytes(peer.encrypt(parsed(packet), seq_num=9))
        assert mine == signed
        delivered = packet
        if not tunnel:
            mine, signed, delivered = arrived(mine), arrived(signed), arrived(packet)
        assert bytes(peer.decrypt(parsed(mine))) == delivered
        assert inbound(receiver, signed).packet == delivered


# --- what scapy does differently, shown ------------------------------------------------------------------------

TRANSPORT = IpsecMode.AH_TRANSPORT


def test_every_fault_is_shown() -> None:
    shown = {
        name.removeprefix("test_fault_").replace("_", " ") for name in globals() if "test_fault_" in name
    }
    assert shown == set(KNOWN_FAULTS)


def test_fault_algorithms() -> None:
    assert not [name for name in AUTH_ALGOS if "XCBC" in name or "GMAC" in name]
    assert "AES-NULL-GMAC" in CRYPT_ALGOS  # for ESP alone


def disagreement(packet: Packet) -> tuple[bytes, bytes]:
    family = packet.version
    sender = OutboundSa(ours(SHA256, TRANSPORT, Direction.OUTBOUND, 0, family), lambda n: bytes(n))
    peer = theirs(SHA256, TRANSPORT, 0, family)
    mine, signed = outbound(sender, bytes(packet)), bytes(peer.encrypt(parsed(bytes(packet)), seq_num=9))
    assert mine != signed
    return mine, signed


def test_fault_source_route() -> None:
    route = IPOption_LSRR(routers=["10.9.0.1", "10.9.0.2"], pointer=4)
    mine, _ = disagreement(IP(**IP4, options=[route]) / DATA)
    at_the_end = parsed(mine)
    at_the_end.dst = "10.9.0.2"
    at_the_end.options[0].pointer = 12
    del at_the_end.chksum
    receiver = InboundSa(ours(SHA256, TRANSPORT, Direction.INBOUND, 0, 4))
    assert inbound(receiver, bytes(at_the_end)).packet[-len(DATA) :] == bytes(PACKETS["ipv4"])[-len(DATA) :]
    with pytest.raises(IPSecIntegrityError):
        theirs(SHA256, TRANSPORT, 0, 4).decrypt(parsed(mine))


def test_fault_partly_used_route() -> None:
    header = IPv6ExtHdrRouting(addresses=["2001:db8::3", "2001:db8::4", "2001:db8::5"], segleft=1)
    mine, signed = disagreement(IPv6(**IP6) / header / DATA)
    receiver = InboundSa(ours(SHA256, TRANSPORT, Direction.INBOUND, 0, 6))
    last_hop = parsed(mine)
    last_hop.dst = "2001:db8::5"
    last_hop[IPv6ExtHdrRouting].addresses = ["2001:db8::3", "2001:db8::4", IP6["dst"]]
    last_hop[IPv6ExtHdrRouting].segleft = 0
    assert inbound(receiver, bytes(last_hop)).sequence == 9
    assert signed[24:] != mine[24:]


def test_fault_destination_options() -> None:
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")])
    packet = IPv6(**IP6) / options / DATA
    mine, signed = disagreement(packet)
    assert (mine[6], signed[6]) == (51, 60)
    assert bytes(theirs(SHA256, TRANSPORT, 0, 6).decrypt(parsed(mine))) == bytes(packet)
    receiver = InboundSa(ours(SHA256, TRANSPORT, Direction.INBOUND, 0, 6))
    assert inbound(receiver, signed).packet == bytes(packet)
