"""Packets that the device opens: every mode and algorithm, what starts it, flags and ids."""

from __future__ import annotations

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import INBOUND, DataPath, combinations, outer_of
from virtio_ipsec.conformance.flows import protocol, udp_port
from virtio_ipsec.conformance.frames import ESP, Shape, ip_of
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.conformance.sas import TUNNEL_MODES
from virtio_ipsec.wire.numbers import Feature, FfAction, IpsecMode

OPENED = ("INF-07", "RFC-13")


def _opens_everything(bench: Bench, mode: IpsecMode) -> None:
    path = DataPath(bench)
    path.need(mode)
    path.suite(mode)
    for suite, octets, inner, outer in bench.sweep(combinations(path, mode)):
        sa = path.inbound(mode=mode, suite=suite.name, key_octets=octets, outer=outer_of(outer))
        plain = frames.packet(bench.octets(61), Shape(inner))
        came = path.receive(sa.peer.seal(plain))
        where = f"IPv{inner} in IPv{outer}" if mode in TUNNEL_MODES else f"IPv{inner}"
        path.check_opened(OPENED, came, plain, f"{suite.name}, key of {octets} octets, {where}")
        path.destroy(sa)


@case("ipsec-in-esp-tunnel", *OPENED, needs=("admin", "ipsec", "wire"))
def in_esp_tunnel(bench: Bench) -> None:
    """ESP in tunnel mode: packets of every algorithm, key length and pair of IP versions are opened.

    For each an SA is made and a packet injected that an independent implementation has sealed.
    """
    _opens_everything(bench, IpsecMode.ESP_TUNNEL)


@case("ipsec-in-esp-transport", *OPENED, needs=("admin", "ipsec", "wire"))
def in_esp_transport(bench: Bench) -> None:
    """ESP in transport mode: packets of every algorithm, key length and IP version are opened.

    One SA per combination that the capability allows; the peer seals, the frame must come out as it went in.
    """
    _opens_everything(bench, IpsecMode.ESP_TRANSPORT)


@case("ipsec-in-ah-tunnel", *OPENED, needs=("admin", "ipsec", "wire"))
def in_ah_tunnel(bench: Bench) -> None:
    """AH in tunnel mode: packets of every algorithm, key length and pair of IP versions are accepted.

    One SA per combination that the capability allows; the peer seals, the frame must come out as it went in.
    """
    _opens_everything(bench, IpsecMode.AH_TUNNEL)


@case("ipsec-in-ah-transport", *OPENED, needs=("admin", "ipsec", "wire"))
def in_ah_transport(bench: Bench) -> None:
    """AH in transport mode: packets of every algorithm, key length and IP version are accepted.

    A packet whose TTL and DSCP have changed on the way is accepted too: AH leaves them out.
    """
    _opens_everything(bench, IpsecMode.AH_TRANSPORT)
    path = DataPath(bench)
    sa = path.inbound(mode=IpsecMode.AH_TRANSPORT)
    plain = frames.packet(bench.octets(40))
    changed = [_rerouted(packet) for packet in (sa.peer.seal(plain), plain)]
    path.check_opened(OPENED, path.receive(changed[0]), changed[1], "a packet with another TTL and DSCP")


def _rerouted(packet: bytes) -> bytes:
    head = packet[:1] + b"\xb8" + packet[2:8] + b"\x3c" + packet[9:10] + bytes(2) + packet[12:20]
    return head[:10] + frames.checksum(head).to_bytes(2) + head[12:] + packet[20:]


@case(
    "ipsec-in-flags-and-ids",
    "NET-RX-DEV-29",
    "NET-RX-DEV-33",
    "NET-RX-DEV-35",
    "NET-IPSEC-DEV-09",
    "RFC-14",
    "RFC-17",
    "RFC-18",
    "RFC-19",
    needs=("admin", "ipsec", "wire"),
)
def in_flags_and_ids(bench: Bench) -> None:
    """An opened packet carries SECURITY alone, and names its SA.

    Three inbound SAs, packets through them in turns. resource_id is the id of each packet's SA, resource_type
    is that of inbound SAs (ledger E51); SECURITY_ERR and the soft-expiry warning are clear.
    """
    path = DataPath(bench)
    live = [path.inbound() for _ in range(3)]
    for sa in [*live, *reversed(live)]:
        plain = frames.packet(bench.octets(40))
        came = path.receive(sa.peer.seal(plain))
        flags = came[0].header.flags if came else 0
        shown = f"flags {flags:#x}" if came else "nothing was delivered"
        for clause in ("NET-RX-DEV-29", "RFC-14"):
            bench.check(clause, bool(came) and path.is_secured(came[0]), "SECURITY is set", shown)
        bench.check(
            "NET-RX-DEV-33", bool(came) and not path.is_failed(came[0]), "SECURITY_ERR is clear", shown
        )
        bench.check("NET-RX-DEV-35", not flags & bench.dialect.flag_soft_expiry, "no soft expiry", shown)
        bench.check("RFC-17", not flags & 0x60, "flags 32 and 64 are clear", shown)
        found = (came[0].header.resource_id, came[0].header.resource_type) if came else (None, None)
        for clause in ("NET-IPSEC-DEV-09", "RFC-18"):
            silent = clause != "RFC-18" and found == (0, 0)
            bench.check(clause, found[0] == sa.id or silent, f"resource_id {sa.id}", found)
        bench.check("RFC-19", found[1] == INBOUND, "resource_type 0x0204", found)
        if came and sa.id:
            bench.reading("E51", "left alone" if found == (0, 0) else f"the id, and type {found[1]:#x}")


# -- what starts IPsec ------------------------------------------------------------------------------------


@case("ipsec-in-rule-action", "INF-09", "RFC-24", needs=("admin", "ipsec", "flow_filter", "wire"))
def in_rule_action(bench: Bench) -> None:
    """A rule with either IPsec action starts IPsec.

    One device life per action: a rule on ESP with the action, a packet of a live SA, which arrives opened.
    """
    for action in (FfAction.IPSEC, FfAction.IPSEC_RECIRCULATE):
        path = DataPath(bench)
        bench.packets.post()
        sa = path.inbound()
        path.flows.rule(path.flows.group(1), protocol(4, ESP), action)
        plain = frames.packet(bench.octets(40))
        came = bench.packets.receive(path.wire(sa.peer.seal(plain)))
        path.check_opened(("INF-09", "RFC-24"), came, plain, f"a packet of a rule with {action.name}")


@case("ipsec-in-recirculate", "INF-10", "RFC-25", needs=("admin", "ipsec", "flow_filter", "wire"))
def in_recirculate(bench: Bench) -> None:
    """With the recirculating action the rules are applied once more, to the opened packet.

    Rule A: ESP, recirculate. Rule B: inner UDP port 4001, drop. A packet to that port is dropped in the second
    pass, one to another port arrives opened. With the plain IPsec action there is no second pass.
    """
    for action, dropped in ((FfAction.IPSEC_RECIRCULATE, True), (FfAction.IPSEC, False)):
        path = DataPath(bench)
        bench.packets.post()
        sa = path.inbound()
        group = path.flows.group(1)
        path.flows.rule(group, protocol(4, ESP), action, priority=2)
        path.flows.rule(group, udp_port(4, 4001), FfAction.DROP, priority=1)
        for port in (4001, 4002):
            plain = frames.packet(bench.octets(40), Shape(dport=port))
            came = bench.packets.receive(path.wire(sa.peer.seal(plain)))
            for clause in ("INF-10", "RFC-25"):
                if dropped and port == 4001:
                    bench.check(clause, not came, f"{action.name}: the second rule drops port {port}", came)
                else:
                    what = f"{action.name}: a packet to port {port}"
                    path.check_opened((clause,), came, plain, what)


@case("ipsec-in-recirculate-once", "INF-10", "RFC-25", needs=("admin", "ipsec", "flow_filter", "wire"))
def in_recirculate_once(bench: Bench) -> None:
    """A packet is recirculated once only: a nest of three protected packets is not opened to its core.

    Every ESP packet matches a recirculating rule. A packet sealed three times may be opened once or twice
    (ledger E58, reported), and never three times.
    """
    path = DataPath(bench)
    bench.packets.post()
    nest = [path.inbound() for _ in range(3)]
    path.flows.rule(path.flows.group(1), protocol(4, ESP), FfAction.IPSEC_RECIRCULATE)
    layers = [frames.packet(bench.octets(40))]
    for sa in nest:
        layers.append(sa.peer.seal(layers[-1]))
    came = [ip_of(rx.frame) for rx in bench.packets.receive(path.wire(layers[-1]))]
    for clause in ("INF-10", "RFC-25"):
        bench.check(clause, layers[0] not in came, "the innermost packet is not reached", came)
        bench.check(clause, len(came) <= 1, "the packet is delivered once", came)
    for passes, name in ((2, "the second pass opens a nested packet"), (1, "the second pass opens nothing")):
        if came == [layers[3 - passes]]:
            bench.reading("E58", name)


@case("ipsec-in-without-rule", "NET-RX-DEV-30", "RFC-12", "RFC-18", needs=("admin", "ipsec", "wire"))
def in_without_rule(bench: Bench) -> None:
    """Whether a packet of a live SA is opened without any rule depends on the dialect (ledger E56).

    In v1.4 rules start IPsec: the packet arrives as it came with clear flags. In the dialect of January 2025
    the SPI does: it arrives opened.
    """
    path = DataPath(bench)
    bench.packets.post()
    sa = path.inbound()
    plain = frames.packet(bench.octets(40))
    frame = path.wire(sa.peer.seal(plain))
    came = bench.packets.receive(frame)
    if bench.dialect.sa_lookup_without_rule:
        path.check_opened(("RFC-12",), came, plain, "a packet of a live SA")
        bench.check("RFC-18", [rx.header.resource_id for rx in came] == [sa.id], "resource_id", came)
        return
    seen = [f"flags {rx.header.flags:#x}, {rx.frame.hex()[:120]}" for rx in came]
    untouched = [(rx.frame, path.is_secured(rx), path.is_failed(rx)) for rx in came] == [
        (frame, False, False)
    ]
    bench.check("NET-RX-DEV-30", untouched, "ESP that no rule asks for arrives as it came, flags clear", seen)


@case(
    "ipsec-in-unknown-spi",
    "NET-RX-DEV-32",
    "NET-RX-DEV-31",
    "INF-05",
    "RFC-20",
    "RFC-15",
    needs=("admin", "ipsec", "wire"),
)
def in_unknown_spi(bench: Bench) -> None:
    """A packet whose SPI no SA has: an error where a rule asked for IPsec, untouched where none did.

    In v1.4 it is delivered as it came with the error flags, or dropped (ledger E53, E95); resource_type is zero
    (E52). In the dialect of January 2025 it is delivered untouched with clear flags.
    """
    path = DataPath(bench)
    sa = path.inbound()
    stray = frames.esp(sa.spi ^ 0xFF, 1)
    came = path.receive(stray)
    if bench.dialect.sa_lookup_without_rule:
        same = [rx.frame for rx in came] == [path.wire(stray)]
        bench.check("RFC-20", same, "a packet of an unknown SPI is delivered as it came", came)
        clear = not any(path.is_secured(rx) or path.is_failed(rx) for rx in came)
        for clause in ("RFC-15", "RFC-20"):
            bench.check(clause, clear, "its flags are clear", [hex(rx.header.flags) for rx in came])
        return
    path.check_failed(came, stray, "an unknown SPI")
    for rx in came:
        none = rx.header.resource_type == 0
        bench.reading("E52", "resource_type 0" if none else f"resource_type {rx.header.resource_type:#x}")


@case("ipsec-in-sa-destroyed", "NET-RX-DEV-32", "INF-05", "RFC-20", needs=("admin", "ipsec", "wire"))
def in_sa_destroyed(bench: Bench) -> None:
    """After DESTROY no packet is opened by the SA (ledger E49).

    A packet is opened, the SA destroyed, the next packet of its SPI is not opened.
    """
    path = DataPath(bench)
    sa = path.inbound()
    plain = frames.packet(bench.octets(40))
    clause = "RFC-20" if bench.dialect.sa_lookup_without_rule else "NET-RX-DEV-32"
    path.check_opened((clause,), path.receive(sa.peer.seal(plain)), plain, "a packet of the live SA")
    sealed = sa.peer.seal(plain)
    path.destroy(sa)
    came = path.receive(sealed)
    if bench.dialect.sa_lookup_without_rule:
        same = [rx.frame for rx in came] == [path.wire(sealed)]
        bench.check("RFC-20", same, "a packet of the destroyed SA is delivered as it came", came)
    else:
        path.check_failed(came, sealed, "the SPI of a destroyed SA")


@case("ipsec-in-rule-first", "RFC-21", needs=("admin", "ipsec", "flow_filter", "wire"))
def in_rule_first(bench: Bench) -> None:
    """A rule goes before the lookup by SPI: a directed ESP packet of a live SA arrives unopened.

    A DIRECT_RX_VQ rule on ESP to receive queue 0.
    """
    path = DataPath(bench)
    bench.packets.post()
    sa = path.inbound()
    path.flows.rule(path.flows.group(1), protocol(4, ESP), FfAction.DIRECT_RX_VQ)
    frame = path.wire(sa.peer.seal(frames.packet(bench.octets(40))))
    came = [(rx.frame, path.is_secured(rx)) for rx in bench.packets.receive(frame)]
    bench.check("RFC-21", came == [(frame, False)], "a directed packet is not opened", came)


@case("ipsec-in-fragment-untouched", "NET-RX-DEV-30", "RFC-15", needs=("admin", "ipsec", "wire"))
def in_fragment_untouched(bench: Bench) -> None:
    """An outer fragment is not in error: the device does not reassemble and delivers it as it came (E65).

    The first fragment of a sealed packet comes from the wire; it must not be marked as opened.
    """
    path = DataPath(bench)
    sa = path.inbound()
    sealed = bytearray(sa.peer.seal(frames.packet(bench.octets(200))))
    first = sealed[:20] + sealed[20:120]
    first[2:4], first[6:8], first[10:12] = len(first).to_bytes(2), (0x2000).to_bytes(2), bytes(2)
    first[10:12] = frames.checksum(bytes(first[:20])).to_bytes(2)
    came = path.receive(bytes(first))
    for clause in ("NET-RX-DEV-30", "RFC-15"):
        bench.check(
            clause,
            not any(path.is_secured(rx) and not path.is_failed(rx) for rx in came),
            "a fragment is never marked as opened",
            [hex(rx.header.flags) for rx in came],
        )
    same = [rx.frame for rx in came] == [path.wire(bytes(first))]
    bench.reading("E65", "delivered untouched" if same else "not delivered")


@case("ipsec-in-queue-of-inner-packet", "INF-07", needs=("admin", "ipsec", "flow_filter", "wire", "mq"))
def in_queue_of_inner_packet(bench: Bench) -> None:
    """An opened packet is delivered once, on one receive queue, whatever vq_index its IPsec rule names (E59).

    A rule with the IPsec action names queue 1; a sealed packet must come once, opened. The queue is reported.
    """
    path = DataPath(bench)
    bench.packets.post_all(2)
    sa = path.inbound()
    path.flows.rule(path.flows.group(1), protocol(4, ESP), FfAction.IPSEC, queue=1)
    plain = frames.packet(bench.octets(40))
    came = bench.packets.receive(path.wire(sa.peer.seal(plain)))
    path.check_opened(("INF-07",), came, plain, "a packet of a rule that names another queue")
    for rx in came:
        bench.reading("E59", "steering of the opened packet" if rx.queue == 0 else "vq_index")


@case("ipsec-in-ethernet-header", "INF-07", "RFC-13", needs=("admin", "ipsec", "wire"))
def in_ethernet_header(bench: Bench) -> None:
    """The EtherType of an opened frame is that of the inner packet; the addresses are those that came (E64).

    IPv6 in an IPv4 tunnel and the reverse.
    """
    path = DataPath(bench)
    for inner, outer in ((6, 4), (4, 6)):
        sa = path.inbound(outer=outer_of(outer))
        plain = frames.packet(bench.octets(40), Shape(inner))
        came = path.receive(sa.peer.seal(plain))
        wanted = frames.ethernet(plain, bench.packets.mac, PEER_MAC)[:14]
        heads = [rx.frame[:14] for rx in came]
        for clause in ("INF-07", "RFC-13"):
            right = [head[12:] for head in heads] == [wanted[12:]]
            bench.check(clause, right, f"EtherType of IPv{inner}", [head.hex() for head in heads])
        bench.reading("E64", "kept" if heads == [wanted] else "made by the device")


@case("rx-checksum-of-inner-packet", "NET-RX-DEV-25", needs=("admin", "ipsec", "wire"))
def rx_checksum_of_inner_packet(bench: Bench) -> None:
    """DATA_VALID is about the opened packet (ledger E63): never set when its transport checksum is wrong.

    With VIRTIO_NET_F_GUEST_CSUM a sealed UDP packet with a wrong checksum is opened and not vouched for.
    """
    path = DataPath(bench, want=(Feature.NET_F_GUEST_CSUM,))
    sa = path.inbound()
    plain = bytearray(frames.packet(bench.octets(40)))
    plain[26] ^= 0xFF
    came = path.receive(sa.peer.seal(bytes(plain)))
    flags = [rx.header.flags & 3 for rx in came]
    bench.check("NET-RX-DEV-25", flags == [0], "neither DATA_VALID nor NEEDS_CSUM on a wrong checksum", flags)
