"""ESP against scapy: the same octets from the same IV, and each opens what the other sealed.

Scapy is a witness only where it is right. KNOWN_FAULTS names what it does differently and why we do not follow;
each entry has a test here that shows the fault, so that an entry which scapy repairs is noticed.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers import ipsec as scapy_ipsec
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN
from scapy.layers.ipsec import AUTH_ALGOS, ESP
from scapy.packet import Packet, Raw

from virtio_ipsec.crypto.algorithms import SUITES, Protocol, Suite
from virtio_ipsec.ipsec.process import find_spi, inbound, outbound
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa, SaParams
from virtio_ipsec.wire.dialect import RFC_2025_01
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

KNOWN_FAULTS = {
    "xcbc": "no AES-XCBC-96: test_raw_esp.py is the witness",
    "short icv": "crypt_icv_size does not reach GCM: 8-octet ICVs come out as 16 (not expressible here either, E30)",
    "udp checksum": "UDP over IPv6 is sent with checksum 0; RFC 8200 8.1 wants one computed",
    "udp and extensions": "opening UDP-encapsulated transport mode over IPv6 loses the extension headers",
    "destination options": "keeps options for the final destination in front of ESP; RFC 4303 3.1.1 advises behind",
    "replay": "no replay window: what was opened once is opened again",
}

SECURITY_ASSOCIATION: Any = scapy_ipsec.SecurityAssociation  # scapy has no types here
SPI = 0xC0DEC0DE
SALT = b"\x0a\x0b\x0c\x0d"
CIPHERS = {
    "aes-gcm-16": "AES-GCM",
    "aes-ccm-16": "AES-CCM",
    "chacha20-poly1305": "CHACHA20-POLY1305",
    "aes-gmac": "AES-NULL-GMAC",
    "aes-cbc": "AES-CBC",
    "aes-ctr": "AES-CTR",
    "null": "NULL",
}
MACS = {"hmac-sha1-96": "HMAC-SHA1-96", "hmac-sha2-256-128": "SHA2-256-128", "aes-cmac-96": "AES-CMAC-96"}
TUNNELS = {
    4: (TunnelIPv4, IP(src="192.0.2.1", dst="198.51.100.2")),
    6: (TunnelIPv6, IPv6(src="2001:db8:a::1", dst="2001:db8:b::2")),
}
INNER = {
    4: IP(src="10.1.0.1", dst="10.2.0.2", id=77, ttl=33) / UDP(sport=7, dport=9) / Raw(b"x" * 37),
    6: IPv6(src="2001:db8:1::1", dst="2001:db8:2::2", hlim=33) / UDP(sport=7, dport=9) / Raw(b"y" * 38),
}
SEQUENCES = {0: 9, IpsecOption.ESN: (5 << 32) + 9}
ESN, ENCAP = IpsecOption.ESN, IpsecOption.UDP_ENCAP


def cases() -> list[Any]:
    made = []
    for suite in SUITES:
        if suite.protocol is Protocol.ESP and not suite.name.endswith("aes-xcbc-96"):
            lengths = suite.auth_key_lens if suite.name == "aes-gmac" else suite.cipher_key_lens
            made += [pytest.param(suite, n, id=f"{suite.name}-{n}") for n in sorted(lengths)]
    return made


def keys(suite: Suite, length: int) -> tuple[bytes, bytes]:
    """(cipher key, authentication key)."""
    if suite.name == "aes-gmac":
        return b"", bytes(range(length))
    return bytes(range(length)), bytes(range(100, 100 + max(suite.auth_key_lens)))


def ours(
    suite: Suite, length: int, mode: IpsecMode, direction: Direction, options: int, outer: int
) -> SaParams:
    make, header = TUNNELS[outer]
    cipher_key, auth_key = keys(suite, length)
    sa = IpsecSa(
        mode=mode,
        direction=direction,
        spi=SPI,
        salt=SALT,
        options=options,
        param=make(ip_address(header.src), ip_address(header.dst)),
        udp_sport=4500,
        udp_dport=4500,
        replay_win_sz=64,
        cipher_algo=suite.cipher_algo,
        cipher_key=cipher_key,
        auth_algo=suite.auth_algo,
        auth_key=auth_key,
        esn=SEQUENCES[options & ESN],
    )
    return SaParams.from_wire(sa, RFC_2025_01)


def theirs(suite: Suite, length: int, mode: IpsecMode, options: int, outer: int) -> Any:
    cipher_key, auth_key = keys(suite, length)
    cipher, _, mac = suite.name.partition("+")
    if suite.name == "aes-gmac":
        cipher_key, auth_key = auth_key, b""
    return SECURITY_ASSOCIATION(
        ESP,
        spi=SPI,
        crypt_algo=CIPHERS[cipher],
        crypt_key=cipher_key + SALT[: suite.salt_len] or None,
        auth_algo=MACS[mac] if mac else None,
        auth_key=auth_key or None,
        tunnel_header=TUNNELS[outer][1].copy() if mode is IpsecMode.ESP_TUNNEL else None,
        nat_t_header=UDP(sport=4500, dport=4500) if options & ENCAP else None,
        esn_en=bool(options & ESN),
        esn=5,
    )


def esp_octets(packet: bytes) -> bytes:
    found = find_spi(packet)
    assert found is not None
    return packet[found.offset : found.end]


def parsed(packet: bytes) -> Packet:
    return (IP if packet[0] >> 4 == 4 else IPv6)(packet)


@pytest.mark.parametrize("mode", [IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TRANSPORT])
@pytest.mark.parametrize("options", [0, ESN, ENCAP, ESN | ENCAP], ids=["plain", "esn", "udp", "esn+udp"])
@pytest.mark.parametrize(("suite", "length"), cases())
def test_both_seal_the_same_octets_and_open_each_other(
    suite: Suite, length: int, options: int, mode: IpsecMode
) -> None:
    tunnel = mode is IpsecMode.ESP_TUNNEL
    for inner, outer in [(4, 4), (4, 6), (6, 4), (6, 6)] if tunnel else [(4, 4), (6, 6)]:
        packet = bytes(INNER[inner])
        peer = theirs(suite, length, mode, options, outer)
        sender = OutboundSa(
            ours(suite, length, mode, Direction.OUTBOUND, options, outer), lambda n: b"\x5a" * n
        )
        receiver = InboundSa(ours(suite, length, mode, Direction.INBOUND, options, outer))

        mine = outbound(sender, packet)
        iv = esp_octets(mine)[8 : 8 + suite.iv_len]
        sealed = bytes(peer.encrypt(parsed(packet), seq_num=9, iv=iv))
        assert esp_octets(sealed) == esp_octets(mine)
        assert bytes(peer.decrypt(parsed(mine))) == packet
        assert inbound(receiver, sealed).packet == packet

        if tunnel and outer == 4:
            # Scapy counts on an identification of its own choice; everything else must be the same.
            assert (mine[:4], mine[6:10], mine[12:]) == (sealed[:4], sealed[6:10], sealed[12:])
        elif outer == 4 or not options & ENCAP:  # see KNOWN_FAULTS["udp checksum"]
            assert mine == sealed


# --- what scapy does differently, shown ------------------------------------------------------------------------

GCM = next(suite for suite in SUITES if suite.name == "aes-gcm-16")
TRANSPORT = IpsecMode.ESP_TRANSPORT


def test_every_fault_is_shown() -> None:
    shown = {
        name.removeprefix("test_fault_").replace("_", " ") for name in globals() if "test_fault_" in name
    }
    assert shown == set(KNOWN_FAULTS)


def test_fault_xcbc() -> None:
    assert not [name for name in AUTH_ALGOS if "XCBC" in name]


def test_fault_replay() -> None:
    sender = OutboundSa(ours(GCM, 16, TRANSPORT, Direction.OUTBOUND, 0, 4), lambda n: bytes(n))
    sealed = outbound(sender, bytes(INNER[4]))
    peer = theirs(GCM, 16, TRANSPORT, 0, 4)
    assert bytes(peer.decrypt(parsed(sealed))) == bytes(peer.decrypt(parsed(sealed)))


def test_fault_short_icv() -> None:
    peer = SECURITY_ASSOCIATION(ESP, spi=SPI, crypt_algo="AES-GCM", crypt_key=bytes(20), crypt_icv_size=8)
    full = SECURITY_ASSOCIATION(ESP, spi=SPI, crypt_algo="AES-GCM", crypt_key=bytes(20))
    packet = parsed(bytes(INNER[4]))
    assert len(peer.encrypt(packet, iv=bytes(8))) == len(full.encrypt(packet, iv=bytes(8)))


def test_fault_udp_checksum() -> None:
    sealed = bytes(
        theirs(GCM, 16, TRANSPORT, ENCAP, 6).encrypt(parsed(bytes(INNER[6])), seq_num=9, iv=bytes(8))
    )
    assert sealed[46:48] == b"\0\0"
    receiver = InboundSa(ours(GCM, 16, TRANSPORT, Direction.INBOUND, ENCAP, 6))
    assert inbound(receiver, sealed).packet == bytes(INNER[6])  # be liberal in what you accept


def test_fault_udp_and_extensions() -> None:
    packet = bytes(
        IPv6(src="2001:db8::1", dst="2001:db8::2")
        / IPv6ExtHdrHopByHop()
        / UDP(sport=1, dport=2)
        / Raw(b"data")
    )
    sender = OutboundSa(ours(GCM, 16, TRANSPORT, Direction.OUTBOUND, ENCAP, 6), lambda n: bytes(n))
    receiver = InboundSa(ours(GCM, 16, TRANSPORT, Direction.INBOUND, ENCAP, 6))
    sealed = outbound(sender, packet)
    opened = theirs(GCM, 16, TRANSPORT, ENCAP, 6).decrypt(parsed(sealed))
    assert not opened.haslayer(IPv6ExtHdrHopByHop)
    assert inbound(receiver, sealed).packet == packet


def test_fault_destination_options() -> None:
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")])
    packet = bytes(
        IPv6(src="2001:db8::1", dst="2001:db8::2") / options / UDP(sport=1, dport=2) / Raw(b"data")
    )
    sender = OutboundSa(ours(GCM, 16, TRANSPORT, Direction.OUTBOUND, 0, 6), lambda n: bytes(n))
    receiver = InboundSa(ours(GCM, 16, TRANSPORT, Direction.INBOUND, 0, 6))
    peer = theirs(GCM, 16, TRANSPORT, 0, 6)
    mine, sealed = outbound(sender, packet), bytes(peer.encrypt(parsed(packet), seq_num=9, iv=bytes(8)))
    assert (mine[6], sealed[6]) == (50, 60)
    assert bytes(peer.decrypt(parsed(mine))) == packet  # where they stand is the sender's choice
    assert inbound(receiver, sealed).packet == packet


def test_options_before_a_routing_header_stand_where_scapy_puts_them() -> None:
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")])
    packet = bytes(
        IPv6(src="2001:db8::1", dst="2001:db8::2")
        / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0\0\0")])
        / options.copy()
        / IPv6ExtHdrRouting(addresses=["2001:db8::3"], segleft=0)
        / options
        / UDP(sport=1, dport=2)
        / Raw(b"data")
    )
    sender = OutboundSa(ours(GCM, 16, TRANSPORT, Direction.OUTBOUND, 0, 6), lambda n: bytes(n))
    mine = outbound(sender, packet)
    iv = esp_octets(mine)[8:16]
    assert mine == bytes(theirs(GCM, 16, TRANSPORT, 0, 6).encrypt(parsed(packet), seq_num=9, iv=iv))
