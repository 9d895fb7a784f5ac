"""The configuration space of a network device: limits of its fields, what never changes, and the MTU on packets."""

from __future__ import annotations

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.frames import ethernet, packet
from virtio_ipsec.conformance.packets import BIG_ROOM, PEER_MAC
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.net_config import NET_CONFIG, NetConfig
from virtio_ipsec.wire.numbers import Feature, GsoType, NetStatus, has

ETHERNET = 14
#: IPv4 header and UDP header of the frames of `frames.packet`.
HEADERS = 28
UNKNOWN_SPEED = 0xFFFF_FFFF


def _config(bench: Bench) -> NetConfig:
    return NET_CONFIG.parse(bench.target.read_config(0, NET_CONFIG.fixed_size))


def _offers(bench: Bench, *features: Feature) -> bool:
    offered = bench.target.device_features()
    return any(has(offered, feature) for feature in features)


@case(
    "config-limits",
    "NET-CFG-DEV-01",
    "NET-CFG-DEV-02",
    "NET-CFG-DEV-03",
    "NET-CFG-DEV-07",
    "NET-CFG-DEV-08",
    "NET-CFG-DEV-13",
    "NET-CFG-DEV-14",
)
def config_limits(bench: Bench) -> None:
    """The fields of the configuration space are within their limits, and features that need the control queue come
    with it.

    max_virtqueue_pairs, mtu, rss_max_key_size and rss_max_indirection_table_length, each where its feature is offered.
    """
    config = _config(bench)
    limits = (
        ("NET-CFG-DEV-01", "max_virtqueue_pairs", 1, 0x8000, (Feature.NET_F_MQ,)),
        ("NET-CFG-DEV-02", "mtu", 68, 65535, (Feature.NET_F_MTU,)),
        ("NET-CFG-DEV-03", "mtu", 1280, 65535, (Feature.NET_F_MTU,)),
        ("NET-CFG-DEV-07", "rss_max_key_size", 40, 255, (Feature.NET_F_RSS, Feature.NET_F_HASH_REPORT)),
        ("NET-CFG-DEV-08", "rss_max_indirection_table_length", 128, 65535, (Feature.NET_F_RSS,)),
    )
    for clause, name, least, most, features in limits:
        value = getattr(config, name) if _offers(bench, *features) else least
        bench.check(clause, least <= value <= most, f"{name} is {least} to {most}", value)
    control = _offers(bench, Feature.NET_F_CTRL_VQ)
    for clause, feature in (
        ("NET-CFG-DEV-13", Feature.NET_F_HASH_REPORT),
        ("NET-CFG-DEV-14", Feature.NET_F_CTRL_RX_EXTRA),
    ):
        good = control or not _offers(bench, feature)
        bench.check(clause, good, f"{feature.name} is offered with a control queue only", "without")


@case("config-speed-duplex", "NET-CFG-DEV-10", "NET-CFG-DEV-11")
def config_speed_duplex(bench: Bench) -> None:
    """speed is a number of Mbit/s or unknown, duplex one of three values.

    Read after VIRTIO_NET_F_SPEED_DUPLEX was negotiated. Which of 0 and 1 means full is for the ledger (E109).
    """
    bench.start(want=(Feature.NET_F_SPEED_DUPLEX,))
    config = _config(bench)
    good = config.speed <= 0x7FFF_FFFF or config.speed == UNKNOWN_SPEED
    bench.check("NET-CFG-DEV-10", good, "speed is at most 0x7fffffff, or 0xffffffff", hex(config.speed))
    bench.check("NET-CFG-DEV-11", config.duplex in {0, 1, 0xFF}, "duplex is 0, 1 or 255", config.duplex)


@case("config-constant", "NET-CFG-DEV-04", "NET-CFG-DEV-12", needs=("wire",))
def config_constant(bench: Bench) -> None:
    """mtu never changes, speed and duplex not while the link is up.

    The fields are read before negotiation, after it, after packets both ways, and after a reset.
    """
    if not _offers(bench, Feature.NET_F_MTU, Feature.NET_F_SPEED_DUPLEX):
        raise Unsupported("the device offers neither VIRTIO_NET_F_MTU nor VIRTIO_NET_F_SPEED_DUPLEX")
    features = [f for f in (Feature.NET_F_MTU, Feature.NET_F_SPEED_DUPLEX) if _offers(bench, f)]
    first = _config(bench)

    def look(when: str) -> None:
        now = _config(bench)
        bench.check("NET-CFG-DEV-04", now.mtu == first.mtu, f"{when}: mtu is {first.mtu}", now.mtu)
        same = (now.speed, now.duplex) == (first.speed, first.duplex)
        up = now.status & NetStatus.S_LINK_UP or not _offers(bench, Feature.NET_F_STATUS)
        bench.check("NET-CFG-DEV-12", same or not up, f"{when}: speed and duplex as before", now)

    for _ in range(2):
        bench.start(want=features)
        look("negotiated")
        bench.packets.post()
        bench.packets.emitted()
        bench.packets.delivered()
        look("after packets")
        bench.reset()
        look("after a reset")


def _mtu(bench: Bench) -> int:
    bench.start(want=(Feature.NET_F_MTU,))
    return _config(bench).mtu


@case("mtu-transmit", "NET-CFG-DEV-06", needs=("wire",))
def mtu_transmit(bench: Bench) -> None:
    """With the MTU negotiated packets of up to that length leave whole.

    Frames of several lengths up to the MTU, the MTU itself the last; each leaves as it was sent.
    """
    mtu = _mtu(bench)
    for length in (*(one for one in (576, 1280, 1500) if one < mtu), mtu - 1, mtu):
        frame = ethernet(packet(bench.octets(length - HEADERS)), PEER_MAC, bench.packets.mac)
        left = bench.packets.transmit(frame)
        good = len(left) == 1 and bench.same(frame, left[0])
        bench.check("NET-CFG-DEV-06", good, f"a packet of {length} octets leaves as it is", len(left))


@case("mtu-receive", "NET-CFG-DEV-05", needs=("wire",))
def mtu_receive(bench: Bench) -> None:
    """With the MTU negotiated no longer packet is delivered, except as one that the device has merged.

    Packets of the MTU, of one octet more, and of twice as many; the receive buffers have room for all.
    """
    mtu = _mtu(bench)
    bench.packets.post(room=BIG_ROOM, count=8)
    for length in (mtu, mtu + 1, 2 * mtu):
        if length > 0xFFFF:
            continue
        frame = ethernet(packet(bench.octets(length - HEADERS)), bench.packets.mac, PEER_MAC)
        came = bench.packets.receive(frame)
        too_long = [
            rx for rx in came if len(rx.frame) > ETHERNET + mtu and rx.header.gso_type == GsoType.NONE
        ]
        seen = [len(rx.frame) for rx in came]
        if length == mtu:
            good = [rx.frame for rx in came] == [frame]
            bench.check("NET-CFG-DEV-05", good, f"a packet of {length} octets is delivered", seen)
        bench.check(
            "NET-CFG-DEV-05", not too_long, f"of {length} octets, none beyond {mtu} is delivered", seen
        )
