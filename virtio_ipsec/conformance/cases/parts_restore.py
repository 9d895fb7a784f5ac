"""What a member is after it was reset and its parts were given back to it (virtio v1.4 2.14, 5.1.5.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.device_parts import NEEDS, NONE, by_key
from virtio_ipsec.conformance.control import command, demand, max_pairs, switch, use_pairs
from virtio_ipsec.conformance.hashing import configure
from virtio_ipsec.conformance.parts import PartsBench
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.device_parts import QUEUE_CONFIG, Part, PartFlag, PartType, control_selector
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.net_control import MAC_TABLES, MacTables
from virtio_ipsec.wire.numbers import CtrlClass, CtrlMac, CtrlRx, CtrlVlan, Feature, Status, has

#: Not what they are after a reset.
SWITCHES = {CtrlRx.PROMISC: False, CtrlRx.ALLMULTI: True}
MORE_SWITCHES = dict.fromkeys((CtrlRx.ALLUNI, CtrlRx.NOMULTI, CtrlRx.NOUNI, CtrlRx.NOBCAST), True)
TABLES = MacTables(
    tuple(bytes.fromhex(text) for text in ("0a5670000001", "0a5770000001")), (bytes.fromhex("01005e000009"),)
)
VLANS = (5, 0x105, 4094)
OWN = bytes.fromhex("0a5670000077")
#: They cannot all be set (E111), or tell what is the device's to say.
LEFT_OUT = {PartType.PCI_COMMON_CFG, PartType.VQ_NOTIFY_CFG}


def offered(bench: Bench, *features: Feature) -> tuple[Feature, ...]:
    """Those of them that member 1 offers."""
    word = bench.owner.member(1).device_features()
    return tuple(feature for feature in features if has(word, feature))


def same(one: Part | None, other: Part) -> bool:
    """Whether two parts say the same: the order within a table of the control queue is the device's (E113)."""
    if one is None or other.part_type != PartType.NET_CVQ_CFG:
        return one is not None and one.value == other.value
    return sorted(one.value) == sorted(other.value)


def given_back(it: PartsBench, what: str) -> dict[tuple[int, bytes], Part]:
    """Stop the member, reset it, set its parts in two commands and resume it; the parts that were set."""
    bench = it.bench
    it.stop()
    parts = [
        part for part in it.get() if part.part_type not in LEFT_OUT and not part.flags & PartFlag.OPTIONAL
    ]
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
    return by_key(parts)


def filters(vf: Bench) -> None:
    """Receive modes, tables, an address, VLANs and queue pairs."""
    features = vf.features
    if has(features, Feature.NET_F_CTRL_RX):
        for number, on in SWITCHES.items():
            demand(switch(vf, number, on), number.name)
        tables = command(vf, CtrlClass.MAC, CtrlMac.TABLE_SET, MAC_TABLES.build(TABLES))
        demand(tables, "a MAC table")
    if has(features, Feature.NET_F_CTRL_RX_EXTRA):
        for number, on in MORE_SWITCHES.items():
            demand(switch(vf, number, on), number.name)
    if has(features, Feature.NET_F_CTRL_MAC_ADDR):
        demand(command(vf, CtrlClass.MAC, CtrlMac.ADDR_SET, OWN), "an address")
    if has(features, Feature.NET_F_CTRL_VLAN):
        for vlan in VLANS:
            demand(command(vf, CtrlClass.VLAN, CtrlVlan.ADD, vlan.to_bytes(2, "little")), f"VLAN {vlan}")
    if max_pairs(vf) > 1:
        use_pairs(vf, 2)


def hashes(vf: Bench) -> None:
    """All hash types, with a key."""
    config = NET_CONFIG.parse(vf.target.read_config(0, NET_CONFIG.fixed_size))
    key = vf.octets(config.rss_max_key_size)
    demand(configure(vf, config.supported_hash_types, key), "hash types")


@case("parts-given-back", "DP-DEV-05", needs=NEEDS)
def restored(bench: Bench) -> None:
    """Parts that are given back to a member after its reset make it what it was.

    The driver of a member sets receive modes, tables, VLANs, an address, queue pairs and, each in a life of its own,
    hash types without and with RSS. The stopped member's parts are read, its driver resets it, and what was read is
    set in two commands. When it is resumed, every part but those that are the device's to say (and the common
    configuration, E111) has the value that was set, and status and features are there for the member's driver.
    """
    queues = offered(
        bench,
        Feature.NET_F_CTRL_VQ, Feature.NET_F_CTRL_RX, Feature.NET_F_CTRL_RX_EXTRA, Feature.NET_F_CTRL_VLAN,
        Feature.NET_F_CTRL_MAC_ADDR, Feature.NET_F_MQ,
    )  # fmt: skip
    if Feature.NET_F_CTRL_VQ not in queues:
        raise Unsupported("members have no control queue")
    rss, report = offered(bench, Feature.NET_F_RSS), offered(bench, Feature.NET_F_HASH_REPORT)
    lives: dict[str, tuple[tuple[Feature, ...], tuple[Feature, ...], Callable[[Bench], None]]] = {
        "filters": (queues, (Feature.NET_F_RSS, Feature.NET_F_HASH_REPORT), filters)
    }
    if report:
        control = (Feature.NET_F_CTRL_VQ, *report)
        lives["hashes"] = (control, (Feature.NET_F_RSS,), hashes)
    if rss:
        lives["RSS"] = ((Feature.NET_F_CTRL_VQ, *rss), (), hashes)
    for what, (want, without, prepare) in lives.items():
        it = PartsBench(bench, want=want, without=without)
        prepare(it.vf)
        features, status = it.vf.target.driver_features(), it.vf.target.status()
        given_back(it, what)
        target = it.vf.target
        bench.check(
            "DP-DEV-05",
            (target.driver_features(), target.status()) == (features, status),
            f"{what}: the driver sees its features and its status",
            f"{target.driver_features():#x}, {target.status():#x}",
        )
        fewer_vlans(it, what)


def fewer_vlans(it: PartsBench, what: str) -> None:
    """A table of VLANs that is set takes the place of the one that is there; other formats may be refused (E113)."""
    part = by_key(it.get()).get((PartType.NET_CVQ_CFG, control_selector(CtrlClass.VLAN, CtrlVlan.ADD)))
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
