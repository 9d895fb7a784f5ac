"""The common configuration structure of a PCI function (virtio v1.4 4.1.4.3), register by register."""

from __future__ import annotations

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.control import command
from virtio_ipsec.conformance.pci import Registers
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.transport.virtio_pci.tables import FEATURE_WORDS, CommonCfg, Structure
from virtio_ipsec.wire.numbers import CtrlClass, CtrlMac, Feature, Status, has

_WORD = 0xFFFFFFFF
#: Queue indices are of 16 bits.
_INDICES = 0x10000
#: Selectors of feature words that no version of the specification defines.
_BEYOND = (4, 5, 6, 7, 8, 0x42, 0x10000, 0x80000000, _WORD)
_MAC = bytes.fromhex("02c0ffee0001")


def shown(pci: Registers, number: int) -> int:
    """device_feature of one word."""
    pci.put(CommonCfg.device_feature_select, number)
    return pci.get(CommonCfg.device_feature)


def accepted(pci: Registers, number: int) -> int:
    """driver_feature of one word."""
    pci.put(CommonCfg.driver_feature_select, number)
    return pci.get(CommonCfg.driver_feature)


def beyond_all(pci: Registers, bench: Bench) -> list[int]:
    """Indices behind every queue that can exist, and behind where one may lie that was not negotiated."""
    first = pci.get(CommonCfg.num_queues)
    if has(bench.features, Feature.F_ADMIN_VQ):
        first = max(first, pci.get(CommonCfg.admin_queue_index) + pci.get(CommonCfg.admin_queue_num))
    return [index for index in (first + 1, first + 2, 0x7FFF, 0xFFFF) if first < index < _INDICES]


@case("pci-common-capability", "PCI-CC-DEV-01", "PCI-CC-DEV-02", needs=("pci",))
def common_capability(bench: Bench) -> None:
    """There is a common configuration capability, and its structure lies at a multiple of four.

    The list of capabilities in the first 256 bytes of the configuration space is followed.
    """
    found = bench.pci.structures(Structure.COMMON_CFG)
    bench.require("PCI-CC-DEV-02", bool(found), "a capability of type COMMON_CFG is listed", "none")
    for cap in found:
        where = f"{cap.offset:#x} of BAR {cap.bar}"
        bench.check("PCI-CC-DEV-01", cap.offset % 4 == 0, "its offset is a multiple of 4", where)


@case("pci-feature-words", "PCI-CC-DEV-03", needs=("pci",))
def feature_words(bench: Bench) -> None:
    """device_feature shows the word that device_feature_select says, for any selector.

    Four words hold the features that are defined (E10): asked for in both directions each is the same, words 2 and 3 do
    not repeat words 0 and 1, and behind the fourth all bits are zero.
    """
    pci = bench.pci
    words = [shown(pci, number) for number in range(FEATURE_WORDS)]
    again = [shown(pci, number) for number in reversed(range(FEATURE_WORDS))][::-1]
    text = " ".join(f"{word:08x}" for word in words)
    bench.check("PCI-CC-DEV-03", words == again, "each selector shows the same word each time", text)
    bench.check("PCI-CC-DEV-03", words[:2] != words[2:], "words 2 and 3 are features of their own", text)
    version_1 = bool(words[1] & 1)
    bench.check("PCI-CC-DEV-03", version_1, "word 1 begins with bit 32, VERSION_1", f"{words[1]:08x}")
    for number in _BEYOND:
        word = shown(pci, number)
        bench.check("PCI-CC-DEV-03", word == 0, f"no feature bits with selector {number:#x}", f"{word:08x}")


@case("pci-driver-feature-words", "PCI-CC-DEV-04", needs=("pci",))
def driver_feature_words(bench: Bench) -> None:
    """driver_feature shows the offered bits that the driver wrote, for each selector.

    All offered bits, then those of one word alone, then none. What was written as zero may not show, for it is valid.
    """
    pci = bench.pci
    words = [shown(pci, number) for number in range(FEATURE_WORDS)]
    bench.target.write_status(Status.ACKNOWLEDGE)
    bench.target.write_status(Status.ACKNOWLEDGE | Status.DRIVER)
    alone = [
        [word if here == number else 0 for here, word in enumerate(words)] for number in range(FEATURE_WORDS)
    ]
    for wanted in (words, *alone, [0] * FEATURE_WORDS):
        for number, word in enumerate(wanted):
            pci.put(CommonCfg.driver_feature_select, number)
            pci.put(CommonCfg.driver_feature, word)
        seen = [accepted(pci, number) & words[number] for number in range(FEATURE_WORDS)]
        written, read = (" ".join(f"{word:08x}" for word in each) for each in (wanted, seen))
        bench.check("PCI-CC-DEV-04", seen == wanted, f"driver_feature shows {written}", read)


@case("pci-config-generation", "PCI-CC-DEV-05", needs=("pci", "ctrl_vq"))
def config_generation(bench: Bench) -> None:
    """config_generation has changed when the configuration changed after it was read.

    The driver changes the MAC address over the control queue, more than once, and reads it in the configuration.
    """
    pci = bench.pci
    bench.start(want=(Feature.NET_F_CTRL_VQ, Feature.NET_F_CTRL_MAC_ADDR, Feature.NET_F_MAC))
    seen = 0
    for last in range(1, 5):
        before, old = pci.get(CommonCfg.config_generation), bench.target.read_config(0, 6)
        command(bench, CtrlClass.MAC, CtrlMac.ADDR_SET, _MAC[:5] + bytes([last]))
        new = bench.target.read_config(0, 6)
        after = pci.get(CommonCfg.config_generation)
        if new != old:
            seen += 1
            text = f"{before} before and {after} after"
            bench.check("PCI-CC-DEV-05", after != before, "another generation with another address", text)
    if not seen:
        raise Unsupported("the driver cannot change what the configuration shows")


@case("pci-reset", "PCI-CC-DEV-06", "PCI-CC-DEV-07", needs=("pci",))
def reset(bench: Bench) -> None:
    """Zero in device_status resets, and reads back; afterwards no queue is enabled.

    With all queues at work, the administration queue included.
    """
    pci = bench.pci
    bench.start()
    indices = sorted(bench.queues.enabled)
    pci.put(CommonCfg.device_status, 0)
    bench.wait(lambda: pci.get(CommonCfg.device_status) == 0, "device_status 0 after 0 was written")
    seen = [pci.get(CommonCfg.device_status) for _ in range(4)]
    bench.check("PCI-CC-DEV-06", not any(seen), "device_status stays 0", seen)
    for index in indices:
        value = pci.of(index, CommonCfg.queue_enable)
        bench.check("PCI-CC-DEV-07", value == 0, f"queue_enable of queue {index} is 0", value)


@case("pci-queue-reset-after-reset", "PCI-CC-DEV-08", "PCI-CC-DEV-09", needs=("pci", "queue_reset"))
def queue_reset_idle(bench: Bench) -> None:
    """queue_reset is zero after a device reset, and after a queue was enabled.

    Of every queue; the second also when the queue had been reset by itself before.
    """
    pci = bench.pci
    bench.start()
    indices = sorted(bench.queues.enabled)
    for index in indices:
        value = pci.of(index, CommonCfg.queue_reset)
        bench.check(
            "PCI-CC-DEV-09", value == 0, f"queue_reset of queue {index} is 0 once it is enabled", value
        )
    bench.target.reset_queue(1)
    bench.queues.drop(1)
    bench.queues.enable(1)
    value = pci.of(1, CommonCfg.queue_reset)
    bench.check("PCI-CC-DEV-09", value == 0, "queue_reset of queue 1 is 0 once it is enabled again", value)
    bench.negotiate(bench.features)
    for index in indices:
        value = pci.of(index, CommonCfg.queue_reset)
        bench.check("PCI-CC-DEV-08", value == 0, f"queue_reset of queue {index} is 0 after a reset", value)


@case("pci-queue-reset", "PCI-CC-DEV-10", needs=("pci", "queue_reset"))
def queue_reset(bench: Bench) -> None:
    """1 in queue_reset resets the queue: it reads 1 while that lasts, then queue_reset and queue_enable read 0.

    Every queue in turn, the others enabled; then it is enabled again.
    """
    pci = bench.pci
    bench.start()
    indices = sorted(bench.queues.enabled)
    for index in bench.sweep(indices):
        pci.put(CommonCfg.queue_select, index)
        pci.put(CommonCfg.queue_reset, 1)
        seen: list[int] = []

        def over(index: int = index, seen: list[int] = seen) -> bool:
            seen.append(pci.of(index, CommonCfg.queue_reset))
            return seen[-1] != 1

        bench.wait(over, f"queue_reset of queue {index} 0 again")
        bench.check("PCI-CC-DEV-10", seen[-1] == 0, f"queue_reset of queue {index} reads 1, then 0", seen[-1])
        value = pci.of(index, CommonCfg.queue_enable)
        bench.check("PCI-CC-DEV-10", value == 0, f"queue_enable of queue {index} is 0 after its reset", value)
        others = [other for other in indices if other != index and not pci.of(other, CommonCfg.queue_enable)]
        bench.check("PCI-CC-DEV-10", not others, "the other queues stay enabled", others)
        bench.target.reset_queue(index)  # the test bed's side of it
        bench.queues.drop(index)
        bench.queues.enable(index)
        value = pci.of(index, CommonCfg.queue_enable)
        bench.check("PCI-CC-DEV-10", value == 1, f"queue {index} can be enabled again", value)


@case("pci-queue-size", "PCI-CC-DEV-11", "PCI-CC-DEV-12", needs=("pci",))
def queue_size(bench: Bench) -> None:
    """queue_size is zero without such a queue and, without RING_PACKED, a power of two otherwise.

    After FEATURES_OK, of all queues and of indices behind them.
    """
    pci = bench.pci
    bench.start(without=(Feature.F_RING_PACKED,), driver_ok=False)
    bench.negotiate(bench.features)
    for index in range(pci.get(CommonCfg.num_queues)):
        size = pci.of(index, CommonCfg.queue_size)
        bench.check("PCI-CC-DEV-12", size & (size - 1) == 0, f"queue {index}: zero or a power of two", size)
    for index in beyond_all(pci, bench):
        size = pci.of(index, CommonCfg.queue_size)
        bench.check("PCI-CC-DEV-11", size == 0, f"no queue {index}: size 0", size)


@case("pci-admin-queue-registers", "PCI-CC-DEV-13", "PCI-CC-DEV-14", needs=("pci", "admin"))
def admin_queue_registers(bench: Bench) -> None:
    """Administration queues lie behind all others, and their indices have 16 bits.

    admin_queue_index against num_queues, and with admin_queue_num; and each of them is available.
    """
    pci = bench.pci
    bench.start(want=(Feature.F_ADMIN_VQ,), driver_ok=False)
    first, count = pci.get(CommonCfg.admin_queue_index), pci.get(CommonCfg.admin_queue_num)
    queues = pci.get(CommonCfg.num_queues)
    text = f"index {first}, {queues} queues"
    bench.check("PCI-CC-DEV-13", first >= queues, "admin_queue_index is not below num_queues", text)
    text = f"{count} from {first}"
    bench.check(
        "PCI-CC-DEV-14", count <= _INDICES - first, "admin_queue_num leaves room for all indices", text
    )


@case("pci-sriov-feature", "BAS-RSVD-12", needs=("pci",))
def sriov_feature(bench: Bench) -> None:
    """VIRTIO_F_SR_IOV is offered by functions with the SR-IOV capability, and by no other.

    The first is a recommendation.
    """
    offered = has(bench.target.device_features(), Feature.F_SR_IOV)
    if bench.pci.has_sriov:
        bench.check(
            "BAS-RSVD-12", offered, "offered, as the capability is there", "not offered", advisory=True
        )
    else:
        bench.check("BAS-RSVD-12", not offered, "not offered, as there is no SR-IOV capability", "offered")
