"""Packets that the device seals, judged by the oracle: every mode and algorithm it offers, and what must not leave."""

from __future__ import annotations

from dataclasses import replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import (
    ESP_HEADER,
    INBOUND,
    DataPath,
    combinations,
    outer_of,
    try_open,
)
from virtio_ipsec.conformance.frames import TCP, Shape, ip_of
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.conformance.sas import (
    AH_MODES,
    TUNNEL4,
    TUNNEL6,
    TUNNEL_MODES,
    Peer,
)
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.crypto.algorithms import Kind, Suite
from virtio_ipsec.ipsec.process import Inbound, find_spi
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, IpsecMode

#: How many are sent at once (in a thin run still more than an octet's round in all), and how many are opened.
BATCH = 60
OPENED = 20


def _hides(suite: Suite) -> bool:
    """Whether a suite makes the payload unreadable."""
    return suite.kind is Kind.AEAD or (suite.kind is Kind.CIPHER_MAC and suite.cipher_algo != 0)


def _seals_everything(bench: Bench, mode: IpsecMode) -> None:
    path = DataPath(bench)
    path.need(mode)
    path.suite(mode)
    tunnel = mode in TUNNEL_MODES
    for suite, octets, inner, outer in bench.sweep(combinations(path, mode)):
        label = (
            f"{suite.name}, key of {octets} octets, IPv{inner} in IPv{outer}"
            if tunnel
            else (f"{suite.name}, key of {octets} octets, IPv{inner}")
        )
        fields: dict[str, object] = {"param": outer_of(outer)} if tunnel else {}
        sa = path.outbound(mode=mode, suite=suite.name, key_octets=octets, **fields)
        secret = bench.octets(61)
        packet = frames.packet(secret, Shape(inner))
        left = path.send(sa, packet)
        opened = try_open(sa, left[0]) if len(left) == 1 else f"{len(left)} packets left"
        good = isinstance(opened, Inbound) and bench.same(packet, opened.packet)
        header = find_spi(left[0]) if left else None
        for clause in ("INF-08", "RFC-09"):
            bench.check(clause, good, f"{label}: the peer opens what leaves", opened)
            if _hides(suite):
                bench.check(
                    clause, not any(secret[:16] in p for p in left), f"{label}: nothing leaves in clear"
                )
            bench.check(
                clause,
                [packet[:1] and packet[0] >> 4 for packet in left] == [outer if tunnel else inner],
                f"{label}: IP version of the outer header",
                left[:1],
            )
        protocol = 51 if mode in AH_MODES else 50
        bench.check(
            "RFC-28",
            header is not None and header.protocol == protocol,
            f"{label}: protocol {protocol}",
            header and header.protocol,
        )
        path.destroy(sa)


@case("ipsec-out-esp-tunnel", "INF-08", "RFC-09", "RFC-28", needs=("admin", "ipsec", "wire"))
def out_esp_tunnel(bench: Bench) -> None:
    """ESP in tunnel mode: packets of every algorithm, key length and pair of IP versions can be opened.

    For each an SA is made, a packet sent and what leaves is opened by an independent implementation.
    """
    _seals_everything(bench, IpsecMode.ESP_TUNNEL)


@case("ipsec-out-esp-transport", "INF-08", "RFC-09", "RFC-28", needs=("admin", "ipsec", "wire"))
def out_esp_transport(bench: Bench) -> None:
    """ESP in transport mode: packets of every algorithm, key length and IP version can be opened.

    One SA per combination that the capability allows; the peer opens what leaves and finds the packet sent.
    """
    _seals_everything(bench, IpsecMode.ESP_TRANSPORT)


@case("ipsec-out-ah-tunnel", "INF-08", "RFC-09", "RFC-28", needs=("admin", "ipsec", "wire"))
def out_ah_tunnel(bench: Bench) -> None:
    """AH in tunnel mode: packets of every algorithm, key length and pair of IP versions can be verified.

    One SA per combination that the capability allows; the peer verifies what leaves and finds the packet sent.
    """
    _seals_everything(bench, IpsecMode.AH_TUNNEL)


@case("ipsec-out-ah-transport", "INF-08", "RFC-09", "RFC-28", needs=("admin", "ipsec", "wire"))
def out_ah_transport(bench: Bench) -> None:
    """AH in transport mode: packets of every algorithm, key length and IP version can be verified.

    IPv4 with options and IPv6 with an extension header as well, whose mutable parts AH leaves out.
    """
    _seals_everything(bench, IpsecMode.AH_TRANSPORT)
    path = DataPath(bench)
    sa = path.outbound(mode=IpsecMode.AH_TRANSPORT)
    for packet in (
        frames.with_options(frames.packet(bench.octets(20))),
        frames.with_extension(frames.packet(bench.octets(20), Shape(6))),
    ):
        opened = [try_open(sa, sealed) for sealed in path.send(sa, packet)]
        good = len(opened) == 1 and isinstance(opened[0], Inbound) and bench.same(packet, opened[0].packet)
        for clause in ("INF-08", "RFC-09"):
            bench.check(clause, good, f"IPv{packet[0] >> 4} with options or extensions verifies", opened)


@case(
    "ipsec-out-sa-by-id", "NET-IPSEC-DEV-09", "INF-16", "RFC-08", "RFC-29", needs=("admin", "ipsec", "wire")
)
def out_sa_by_id(bench: Bench) -> None:
    """Each packet leaves under the SPI and the key of the SA that its resource_id names.

    Three SAs of different key, two with SPIs near the ends of the range, one with algorithms whose fields lie far
    apart in the object; packets through them in turns, twice.
    """
    path = DataPath(bench)
    names = {suite.name for suite in path.caps.suites(IpsecMode.ESP_TUNNEL)}
    split = "aes-cbc+hmac-sha2-256-128"
    third: dict[str, object] = {"suite": split} if split in names else {}
    live = [path.outbound(spi=0xFFFF_FF01), path.outbound(spi=0x100), path.outbound(**third)]
    for sa in [*live, *reversed(live)]:
        packet = frames.packet(bench.octets(40))
        left = path.send(sa, packet)
        header = find_spi(left[0]) if len(left) == 1 else None
        spi = header.spi if header else None
        what = f"a packet through SA {sa.id}"
        bench.check("INF-16", spi == sa.spi, f"{what} has SPI {sa.spi:#x} in network order", spi and hex(spi))
        opened = try_open(sa, left[0]) if left else "nothing left"
        good = isinstance(opened, Inbound) and bench.same(packet, opened.packet)
        for clause in ("NET-IPSEC-DEV-09", "RFC-08", "RFC-29"):
            bench.check(clause, good, f"{what} opens with the key of that SA", opened)


@case("ipsec-out-salt", "INF-17", "RFC-29", needs=("admin", "ipsec", "wire"))
def out_salt(bench: Bench) -> None:
    """The salt of the SA is in the nonce; its byte order is reported (ledger E24).

    A packet of an AES-GCM SA whose salt differs in all octets is opened with the salt in memory order, else with
    the salt reversed. No other salt opens it.
    """
    path = DataPath(bench)
    if "aes-gcm-16" not in {suite.name for suite in path.caps.suites(IpsecMode.ESP_TUNNEL)}:
        raise Unsupported("the device does not offer AES-GCM in ESP_TUNNEL")
    sa = path.outbound(salt=bytes((1, 2, 3, 4)))
    left = path.send(sa, frames.packet(bench.octets(40)))
    swapped = replace(sa.value, salt=bytes((4, 3, 2, 1)))
    readings = {
        "octets in memory order": sa,
        "network order of the number": replace(sa, value=swapped, peer=Peer(bench, swapped)),
    }
    fits = [name for name, one in readings.items() if left and isinstance(try_open(one, left[0]), Inbound)]
    for clause in ("INF-17", "RFC-29"):
        bench.check(
            clause, bool(fits), "the packet opens with the salt of the SA, in one byte order or other"
        )
    for name in fits:
        bench.reading("E24", name)


@case("ipsec-out-outer-header", "INF-08", "RFC-09", needs=("admin", "ipsec", "wire"))
def out_outer_header(bench: Bench) -> None:
    """The tunnel header has the addresses, TTL and protocol of the SA, and a right checksum.

    An IPv4 and an IPv6 tunnel. The byte order of IPv4 addresses is reported (ledger E23), and whether the
    Ethernet addresses are those of the driver (E64).
    """
    path = DataPath(bench)
    packet = frames.packet(bench.octets(40))
    for version in (4, 6):
        sa = path.outbound(param=outer_of(version))
        left = bench.packets.transmit(path.frame(packet), path.header(sa.id))
        outer = ip_of(left[0]) if len(left) == 1 else b""
        for clause in ("INF-08", "RFC-09"):
            bench.require(
                clause, outer[:1] != b"" and outer[0] >> 4 == version, f"an IPv{version} packet", left
            )
            if version == 4:
                swapped = [address.packed[::-1] for address in (TUNNEL4.src_ip, TUNNEL4.dst_ip)]
                plain = [address.packed for address in (TUNNEL4.src_ip, TUNNEL4.dst_ip)]
                found = [outer[12:16], outer[16:20]]
                bench.check(
                    clause, found in (plain, swapped), "outer IPv4 addresses", [a.hex() for a in found]
                )
                if found in (plain, swapped):
                    bench.reading("E23", "a little-endian number" if found == plain else "network order")
                bench.check(
                    clause, frames.checksum(outer[:20]) == 0, "outer header checksum", outer[:20].hex()
                )
                bench.check(clause, outer[8] == 64, "outer TTL 64", outer[8])
            else:
                found = [outer[8:24], outer[24:40]]
                wanted = [TUNNEL6.src_addr.packed, TUNNEL6.dst_addr.packed]
                bench.check(clause, found == wanted, "outer IPv6 addresses", [a.hex() for a in found])
                bench.check(clause, outer[7] == 64, "outer hop limit 64", outer[7])
            number = outer[9 if version == 4 else 6]
            bench.check(clause, number == frames.ESP, "the outer header names ESP", number)
        kept = left[0][:12] == path.frame(packet)[:12]
        bench.reading("E64", "kept" if kept else "made by the device")


@case("ipsec-out-never-in-clear", "INF-08", "NET-IPSEC-DEV-09", "RFC-10", needs=("admin", "ipsec", "wire"))
def out_never_in_clear(bench: Bench) -> None:
    """A packet marked SECURITY never leaves in clear, whatever its header names.

    Ids without an SA, an id above every limit, the id of an inbound SA, the type of an inbound SA, an unknown
    type and a destroyed SA: nothing of the packet leaves, and the buffer comes back (ledger E60).
    """
    path = DataPath(bench)
    live, gone, inbound = path.outbound(), path.outbound(), path.inbound()
    other = path.inbound()
    path.destroy(gone)
    attempts = {
        "an id without an SA": path.header(1000),
        "the largest id": path.header(0xFFFF_FFFF),
        "the id of a destroyed SA": path.header(gone.id),
        "the id of an inbound SA": path.header(other.id),
        "the type of inbound SAs": path.header(inbound.id, INBOUND),
        "an unknown type": path.header(live.id, 0x0300),
        "a flow-filter type": path.header(live.id, 0x0200),
    }
    if bench.dialect.tx_resource_type_required:
        attempts["type 0"] = path.header(live.id, 0)
    for what, header in attempts.items():
        secret = bench.octets(48)
        left = bench.packets.transmit(path.frame(frames.packet(secret)), header)
        clear = [frame for frame in left if secret[:16] in frame]
        bench.check("INF-08", not clear, f"{what}: nothing leaves in clear", [f.hex()[:160] for f in clear])
        for clause in ("NET-IPSEC-DEV-09", "RFC-10"):
            bench.check(clause, not left, f"{what}: nothing leaves at all", [f.hex()[:160] for f in left])
    packet = frames.packet(bench.octets(40))
    opened = [try_open(live, sealed) for sealed in path.send(live, packet)]
    good = len(opened) == 1 and isinstance(opened[0], Inbound)
    bench.check("NET-IPSEC-DEV-09", good, "the live SA still works", opened)


@case("ipsec-out-not-ip", "INF-08", "RFC-09", needs=("admin", "ipsec", "wire"))
def out_not_ip(bench: Bench) -> None:
    """What IPsec cannot protect does not leave when SECURITY is set.

    A frame that is not IP, an IP packet cut short, and in transport mode a fragment (RFC 4303 3.3.4).
    """
    path = DataPath(bench)
    sa = path.outbound()
    whole = path.frame(frames.packet(bench.octets(300)))
    odd = {
        "a frame without IP": whole[:12] + (0x88B6).to_bytes(2) + whole[14:],
        "an IP packet cut short": whole[:100],
        "an empty packet": whole[:14],
    }
    attempts = [(what, frame, sa) for what, frame in odd.items()]
    if IpsecMode.ESP_TRANSPORT in path.modes():
        piece = bytearray(frames.packet(bench.octets(64)))
        piece[6:8], piece[10:12] = (0x2000).to_bytes(2), bytes(2)
        piece[10:12] = frames.checksum(bytes(piece[:20])).to_bytes(2)
        transport = path.outbound(mode=IpsecMode.ESP_TRANSPORT)
        attempts.append(("a fragment in transport mode", path.frame(bytes(piece)), transport))
    for what, frame, one in attempts:
        left = bench.packets.transmit(frame, path.header(one.id))
        for clause in ("INF-08", "RFC-09"):
            bench.check(clause, not left, f"{what} does not leave", [f.hex()[:160] for f in left])


@case("ipsec-out-iv-unique", "INF-08", "RFC-09", needs=("admin", "ipsec", "wire"))
def out_iv_unique(bench: Bench) -> None:
    """No IV comes twice, and sequence numbers are consecutive from 1 (ledger E42, E70).

    Thousands of packets of an SA, many at a time; a repeated IV under one key is the end of its secrecy. The first
    ones are opened, too. How many there are a target file says (`long_run`): counters of one octet, IVs from a short
    list and a start anew show in a few hundred, a counter of two octets in 65,537. In a thin run there are fewer.
    """
    path = DataPath(bench)
    sa = path.outbound()
    frame = bench.packets.codec.build(path.header(sa.id)) + path.frame(frames.packet(bench.octets(8)))
    same = bench.queues.keep(frame)
    batch = min(BATCH, bench.queues.state(1).free - 1)  # and a sentinel
    rounds = len(bench.sweep(range(-(-bench.long_run // batch))))
    sealed: list[bytes] = []
    numbers: list[int] = []
    nonces: set[bytes] = set()
    spi, place = sa.spi.to_bytes(4), 0
    for _ in range(rounds):
        bench.queues.repeat(1, same, batch)
        for one in map(ip_of, bench.packets.emitted()):
            if one[place : place + 4] != spi and (header := find_spi(one)) is not None:
                place = header.offset  # where it is in all of them
            behind = place + ESP_HEADER
            numbers.append(int.from_bytes(one[place + 4 : behind]))
            nonces.add(one[behind : behind + sa.suite.iv_len])
            if len(sealed) < OPENED:
                sealed.append(one)
    total = rounds * batch
    opened = sum(isinstance(try_open(sa, one), Inbound) for one in sealed)
    strange = [(at, number) for at, number in enumerate(numbers, 1) if at != number]
    for clause in ("INF-08", "RFC-09"):
        wanted = min(OPENED, total)
        bench.check(clause, opened == wanted, f"the first {wanted} packets can be opened, none twice", opened)
        if sa.suite.iv_len:
            bench.check(clause, len(nonces) == total, "no IV is used twice", f"{len(nonces)} of {total}")
        seen = f"{len(numbers)} packets; " + ", ".join(f"{at} has {number}" for at, number in strange[:4])
        good = len(numbers) == total and not strange
        bench.check(clause, good, f"sequence numbers run from 1 to {total}", seen)


@case("ipsec-out-segments", "INF-08", needs=("admin", "ipsec", "wire"))
def out_segments(bench: Bench) -> None:
    """A large packet with SECURITY is segmented first, and each segment is a packet of the SA (ledger E62).

    A TCP packet over IPv4 of three segments: what leaves are three sealed packets of consecutive numbers that
    hold the payload in order. A device that refuses offloads with SECURITY sends nothing.
    """
    path = DataPath(bench, want=(Feature.NET_F_CSUM, Feature.NET_F_HOST_TSO4))
    sa = path.outbound()
    payload = bench.octets(2500)
    packet = bytearray(frames.packet(payload, Shape(protocol=TCP)))
    partial = ~frames.checksum(frames.pseudo_header(4, TCP, len(packet) - 20)) & 0xFFFF
    packet[36:38] = partial.to_bytes(2)
    header = path.header(
        sa.id,
        flags=HdrFlag.NEEDS_CSUM,
        gso_type=GsoType.TCPV4,
        gso_size=1000,
        hdr_len=54,
        csum_start=34,
        csum_offset=16,
    )
    left = [ip_of(f) for f in bench.packets.transmit(path.frame(bytes(packet)), header)]
    bench.reading("E62", "offloads first" if left else "refused")
    bench.check("INF-08", not any(payload[:32] in one for one in left), "no segment leaves in clear")
    if not left:
        return
    opened = [try_open(sa, one) for one in left]
    inner = [one.packet for one in opened if isinstance(one, Inbound)]
    bench.check("INF-08", len(inner) == 3, "three segments that the peer opens", opened)
    bench.check("INF-08", b"".join(one[40:] for one in inner) == payload, "their payloads in order")
    sums = [frames.checksum(frames.pseudo_header(4, TCP, len(one) - 20) + one[20:]) for one in inner]
    bench.check("INF-08", not any(sums), "TCP checksums of the segments are right", sums)
    numbers = [one.sequence for one in opened if isinstance(one, Inbound)]
    bench.check("INF-08", numbers == [1, 2, 3], "each segment has a sequence number of its own", numbers)


@case("ipsec-off-untouched", "INF-06", needs=("wire",))
def off_untouched(bench: Bench) -> None:
    """Without the feature there is no inbound IPsec: ESP arrives as it came, with clear flags.

    A frame with ESP is injected into a device that negotiated everything but IPSEC.
    """
    bench.start(without=(Feature.NET_F_IPSEC,))
    bench.packets.post()
    frame = frames.ethernet(frames.esp(0x1234, 1), bench.packets.mac, PEER_MAC)
    came = [(rx.frame, rx.header.flags) for rx in bench.packets.receive(frame)]
    bench.check("INF-06", came == [(frame, 0)], "ESP arrives as it came, flags are zero", came)
