"""On which receive queue a packet comes: after a reset, by automatic steering, by RSS, and when queues are reset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.control import command, demand, max_pairs, use_pairs
from virtio_ipsec.conformance.frames import TCP, UDP, ethernet
from virtio_ipsec.conformance.hashing import KEY_OCTETS, OTHER, Flow, arriving, new_flow
from virtio_ipsec.conformance.packets import PEER_MAC, RxFrame
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.net_config import NET_CONFIG
from virtio_ipsec.wire.net_control import RSS_CONFIG, RssConfig
from virtio_ipsec.wire.numbers import CtrlClass, CtrlMq, Feature, HashReport

#: Queue pairs that a case uses at most; buffers lie on all of them.
PAIRS = 4
FLOWS = 24
BUFFERS = 32
AT_ONCE = 8
KINDS = ((4, TCP), (4, UDP), (6, TCP), (6, UDP), (4, OTHER), (6, OTHER))


def _start(bench: Bench, *, rss: bool = False, want: Iterable[Feature] = ()) -> int:
    """Start with several queue pairs and buffers on all receive queues; how many pairs the case may use."""
    feature = Feature.NET_F_RSS if rss else Feature.NET_F_MQ
    bench.start(want=(feature, Feature.NET_F_CTRL_VQ, *want))
    most = max_pairs(bench)
    if most < 2:
        raise Unsupported("the device has a single queue pair")
    for queue in range(most):
        bench.packets.post(queue=queue, count=BUFFERS)
    return min(most, PAIRS)


def _flows(bench: Bench, count: int = FLOWS) -> list[Flow]:
    return [new_flow(bench, *KINDS[number % len(KINDS)]) for number in range(count)]


def _receive(bench: Bench, flows: Sequence[Flow]) -> list[RxFrame]:
    """What comes of a packet of each of these flows; a few at a time, for queues may be short."""
    came = []
    for at in range(0, len(flows), AT_ONCE):
        for queue in range(max_pairs(bench)):
            if 2 * queue in bench.queues.enabled:
                bench.packets.post(queue=queue, count=BUFFERS)
        packets = (flow.packet(bench.octets(40)) for flow in flows[at : at + AT_ONCE])
        came += bench.packets.receive(*(arriving(bench, packet) for packet in packets))
    return came


@case("rx-steering-after-reset", "NET-CTL-DEV-21", needs=("wire", "ctrl_vq", "mq"))
def rx_steering_after_reset(bench: Bench) -> None:
    """After a reset packets come on receiveq1 alone, whatever was configured before it.

    Packets of many flows before any multiqueue command; then several pairs are put into use and flows sent on them,
    the device is reset, and packets come again.
    """

    def only_first(when: str) -> None:
        queues = [rx.queue for rx in _receive(bench, flows)]
        good = queues == [0] * len(flows)
        bench.check("NET-CTL-DEV-21", good, f"{when}: {len(flows)} packets on receiveq1", queues)

    pairs = _start(bench)
    flows = _flows(bench)
    only_first("after the first reset")
    use_pairs(bench, pairs)
    for number, flow in enumerate(flows):
        _send(bench, flow.back(), number % pairs)
    _start(bench)
    only_first("after another reset")


def _send(bench: Bench, flow: Flow, pair: int) -> None:
    frame = ethernet(flow.packet(bench.octets(40)), PEER_MAC, bench.packets.mac)
    bench.packets.transmit(frame, queue=pair)


@case("rx-steering-pairs", "NET-CTL-DEV-22", needs=("wire", "ctrl_vq", "mq"))
def rx_steering_pairs(bench: Bench) -> None:
    """No packet comes on a queue beyond the pairs in use, after more and after fewer were asked for.

    Many flows after each of several VQ_PAIRS_SET; flows that were sent on a pair that is no longer in use, too. All
    packets come.
    """
    most = _start(bench)
    flows = _flows(bench)
    for pairs in (2, most, 2, 1):
        use_pairs(bench, pairs)
        for number, flow in enumerate(flows):
            _send(bench, flow.back(), number % pairs)
        if pairs > 1:
            use_pairs(bench, pairs - 1)
        queues = [rx.queue for rx in _receive(bench, flows)]
        limit = max(pairs - 1, 1)
        good = len(queues) == len(flows) and all(queue < limit for queue in queues)
        bench.check("NET-CTL-DEV-22", good, f"{limit} pairs: {len(flows)} packets on them", queues)


@case("rx-steering-refused", "NET-CTL-DEV-22", needs=("wire", "ctrl_vq", "mq"))
def rx_steering_refused(bench: Bench) -> None:
    """A number of pairs that there is not changes nothing, whether the device refuses it or not.

    No pair, and one more than the device has; afterwards packets come on queues that exist.
    """
    _start(bench)
    most = max_pairs(bench)
    flows = _flows(bench)
    use_pairs(bench, 1)
    for wrong in (0, most + 1, 0x8001):
        accepted = command(bench, CtrlClass.MQ, CtrlMq.VQ_PAIRS_SET, wrong.to_bytes(2, "little"))
        queues = [rx.queue for rx in _receive(bench, flows)]
        good = len(queues) == len(flows) and (accepted or not any(queues))
        what = f"{wrong} pairs, {'accepted' if accepted else 'refused'}"
        bench.check("NET-CTL-DEV-22", good, f"{what}: packets come on queues in use", queues)


@case("rx-steering-follows", "INF-52", needs=("wire", "ctrl_vq", "mq"))
def rx_steering_follows(bench: Bench) -> None:
    """Packets of a flow come on the queue of the pair on which the driver sent it last.

    TCP and UDP over IPv4 and IPv6, and another protocol; each flow sent on one pair, then on another, with all pairs in
    use and with two. Whatever comes of the same flow stays together. The text says SHOULD: another queue is a warning.
    """
    most = _start(bench)
    for pairs in dict.fromkeys((most, 2)):
        use_pairs(bench, pairs)
        for version, protocol in KINDS:
            flow = new_flow(bench, version, protocol)
            for pair in dict.fromkeys((pairs - 1, 0, 1)):
                _send(bench, flow.back(), pair)
                queues = [rx.queue for rx in _receive(bench, [flow] * 3)]
                what = f"{pairs} pairs, IPv{version}, protocol {protocol}, sent on pair {pair + 1}"
                good = queues == [pair] * 3
                bench.check("INF-52", good, f"{what}: comes there", queues, advisory=len(set(queues)) == 1)
    # Neighbours that differ in one respect are flows of their own.
    flow = new_flow(bench, 4, UDP)
    other_ports = (flow.ports[:2] + bench.octets(2), bench.octets(2) + flow.ports[2:])
    neighbours = [
        *(replace(flow, ports=ports) for ports in other_ports),
        replace(flow, protocol=TCP),
        replace(flow, source=flow.source[:3] + bytes((flow.source[3] ^ 1,))),
        replace(flow, target=flow.target[:3] + bytes((flow.target[3] ^ 1,))),
    ]
    _send(bench, flow.back(), 0)
    for neighbour in neighbours:
        _send(bench, neighbour.back(), 1)
        queues = [rx.queue for rx in _receive(bench, [flow, neighbour])]
        bench.check("INF-52", queues == [0, 1], "two flows, each on its queue", queues, advisory=True)


@case("rx-steering-queue-reset", "NET-CTL-DEV-23", needs=("wire", "ctrl_vq", "mq", "queue_reset"))
def rx_steering_queue_reset(bench: Bench) -> None:
    """Packets for a receive queue that is being reset go to another one.

    Flows are bound to every pair, then one queue is reset: all packets come, none on it. The text says SHOULD.
    """
    pairs = _start(bench)
    use_pairs(bench, pairs)
    flows = _flows(bench)
    for number, flow in enumerate(flows):
        _send(bench, flow.back(), number % pairs)
    for gone in (pairs - 1, 0):
        _reset(bench, gone)
        queues = [rx.queue for rx in _receive(bench, flows)]
        good = len(queues) == len(flows) and gone not in queues and all(queue < pairs for queue in queues)
        bench.check("NET-CTL-DEV-23", good, f"receiveq{gone + 1} reset: all packets elsewhere", queues)
        bench.queues.enable(2 * gone)
        bench.packets.post(queue=gone, count=BUFFERS)


def _reset(bench: Bench, queue: int) -> None:
    bench.target.reset_queue(2 * queue)
    bench.queues.drop(2 * queue)


@case("rx-steering-all-reset", "NET-CTL-DEV-24", needs=("wire", "ctrl_vq", "mq", "queue_reset"))
def rx_steering_all_reset(bench: Bench) -> None:
    """When all receive queues are being reset packets are dropped: they do not come later.

    Packets arrive while no receive queue is there; the queues are enabled anew, and only later packets come.
    """
    pairs = _start(bench)
    use_pairs(bench, pairs)
    flows = _flows(bench)
    queues = [index for index in range(max_pairs(bench)) if 2 * index in bench.queues.enabled]
    for queue in queues:
        _reset(bench, queue)
    for flow in flows:
        bench.packets.inject(arriving(bench, flow.packet(bench.octets(40))))
    # A frame that leaves shows that the device has worked since.
    bench.packets.emitted()
    bench.target.poll(min(0.02, bench.target.patience))
    for queue in queues:
        bench.queues.enable(2 * queue)
        bench.packets.post(queue=queue, count=BUFFERS)
    late = bench.packets.delivered()
    bench.check("NET-CTL-DEV-24", not late, "nothing comes of packets before", [rx.queue for rx in late])
    came = _receive(bench, flows)
    bench.check("NET-CTL-DEV-24", len(came) == len(flows), "later packets come", len(came))


# -- RSS --------------------------------------------------------------------------------------------------


def _configure(bench: Bench, rss: RssConfig) -> None:
    demand(command(bench, CtrlClass.MQ, CtrlMq.RSS_CONFIG, RSS_CONFIG.build(rss)), "an RSS configuration")


def _rss(bench: Bench, pairs: int, entries: int, unclassified: int = 0) -> RssConfig:
    """A table in which queues follow each other, but not evenly."""
    types = NET_CONFIG.parse(bench.target.read_config(0, NET_CONFIG.fixed_size)).supported_hash_types
    table = tuple(bench.rng.randrange(pairs) for _ in range(entries))
    return RssConfig(types, unclassified, table, pairs, bench.octets(KEY_OCTETS))


def _wanted(flow: Flow, rss: RssConfig) -> int:
    value, report = flow.hashed(rss.hash_types, rss.hash_key)
    if report == HashReport.NONE:
        return rss.unclassified_queue
    return rss.indirection_table[value & (len(rss.indirection_table) - 1)]


@case("rx-rss-table", "NET-CTL-DEV-25", needs=("wire", "ctrl_vq"))
def rx_rss_table(bench: Bench) -> None:
    """RSS puts a packet on the queue that the table names for its hash, or on the one for packets without hash.

    Tables of one to 128 entries; all hash types, and only those of IPv4, so that IPv6 has no hash; and a frame that
    is not IP. The queue is worked out by the suite.
    """
    pairs = _start(bench, rss=True)
    longest = NET_CONFIG.parse(
        bench.target.read_config(0, NET_CONFIG.fixed_size)
    ).rss_max_indirection_table_length
    for entries in (1, 2, 8, min(128, 1 << longest.bit_length() - 1)):
        for types, unclassified in ((0x1FF, 0), (0x7, pairs - 1), (0, 1)):
            rss = _rss(bench, pairs, entries, unclassified)
            rss = replace(rss, hash_types=rss.hash_types & types)
            _configure(bench, rss)
            flows = _flows(bench)
            came = {rx.frame: rx.queue for rx in _receive(bench, flows)}
            wanted = [_wanted(flow, rss) for flow in flows]
            order = {flow.source + flow.target: at for at, flow in enumerate(flows)}
            found = [-1] * len(flows)
            for frame, queue in came.items():
                ends = frame[26:34] if frame[12:14] == b"\x08\0" else frame[22:54]
                found[order[ends]] = queue
            text = f"{entries} entries, types {rss.hash_types:#x}, others on {unclassified + 1}"
            bench.check("NET-CTL-DEV-25", found == wanted, f"{text}: queues {wanted}", found)
            plain = bench.packets.mac + PEER_MAC + b"\x88\xb6" + bench.octets(50)
            queues = [rx.queue for rx in bench.packets.receive(plain)]
            bench.check("NET-CTL-DEV-25", queues == [unclassified], f"{text}: a frame without hash", queues)


@case("rx-rss-queue-reset", "NET-CTL-DEV-26", needs=("wire", "ctrl_vq", "queue_reset"))
def rx_rss_queue_reset(bench: Bench) -> None:
    """RSS drops what belongs to a queue that is being reset, and nothing else.

    One queue of the table is reset: packets of the others come on theirs, those of this one do not come at all.
    """
    pairs = _start(bench, rss=True)
    rss = _rss(bench, pairs, 64)
    _configure(bench, rss)
    flows = _flows(bench)
    gone = pairs - 1
    _reset(bench, gone)
    queues = sorted(rx.queue for rx in _receive(bench, flows))
    wanted = sorted(queue for queue in (_wanted(flow, rss) for flow in flows) if queue != gone)
    bench.check("NET-CTL-DEV-26", queues == wanted, f"queues {wanted}", queues)


@case("rx-multiqueue-last-command", "INF-51", needs=("wire", "ctrl_vq", "mq"))
def rx_multiqueue_last_command(bench: Bench) -> None:
    """The last multiqueue command decides: RSS after automatic steering, automatic steering after RSS.

    RSS_CONFIG with everything on the second queue, VQ_PAIRS_SET with one pair, RSS_CONFIG again; packets of many
    flows after each.
    """
    _start(bench, rss=True, want=(Feature.NET_F_MQ,))
    second = replace(_rss(bench, 2, 4, 1), indirection_table=(1, 1, 1, 1))
    flows = _flows(bench)
    for what, wanted in (("RSS", 1), ("one pair", 0), ("RSS again", 1)):
        if wanted:
            _configure(bench, second)
        else:
            use_pairs(bench, 1)
        queues = [rx.queue for rx in _receive(bench, flows)]
        good = queues == [wanted] * len(flows)
        bench.check("INF-51", good, f"{what}: packets on receiveq{wanted + 1}", queues)
