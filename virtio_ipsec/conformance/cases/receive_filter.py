"""Which frames the driver asked for: receive modes, the MAC table, the device's own address, VLANs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.control import command, demand, only_own_address, switch
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.conformance.requirements import closure
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.net_control import MAC_TABLES, MacTables
from virtio_ipsec.wire.numbers import CtrlClass, CtrlGuestOffloads, CtrlMac, CtrlRx, CtrlVlan, Feature, has

BROADCAST = b"\xff" * 6
#: Neighbours in one octet each, so that a table that compares a part is noticed.
UNICAST = tuple(bytes.fromhex(text) for text in ("0a5670000001", "0a5670000002", "0a5770000001"))
MULTICAST = tuple(bytes.fromhex(text) for text in ("01005e000009", "01005e00000a", "333300000009"))
OTHERS = {"another unicast address": UNICAST[0], "another multicast address": MULTICAST[0]}
EXTRA = Feature.NET_F_CTRL_RX_EXTRA
NEEDS = ("wire", "ctrl_vq")
#: Any VLAN ids: small ones, the largest, and two that differ in the upper octet alone.
VLANS = (1, 5, 0x105, 4094)


def _start(bench: Bench, *want: Feature, without: Iterable[Feature] = ()) -> None:
    """Start with the frames of the device alone asked for."""
    bench.start(want=(Feature.NET_F_CTRL_VQ, Feature.NET_F_CTRL_RX, *want), without=without)
    bench.packets.post()
    only_own_address(bench)


def _set(bench: Bench, number: CtrlRx, on: bool = True) -> None:
    demand(switch(bench, number, on), f"{number.name} {'on' if on else 'off'}")


def _table(bench: Bench, unicast: Iterable[bytes] = (), multicast: Iterable[bytes] = ()) -> None:
    tables = MAC_TABLES.build(MacTables(tuple(unicast), tuple(multicast)))
    demand(command(bench, CtrlClass.MAC, CtrlMac.TABLE_SET, tables), "a MAC table")


def _come(bench: Bench, targets: Mapping[str, bytes]) -> dict[str, bool]:
    """Which of these addresses a frame reaches the driver for."""
    sent = {
        name: frames.ethernet(frames.packet(bench.octets(30)), target, PEER_MAC)
        for name, target in targets.items()
    }
    bench.packets.top_up()
    came = [rx.frame for rx in bench.packets.receive(*sent.values())]
    return {name: frame in came for name, frame in sent.items()}


def _check(bench: Bench, clause: str, targets: Mapping[str, bytes], wanted: bool, when: str) -> None:
    for name, came in _come(bench, targets).items():
        text = "is delivered" if wanted else "is not delivered"
        bench.check(clause, came is wanted, f"{when}: {name} {text}", "delivered" if came else "dropped")


def _own(bench: Bench) -> dict[str, bytes]:
    return {"the device's own address": bench.packets.mac}


@case("rx-mode-commands", "NET-CTL-DEV-01", "NET-CTL-DEV-05", needs=("ctrl_vq",))
def rx_mode_commands(bench: Bench) -> None:
    """The device knows the commands of the receive modes whose features were negotiated.

    PROMISC and ALLMULTI, and with CTRL_RX_EXTRA the other four: each off, on, on again and off is acknowledged.
    """
    bench.start(want=(Feature.NET_F_CTRL_VQ, Feature.NET_F_CTRL_RX))
    for clause, numbers in (
        ("NET-CTL-DEV-01", (CtrlRx.PROMISC, CtrlRx.ALLMULTI)),
        ("NET-CTL-DEV-05", (CtrlRx.ALLUNI, CtrlRx.NOMULTI, CtrlRx.NOUNI, CtrlRx.NOBCAST)),
    ):
        if clause == "NET-CTL-DEV-05":
            bench.start(want=(Feature.NET_F_CTRL_VQ, Feature.NET_F_CTRL_RX, EXTRA))
        for number in numbers:
            for on in (False, True, True, False):
                accepted = switch(bench, number, on)
                bench.check(clause, accepted, f"{number.name} {int(on)} is acknowledged", accepted)


@case("rx-mode-promiscuous", "NET-CTL-DEV-02", "NET-CTL-DEV-17", needs=NEEDS)
def rx_mode_promiscuous(bench: Bench) -> None:
    """In promiscuous mode every frame is delivered, out of it those for others are not.

    Frames for another unicast and another multicast address, before, in and after promiscuous mode; those for the
    device and for all come each time.
    """
    _start(bench)
    for on in (False, True, False):
        if on:
            _set(bench, CtrlRx.PROMISC)
        when = "promiscuous" if on else "not promiscuous"
        _check(bench, "NET-CTL-DEV-02" if on else "NET-CTL-DEV-17", OTHERS, on, when)
        _check(bench, "NET-CTL-DEV-17", {**_own(bench), "broadcast": BROADCAST}, True, when)
        if on:
            _set(bench, CtrlRx.PROMISC, False)


@case("rx-mode-promiscuous-first", "NET-CTL-DEV-03", needs=NEEDS)
def rx_mode_promiscuous_first(bench: Bench) -> None:
    """Promiscuous mode counts more than the modes that suppress.

    NOMULTI, NOUNI and NOBCAST are on, then PROMISC: frames of all kinds are delivered.
    """
    _start(bench, EXTRA)
    bench.packets.sentinel_to = BROADCAST
    _set(bench, CtrlRx.PROMISC)
    for number in (CtrlRx.NOMULTI, CtrlRx.NOUNI, CtrlRx.NOBCAST):
        _set(bench, number)
        targets = {**OTHERS, **_own(bench), "broadcast": BROADCAST}
        _check(bench, "NET-CTL-DEV-03", targets, True, f"promiscuous, {number.name}")


@case(
    "rx-mode-multicast", "NET-CTL-DEV-04", "NET-CTL-DEV-07", "NET-CTL-DEV-08", "NET-CTL-DEV-09", needs=NEEDS
)
def rx_mode_multicast(bench: Bench) -> None:
    """All multicast frames with ALLMULTI, none with NOMULTI, whatever else is on; broadcast is another matter.

    Multicast addresses within and outside of the MAC table, and broadcast: with ALLMULTI, after it, with NOMULTI and
    with both.
    """
    _start(bench, EXTRA)
    inside = {"a multicast address of the table": MULTICAST[1]}
    outside = {"another multicast address": MULTICAST[0], "an IPv6 multicast address": MULTICAST[2]}
    everybody = {"broadcast": BROADCAST}
    _table(bench, multicast=MULTICAST[1:2])
    _set(bench, CtrlRx.ALLMULTI)
    _check(bench, "NET-CTL-DEV-04", {**inside, **outside}, True, "ALLMULTI")
    _check(bench, "NET-CTL-DEV-04", {"another unicast address": UNICAST[0]}, False, "ALLMULTI")
    _set(bench, CtrlRx.NOMULTI)
    _check(bench, "NET-CTL-DEV-08", {**inside, **outside}, False, "ALLMULTI and NOMULTI")
    _set(bench, CtrlRx.ALLMULTI, False)
    _check(bench, "NET-CTL-DEV-07", inside, False, "NOMULTI")
    _check(bench, "NET-CTL-DEV-09", everybody, True, "NOMULTI")
    _set(bench, CtrlRx.NOMULTI, False)
    _check(bench, "NET-CTL-DEV-07", inside, True, "NOMULTI off again")
    _check(bench, "NET-CTL-DEV-04", outside, False, "ALLMULTI off again")


@case("rx-mode-unicast", "NET-CTL-DEV-06", "NET-CTL-DEV-10", "NET-CTL-DEV-11", needs=NEEDS)
def rx_mode_unicast(bench: Bench) -> None:
    """All unicast frames with ALLUNI, none with NOUNI, whatever else is on.

    The device's own address, one of the MAC table and another: with ALLUNI, with NOUNI, with both, and afterwards.
    """
    _start(bench, EXTRA)
    bench.packets.sentinel_to = BROADCAST
    asked = {**_own(bench), "an address of the table": UNICAST[1]}
    other = {"another unicast address": UNICAST[0]}
    _table(bench, unicast=UNICAST[1:2])
    _set(bench, CtrlRx.ALLUNI)
    _check(bench, "NET-CTL-DEV-06", {**asked, **other}, True, "ALLUNI")
    _check(bench, "NET-CTL-DEV-06", {"another multicast address": MULTICAST[0]}, False, "ALLUNI")
    _set(bench, CtrlRx.NOUNI)
    _check(bench, "NET-CTL-DEV-11", {**asked, **other}, False, "ALLUNI and NOUNI")
    _set(bench, CtrlRx.ALLUNI, False)
    _check(bench, "NET-CTL-DEV-10", asked, False, "NOUNI")
    _set(bench, CtrlRx.NOUNI, False)
    _check(bench, "NET-CTL-DEV-10", asked, True, "NOUNI off again")
    _check(bench, "NET-CTL-DEV-06", other, False, "ALLUNI off again")


@case("rx-mode-broadcast", "NET-CTL-DEV-12", "NET-CTL-DEV-13", needs=NEEDS)
def rx_mode_broadcast(bench: Bench) -> None:
    """No broadcast frame with NOBCAST, not even with ALLMULTI.

    Broadcast frames before, with NOBCAST, with ALLMULTI besides, and after it.
    """
    _start(bench, EXTRA)
    everybody = {"broadcast": BROADCAST}
    _check(bench, "NET-CTL-DEV-12", everybody, True, "before")
    _set(bench, CtrlRx.NOBCAST)
    _check(bench, "NET-CTL-DEV-12", everybody, False, "NOBCAST")
    _check(bench, "NET-CTL-DEV-12", _own(bench), True, "NOBCAST")
    _set(bench, CtrlRx.ALLMULTI)
    _check(bench, "NET-CTL-DEV-13", everybody, False, "NOBCAST and ALLMULTI")
    _set(bench, CtrlRx.NOBCAST, False)
    _check(bench, "NET-CTL-DEV-12", everybody, True, "NOBCAST off again")


@case("rx-mac-table", "NET-CTL-DEV-14", "NET-CTL-DEV-15", "NET-CTL-DEV-17", needs=NEEDS)
def rx_mac_table(bench: Bench) -> None:
    """The MAC table is in force when its command is used, replaces the one before, and is empty after a reset.

    Unicast and multicast addresses, several of each, that differ from others in one octet; then another table, an
    empty one, and a reset.
    """

    def check(clause: str, addresses: Iterable[bytes], wanted: bool, when: str) -> None:
        _check(bench, clause, {address.hex(":"): address for address in addresses}, wanted, when)

    _start(bench)
    check("NET-CTL-DEV-17", (*UNICAST, *MULTICAST), False, "no table")
    _table(bench, UNICAST[:2], MULTICAST[:2])
    check("NET-CTL-DEV-15", (*UNICAST[:2], *MULTICAST[:2]), True, "in the table")
    check("NET-CTL-DEV-17", (UNICAST[2], MULTICAST[2]), False, "not in the table")
    _table(bench, UNICAST[2:], MULTICAST[2:])
    check("NET-CTL-DEV-15", (UNICAST[2], MULTICAST[2]), True, "in the second table")
    check("NET-CTL-DEV-15", (*UNICAST[:2], *MULTICAST[:2]), False, "in the table before")
    _start(bench)
    check("NET-CTL-DEV-14", (*UNICAST, *MULTICAST), False, "in the table before the reset")
    _table(bench, UNICAST, ())
    _table(bench)
    check("NET-CTL-DEV-15", UNICAST, False, "after an empty table")


@case("rx-mac-address", "NET-CTL-DEV-16", "NET-CTL-DEV-17", needs=NEEDS)
def rx_mac_address(bench: Bench) -> None:
    """After MAC_ADDR_SET the configuration shows the new address, and the device receives for it.

    Frames for the new and the old address, before and after two changes.
    """
    _start(bench, Feature.NET_F_CTRL_MAC_ADDR, Feature.NET_F_MAC)
    for number, address in enumerate(UNICAST[1:]):
        old = bench.packets.mac
        name = address.hex(":")
        _check(bench, "NET-CTL-DEV-17", {name: address}, False, "before MAC_ADDR_SET")
        accepted = command(bench, CtrlClass.MAC, CtrlMac.ADDR_SET, address)
        bench.require("NET-CTL-DEV-16", accepted, f"MAC_ADDR_SET to {name} is acknowledged", accepted)
        shown = NET_CONFIG.parse(bench.target.read_config(0, NET_CONFIG.fixed_size)).mac
        bench.check("NET-CTL-DEV-16", shown == address, f"the configuration shows {name}", shown.hex(":"))
        bench.packets.sentinel_to = BROADCAST
        _check(bench, "NET-CTL-DEV-17", {name: address}, True, f"after change {number + 1}")
        _check(bench, "NET-CTL-DEV-17", {old.hex(":"): old}, False, f"the address before change {number + 1}")


def _tags(bench: Bench, ids: Iterable[int]) -> dict[int, bool]:
    """Which VLAN ids a tagged frame for the device is delivered with."""
    plain = frames.ethernet(frames.packet(bench.octets(30)), bench.packets.mac, PEER_MAC)
    # The upper bits of the tag are a priority.
    sent = {
        number: frames.tagged(plain, number | bench.rng.choice((0, 0xE000))) + bytes((at,))
        for at, number in enumerate(ids)
    }
    bench.packets.top_up()
    came = [rx.frame for rx in bench.packets.receive(*sent.values())]
    return {number: frame in came for number, frame in sent.items()}


@case("rx-vlan-unfiltered", "NET-CTL-DEV-18", needs=("wire",))
def rx_vlan_unfiltered(bench: Bench) -> None:
    """Without the VLAN feature frames with any tag are delivered.

    Tags of several ids, the largest among them, with and without priority bits; with a control queue and without.
    """
    none = (Feature.NET_F_CTRL_VLAN,)
    no_queue = (*none, Feature.NET_F_CTRL_VQ, Feature.NET_F_CTRL_RX, Feature.NET_F_MQ)
    for what, without in (("", none), ("no control queue: ", no_queue)):
        bench.start(without=without)
        bench.packets.post()
        found = _tags(bench, VLANS)
        bench.check("NET-CTL-DEV-18", all(found.values()), f"{what}VLANs {VLANS} are delivered", found)


@case("rx-vlan-table", "NET-CTL-DEV-19", needs=NEEDS)
def rx_vlan_table(bench: Bench) -> None:
    """With the VLAN feature frames with a tag of the table are delivered, those with another are not.

    Ids are added and taken away one by one; after each command all of them are tried, and a frame without a tag.
    """
    _start(bench, Feature.NET_F_CTRL_VLAN)
    table: set[int] = set()

    def look(when: str) -> None:
        found = _tags(bench, VLANS)
        wanted = {number: number in table for number in VLANS}
        missing = {number for number in table if not found[number]}
        bench.check("NET-CTL-DEV-19", not missing, f"{when}: {sorted(table)} are delivered", found)
        bench.check("NET-CTL-DEV-19", found == wanted, f"{when}: others are not", found, advisory=True)
        _check(bench, "NET-CTL-DEV-19", _own(bench), True, when)

    look("no VLAN")
    for number, add in ((5, True), (0x105, True), (4094, True), (5, False), (1, True), (4094, False)):
        order = CtrlVlan.ADD if add else CtrlVlan.DEL
        demand(command(bench, CtrlClass.VLAN, order, number.to_bytes(2, "little")), f"VLAN {number}")
        table = table | {number} if add else table - {number}
        look(f"{number} {'added' if add else 'deleted'}")


@case("rx-guest-offloads", "INF-58", needs=NEEDS)
def rx_guest_offloads(bench: Bench) -> None:
    """GUEST_OFFLOADS_SET switches each offload that was negotiated; those that are off leave no trace.

    All off, each one alone with what it needs, all on again: each command is acknowledged. While they are off packets
    come with no flags and no segmentation type, although their checksums are right.
    """
    offered = bench.target.device_features()
    known = [feature for feature in OFFLOADS if has(offered, feature)]
    control = Feature.NET_F_CTRL_GUEST_OFFLOADS
    if Feature.NET_F_GUEST_CSUM not in known:
        raise Unsupported("the device offers no VIRTIO_NET_F_GUEST_CSUM")
    bench.start(want=(Feature.NET_F_CTRL_VQ, control, *known))
    bench.packets.post()
    word = sum(1 << OFFLOADS[feature] for feature in known)
    masks = [0, *(closure_of(feature, known) for feature in known), word]
    for mask in (*masks, 0, word):
        data = mask.to_bytes(8, "little")
        accepted = command(bench, CtrlClass.GUEST_OFFLOADS, CtrlGuestOffloads.SET, data)
        bench.check("INF-58", accepted, f"offloads {mask:#x} are acknowledged", accepted)
        bench.packets.top_up()
        good = frames.ethernet(frames.packet(bench.octets(30)), bench.packets.mac, PEER_MAC)
        came = [(rx.header.flags, rx.header.gso_type, rx.frame == good) for rx in bench.packets.receive(good)]
        if not mask & 1 << OFFLOADS[Feature.NET_F_GUEST_CSUM]:
            bench.check("INF-58", came == [(0, 0, True)], f"offloads {mask:#x}: no flags", came)
    _start(bench, control, Feature.NET_F_GUEST_CSUM)
    for bit in (0, 2, 63):
        data = (1 << bit).to_bytes(8, "little")
        command(bench, CtrlClass.GUEST_OFFLOADS, CtrlGuestOffloads.SET, data)
        came_now = _come(bench, _own(bench))
        bench.check("INF-58", all(came_now.values()), f"after bit {bit}, packets come", came_now)


#: Bits of GUEST_OFFLOADS_SET: those of the features, but for two (virtio v1.4 5.1.6.5.8).
OFFLOADS = {
    Feature.NET_F_GUEST_CSUM: 1,
    Feature.NET_F_GUEST_TSO4: 7,
    Feature.NET_F_GUEST_TSO6: 8,
    Feature.NET_F_GUEST_ECN: 9,
    Feature.NET_F_GUEST_UFO: 10,
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO: 46,
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM: 47,
    Feature.NET_F_GUEST_USO4: 54,
    Feature.NET_F_GUEST_USO6: 55,
}


def closure_of(feature: Feature, known: Iterable[Feature]) -> int:
    """The bit of an offload, and those of what it requires."""
    word = closure(feature, sum(1 << one for one in known))
    return sum(1 << bit for one, bit in OFFLOADS.items() if has(word, one))
