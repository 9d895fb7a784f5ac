"""Control virtqueue commands as the suite sends them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtio_ipsec.errors import AdminStatus, CommandFailed
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.numbers import CtrlAck, CtrlClass, CtrlMq, CtrlRx, Feature, has

if TYPE_CHECKING:
    from virtio_ipsec.conformance.bench import Bench


def max_pairs(bench: Bench) -> int:
    """Queue pairs that exist with the negotiated features (virtio v1.4 5.1.2)."""
    if not has(bench.features, Feature.NET_F_MQ) and not has(bench.features, Feature.NET_F_RSS):
        return 1
    return NET_CONFIG.parse(bench.target.read_config(0, NET_CONFIG.fixed_size)).max_virtqueue_pairs


def command(bench: Bench, ctrl_class: int, number: int, data: bytes) -> bool:
    """Send one command; whether the device acknowledged it. Needs VIRTIO_NET_F_CTRL_VQ."""
    index = 2 * max_pairs(bench)
    buffer = bench.queues.submit(index, bytes((ctrl_class, number)) + data, 1, fill=0xFF)

    def done() -> bool:
        bench.queues.collect(index)
        return buffer.completed

    what = f"class {ctrl_class}, command {number}"
    with bench.trace.unanswered("control", what, (data.hex()[:400],)):
        bench.wait(done, f"control command {ctrl_class}/{number}")
    bench.trace.add("control", f"{what}, ack {buffer.content.hex()}")
    return buffer.content == bytes((CtrlAck.OK,))


def use_pairs(bench: Bench, pairs: int) -> None:
    """Put ``pairs`` queue pairs into use. Raises CommandFailed when the device refuses."""
    demand(
        command(bench, CtrlClass.MQ, CtrlMq.VQ_PAIRS_SET, pairs.to_bytes(2, "little")), f"{pairs} queue pairs"
    )


def switch(bench: Bench, number: CtrlRx, on: bool) -> bool:
    """One receive mode on or off; whether the device acknowledged it."""
    return command(bench, CtrlClass.RX, number, bytes((on,)))


def demand(accepted: bool, what: str) -> None:
    """CommandFailed, which ends the case as ERROR, when the device refused what the case rests on."""
    if not accepted:
        raise CommandFailed(f"the device refused {what}", status=AdminStatus.EINVAL, qualifier=0)


def only_own_address(bench: Bench) -> None:
    """Leave promiscuous mode: unicast frames for other addresses are dropped from here on."""
    for number in (CtrlRx.PROMISC, CtrlRx.ALLMULTI):
        demand(switch(bench, number, on=False), f"{number.name} off")
