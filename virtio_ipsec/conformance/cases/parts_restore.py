"""What a member is after it was reset and its parts were given back to it (virtio v1.4 2.14, 5.1.5.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.device_parts import NEEDS, NONE, by_key
from virtio_ipsec.conformance.control import command, demand, max_pairs
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.conformance.parts import PartsBench
from virtio_ipsec.conformance.verdict import Unsupported, Wedged
from virtio_ipsec.errors import RingError, WireError
from virtio_ipsec.wire.device_parts import QUEUE_CONFIG, Part, PartFlag, PartType, control_selector
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.net_control import (
    HASH_CONFIG,
    MAC_TABLES,
    RSS_CONFIG,
    HashConfig,
    MacTables,
    RssConfig,
)
from virtio_ipsec.wire.numbers import CtrlClass, CtrlMac, CtrlMq, CtrlRx, CtrlVlan, Feature, Status, has

#: Not what they are after a reset.
SWITCHES = {CtrlRx.PROMISC: False, CtrlRx.ALLMULTI: True}
MORE_SWITCHES = dict.fromkeys((CtrlRx.ALLUNI, CtrlRx.NOMULTI, CtrlRx.NOUNI, CtrlRx.NOBCAST), True)
#: Those with which it depends on the tables what comes.
QUIET = {CtrlRx.PROMISC: False, CtrlRx.ALLMULTI: False}
TABLES = MacTables(
    tuple(bytes.fromhex(text) for text in ("0a5670000001", "0a5770000001")), (bytes.fromhex("01005e000009"),)
)
#: Neighbours of those in the tables, and of the VLANs.
OTHERS = tuple(bytes.fromhex(text) for text in ("0a5670000002", "01005e00000a"))
VLANS, OTHER_VLANS = (5, 0x105, 4094), (6, 0x104, 4093)
OWN = bytes.fromhex("0a5670000077")
MAC_TABLE = control_selector(CtrlClass.MAC, CtrlMac.TABLE_SET)
VLAN_TABLE = control_selector(CtrlClass.VLAN, CtrlVlan.ADD)
#: They cannot all be set (E111), or tell what is the device's to say.
LEFT_OUT = {PartType.PCI_COMMON_CFG, PartType.VQ_NOTIFY_CFG}
PAIRS = 2
#: Receive buffers of a queue: enough for all frames before and after.
BUFFERS = 48


class Settings:
    """Control commands of a member's driver, and what each has set last: selector -> the command's data."""

    def __init__(self, vf: Bench) -> None:
        self.vf = vf
        self.made: dict[bytes, bytes] = {}

    def set(self, ctrl_class: CtrlClass, number: int, data: bytes) -> None:
        """One command, which has to work."""
        demand(command(self.vf, ctrl_class, number, data), f"{ctrl_class.name} {number}")
        self.made[control_selector(ctrl_class, number)] = data

    def has(self, feature: Feature) -> bool:
        """Whether it was negotiated."""
        return has(self.vf.features, feature)


def tables(it: Settings, switches: Mapping[CtrlRx, bool] = QUIET) -> None:
    """Receive modes, tables, an address, VLANs and queue pairs."""
    if it.has(Feature.NET_F_CTRL_RX):
        for number, on in switches.items():
            it.set(CtrlClass.RX, number, bytes((on,)))
        it.set(CtrlClass.MAC, CtrlMac.TABLE_SET, MAC_TABLES.build(TABLES))
    if it.has(Feature.NET_F_CTRL_MAC_ADDR):
        it.set(CtrlClass.MAC, CtrlMac.ADDR_SET, OWN)
    if it.has(Feature.NET_F_CTRL_VLAN):
        for vlan in VLANS:
            it.set(CtrlClass.VLAN, CtrlVlan.ADD, vlan.to_bytes(2, "little"))
        it.made[VLAN_TABLE] = b"".join(vlan.to_bytes(2, "little") for vlan in VLANS)
    if it.has(Feature.NET_F_MQ) and max_pairs(it.vf) >= PAIRS:
        it.set(CtrlClass.MQ, CtrlMq.VQ_PAIRS_SET, PAIRS.to_bytes(2, "little"))


def modes(it: Settings) -> None:
    """The same with every receive mode."""
    tables(it, {**SWITCHES, **(MORE_SWITCHES if it.has(Feature.NET_F_CTRL_RX_EXTRA) else {})})


def _config(it: Settings) -> tuple[int, bytes, int]:
    """(all hash types, the longest key, the longest indirection table)."""
    config = NET_CONFIG.parse(it.vf.target.read_config(0, NET_CONFIG.fixed_size))
    key = it.vf.octets(config.rss_max_key_size)
    return config.supported_hash_types, key, config.rss_max_indirection_table_length


def hashes(it: Settings) -> None:
    """All hash types, with a key."""
    types, key, _ = _config(it)
    it.set(CtrlClass.MQ, CtrlMq.HASH_CONFIG, HASH_CONFIG.build(HashConfig(types, key)))


def steering(it: Settings) -> None:
    """RSS over two queue pairs, if there are two."""
    types, key, longest = _config(it)
    many = max_pairs(it.vf) >= PAIRS
    table = (1, 0, 0, 1) if many and longest >= 4 else (0,)
    rss = RssConfig(types, int(many), table, 1 + many, key)
    it.set(CtrlClass.MQ, CtrlMq.RSS_CONFIG, RSS_CONFIG.build(rss))


@dataclass(frozen=True, slots=True)
class Life:
    """What the driver of a member accepts and sets up."""

    name: str
    needs: tuple[Feature, ...]
    prepare: Callable[[Settings], None]
    wished: tuple[Feature, ...] = ()

    def wants(self, offered: int) -> tuple[Feature, ...]:
        """What it accepts besides the usual."""
        return (*self.needs, *(feature for feature in self.wished if has(offered, feature)))


_HASH, _RSS, _EXTRA = Feature.NET_F_HASH_REPORT, Feature.NET_F_RSS, Feature.NET_F_CTRL_RX_EXTRA
_WISHED = (
    Feature.NET_F_CTRL_RX,
    Feature.NET_F_CTRL_VLAN,
    Feature.NET_F_CTRL_MAC_ADDR,
    Feature.NET_F_MQ,
)
LIVES = (
    Life("tables", (), tables, _WISHED),
    Life("modes", (_EXTRA,), modes, _WISHED),
    Life("hashes", (_HASH,), hashes),
    Life("RSS", (_RSS,), steering),
    Life("RSS and hashes", (_RSS, _HASH), steering),
)


def same(one: Part | None, other: Part) -> bool:
    """Whether two parts say the same: the order within a table of the control queue is the device's (E113)."""
    if one is None or one.part_type != PartType.NET_CVQ_CFG:
        return one is not None and one.value == other.value
    if one.selector == MAC_TABLE:
        try:
            ours, theirs = MAC_TABLES.parse(one.value), MAC_TABLES.parse(other.value)
        except WireError:
            return False
        return all(
            sorted(a) == sorted(b)
            for a, b in ((ours.unicast, theirs.unicast), (ours.multicast, theirs.multicast))
        )
    if one.selector == VLAN_TABLE:
        return sorted(one.value) == sorted(other.value)
    return one.value == other.value


def told(bench: Bench, what: str, made: Mapping[bytes, bytes], parts: Iterable[Part]) -> None:
    """There is a part for all that was set, and it says what was set."""
    found = by_key(tuple(parts))
    for selector, data in made.items():
        part = found.get((PartType.NET_CVQ_CFG, selector))
        text = f"{what}: class {selector[0]}, command {selector[1]} is in the part of this selector"
        if part is not None and selector == VLAN_TABLE and len(part.value) != len(data):
            bench.reading("E113", f"a table of {len(data) // 2} VLANs takes {len(part.value)} bytes")
            continue
        told = same(part, Part(PartType.NET_CVQ_CFG, data, 0, selector))
        bench.check(
            "INF-61", told, f"{text}: {data.hex()[:80]}", part.value.hex()[:80] if part else "no part"
        )


def samples(vf: Bench) -> dict[str, bytes]:
    """Frames that come or not, as tables and VLANs say."""
    sent = {}
    for target in (vf.packets.mac, *TABLES.unicast, *TABLES.multicast, *OTHERS):
        sent[f"to {target.hex(':')}"] = frames.ethernet(frames.packet(vf.octets(30)), target, PEER_MAC)
    for vlan in (*VLANS, *OTHER_VLANS):
        plain = frames.ethernet(frames.packet(vf.octets(30)), vf.packets.mac, PEER_MAC)
        sent[f"VLAN {vlan}"] = frames.tagged(plain, vlan)
    return sent


def come(vf: Bench, sent: Mapping[str, bytes]) -> list[str]:
    """Which of them reach the driver. Wedged and RingError of a device that has lost its queues."""
    came = [rx.frame for rx in vf.packets.receive(*sent.values())]
    return [name for name, frame in sent.items() if frame in came]


def given_back(it: PartsBench, what: str, made: Mapping[bytes, bytes]) -> None:
    """Stop the member, reset it, set its parts in two commands and resume it."""
    bench = it.bench
    it.stop()
    every = it.get()
    told(bench, what, made, every)
    parts = [part for part in every if part.part_type not in LEFT_OUT and not part.flags & PartFlag.OPTIONAL]
    it.vf.target.reset()
    for some in (parts[:2], parts[2:]):
        reply = it.set(*some)
        bench.check("DP-DEV-05", reply.ok, f"{what}: the parts of a member can be given back to it", reply)
    it.resume()
    after = by_key(it.get())
    for part in parts:
        found = after.get(part.key)
        seen = found.value.hex()[:80] if found else "no such part"
        text = f"{what}: part {part.part_type:#x} {part.selector.hex()} is {part.value.hex()[:80]}"
        bench.check("DP-DEV-05", same(found, part), text, seen)
    more = sorted(kind for kind, _ in after.keys() - by_key(parts).keys() if kind == PartType.NET_CVQ_CFG)
    bench.check("DP-DEV-05", not more, f"{what}: no part of the control queue more than was set", more)


@case("parts-given-back", "DP-DEV-05", "INF-61", needs=NEEDS)
def restored(bench: Bench) -> None:
    """Parts tell what a member's driver has set, and make the member that again after a reset.

    The driver of a member sets, each in a life of its own, tables, VLANs, an address and queue pairs without and with
    all receive modes, hash types, and RSS without and with hash reports. The stopped member's parts are read: one for
    each of these commands, with its data. Then the driver resets the member, and what was read is set in two commands.
    When it is resumed, every part but those that are the device's to say (and the common configuration, E111) has the
    value that was set, and status and features are there for the member's driver. If the test bed has a wire, the
    frames that came before come again, and no others (a warning if the queues do not go on, E112).
    """
    offered = bench.owner.member(1).device_features()
    if not has(offered, Feature.NET_F_CTRL_VQ):
        raise Unsupported("members have no control queue")
    for life in LIVES:
        if not all(has(offered, feature) for feature in life.needs):
            continue
        want = (Feature.NET_F_CTRL_VQ, *life.wants(offered))
        unwanted = [feature for feature in (_RSS, _HASH, _EXTRA) if feature not in want]
        it = PartsBench(bench, want=want, without=unwanted)
        vf, target = it.vf, it.vf.target
        settings = Settings(vf)
        life.prepare(settings)
        features, status = target.driver_features(), target.status()
        watched = life.prepare is tables and target.has_wire
        if watched:
            for queue in range(min(max_pairs(vf), PAIRS)):
                vf.packets.post(queue=queue, count=BUFFERS)
            sent = samples(vf)
            before = come(vf, sent)
        given_back(it, life.name, settings.made)
        bench.check(
            "DP-DEV-05",
            (target.driver_features(), target.status()) == (features, status),
            f"{life.name}: the driver sees its features and its status",
            f"{target.driver_features():#x}, {target.status():#x}",
        )
        if watched:
            try:
                again = come(vf, sent)
            except (Wedged, RingError) as error:
                bench.check("DP-DEV-05", False, "frames come after the resumption", error, advisory=True)
            else:
                bench.check("DP-DEV-05", again == before, f"these frames come: {before}", again)
        fewer_vlans(it, life.name)


def fewer_vlans(it: PartsBench, what: str) -> None:
    """A table of VLANs that is set takes the place of the one that is there; other formats may be refused (E113)."""
    part = by_key(it.get()).get((PartType.NET_CVQ_CFG, VLAN_TABLE))
    if part is None or len(part.value) <= 2:
        return
    it.stop()
    wanted = replace(part, value=part.value[:2])
    taken = it.set(wanted).ok
    it.resume()
    found = by_key(it.get()).get(part.key)
    if taken:
        shown = found.value.hex() if found else "no table"
        it.bench.check("DP-DEV-05", found == wanted, f"{what}: the VLANs that were set, and no others", shown)


@case("parts-other-state", "DP-DEV-05", "DP-DEV-22", needs=NEEDS)
def other_state(bench: Bench) -> None:
    """A member becomes what parts say, and a reset by its driver makes an end of that.

    A stopped member gets a queue of every size that a driver may give it, and its own one again; then a status with
    DEVICE_NEEDS_RESET. If the device takes that, it is the status after the resumption. The driver resets the member:
    status 0. What was set before a reset of the stopped member is not what it is resumed with, and nothing of a member
    at work is left when VF Enable was clear in between.
    """
    it = PartsBench(bench)
    target = it.vf.target
    it.stop()
    parts = by_key(it.get())
    queue = next(part for part in parts.values() if part.part_type == PartType.VQ_CFG)
    config = QUEUE_CONFIG.parse(queue.value)
    most = target.queue_max_size(int.from_bytes(queue.selector[:2], "little"))
    for size in (1, most, config.queue_size):
        reply = it.set(replace(queue, value=QUEUE_CONFIG.build(replace(config, queue_size=size))))
        bench.check("DP-DEV-05", reply.ok, f"a queue of {size} entries", reply)
    status = parts[PartType.DEVICE_STATUS, NONE]
    value = status.value[0] | Status.DEVICE_NEEDS_RESET
    taken = it.set(replace(status, value=bytes((value,)))).ok
    it.resume()
    if taken:
        bench.check("DP-DEV-05", target.status() == value, f"status {value:#x}", f"{target.status():#x}")
    it.stop()
    it.set(parts[PartType.DRV_FEATURES, NONE], status)
    target.reset()
    it.resume()
    bench.check("DP-DEV-22", target.status() == 0, "status 0 after a reset", f"{target.status():#x}")
    zero = not any(by_key(it.get())[PartType.DRV_FEATURES, NONE].value)
    bench.check("DP-DEV-22", zero, "no driver features after a reset", "some")
    it = PartsBench(bench)
    bench.owner.enable_vfs(None)
    bench.owner.enable_vfs(bench.owner.total_vfs)
    target = bench.owner.member(1)
    state = target.status(), target.driver_features()
    bench.check("DP-DEV-22", state == (0, 0), "a member that has appeared anew is a fresh one", f"{state}")
