"""Devices that put packets on the wrong receive queue, or report another hash."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from registry import mutant

from virtio_ipsec.device.control import ControlQueue, ControlRefused
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.frame import PROTO_UDP
from virtio_ipsec.device.receive import Packet, Receiver
from virtio_ipsec.device.rings import Rings
from virtio_ipsec.device.state import Received, Steering
from virtio_ipsec.device.steering import FlowMemory, choose_queue, flow_key
from virtio_ipsec.wire.numbers import Feature, HashReport

# -- the hash ---------------------------------------------------------------------------------------------


class OtherHash(Receiver):
    """Reports another hash than the right one; RSS goes by the right one."""

    def reported(self, packet: Packet, value: int, report: int) -> tuple[int, int]:
        return value, report

    def hash(self, packet: Packet) -> tuple[int, int]:
        found = super().hash(packet)
        return found if self.ctx.steering.rss else self.reported(packet, *found)


@mutant("INF-46")
class HashPortsSwapped(OtherHash):
    """The hash of UDP over IPv4 takes the ports the other way round."""

    def reported(self, packet: Packet, value: int, report: int) -> tuple[int, int]:
        if report != HashReport.UDPV4:
            return value, report
        l4 = packet.headers.l4
        frame = packet.frame
        swapped = frame[:l4] + frame[l4 + 2 : l4 + 4] + frame[l4 : l4 + 2] + frame[l4 + 4 :]
        return super(OtherHash, self).hash(replace(packet, frame=swapped))


@mutant("INF-47")
class ShortIpv6(OtherHash):
    """The hash of IPv6 leaves the last bit out."""

    def reported(self, packet: Packet, value: int, report: int) -> tuple[int, int]:
        return (value ^ 1, report) if report in {HashReport.IPV6, HashReport.TCPV6} else (value, report)


@mutant("INF-48")
class HomeAddressUnread(OtherHash):
    """A home address option is not looked for."""

    def reported(self, packet: Packet, value: int, report: int) -> tuple[int, int]:
        if not packet.headers.home:
            return value, report
        plain = replace(packet, headers=replace(packet.headers, home=0))
        return super(OtherHash, self).hash(plain)


@mutant("INF-49", "INF-46")
class ReportsOffByOne(OtherHash):
    """A hash with ports is reported as one without."""

    def reported(self, packet: Packet, value: int, report: int) -> tuple[int, int]:
        return value, HashReport.IPV4 if report == HashReport.TCPV4 else report


@mutant("INF-50")
class HashedUnasked(OtherHash):
    """IPv4 packets are hashed although no type is enabled."""

    def reported(self, packet: Packet, value: int, report: int) -> tuple[int, int]:
        unasked = self.ctx.has(Feature.NET_F_HASH_REPORT) and not self.ctx.steering.key
        return (1, int(HashReport.IPV4)) if unasked and packet.headers.version == 4 else (value, report)


# -- automatic steering -----------------------------------------------------------------------------------


@mutant("NET-CTL-DEV-21")
class PairsSurviveReset(Device):
    """The first reset after VQ_PAIRS_SET leaves the queue pairs in use."""

    def reset(self) -> None:
        old = self.context.steering
        super().reset()
        if old.queue_pairs > 1 and not old.rss and not getattr(self, "_inherited", False):
            self.context.steering = Steering(queue_pairs=old.queue_pairs)
            self._inherited = True
        else:
            self._inherited = False


class OtherSteering(Receiver):
    """Chooses the queue of automatic steering in a way of its own."""

    def choice(self, packet: Packet, usual: int | None) -> int | None:
        return usual

    def steer(self, packet: Packet, hashed: tuple[int, int]) -> int | None:
        usual = super().steer(packet, hashed)
        return usual if self.ctx.steering.rss else self.choice(packet, usual)


@mutant("NET-CTL-DEV-22")
class RememberedTooLong(OtherSteering):
    """A flow stays on its queue when that is no longer in use."""

    def choice(self, packet: Packet, usual: int | None) -> int | None:
        flows, live = self.ctx.flows, self.ctx.live_rx_queues
        if flows is None or live is None:
            return usual
        known = flows.queue_of(flow_key(packet.frame, packet.headers, sent=False))
        return known if known in live else usual


@mutant("NET-CTL-DEV-22")
class RefusedAndDone(ControlQueue):
    """A number of pairs that there is not is refused, and two pairs are used from then on."""

    def vq_pairs_set(self, data: bytes) -> None:
        try:
            super().vq_pairs_set(data)
        except ControlRefused:
            self.context.steering = Steering(queue_pairs=2)
            raise


@mutant("INF-52")
class UdpForgotten(OtherSteering):
    """Flows of UDP are not learned."""

    def steer(self, packet: Packet, hashed: tuple[int, int]) -> int | None:
        if packet.headers.protocol != PROTO_UDP or self.ctx.steering.rss:
            return super().steer(packet, hashed)
        ctx = self.ctx
        frame, headers = packet.frame, packet.headers
        return choose_queue(ctx.steering, FlowMemory(), ctx.live_rx_queues, frame, headers, hashed)


@mutant("NET-CTL-DEV-23")
class NoOtherQueue(OtherSteering):
    """Packets for a queue that is being reset are dropped."""

    def choice(self, packet: Packet, usual: int | None) -> int | None:
        ctx = self.ctx
        wanted = choose_queue(
            ctx.steering, ctx.flows or FlowMemory(), None, packet.frame, packet.headers, (0, 0)
        )
        return usual if wanted == usual else None


@mutant("NET-CTL-DEV-24")
class KeptForLater(Rings):
    """What arrives without any receive queue is delivered once there is one."""

    _kept: list[Received]

    def reset(self) -> None:
        super().reset()
        self._kept = []

    def deliver(self, frame: bytes) -> None:
        if self.device.is_operating and self.device.context.live_rx_queues == set():
            self._kept.append(Received(0, bytes(self.device.context.header.size) + frame))
        for received in self._kept if 0 in self._queues else []:
            self.place(received)
        if 0 in self._queues:
            self._kept = []
        super().deliver(frame)


# -- RSS --------------------------------------------------------------------------------------------------


@mutant("NET-CTL-DEV-25", "NET-CTL-DEV-26")
class TableByRemainder(Receiver):
    """The hash is taken modulo one less than the entries."""

    def steer(self, packet: Packet, hashed: tuple[int, int]) -> int | None:
        steering = self.ctx.steering
        if not steering.rss or not hashed[1] or len(steering.table) < 2:
            return super().steer(packet, hashed)
        return super().steer(packet, (hashed[0] % (len(steering.table) - 1), hashed[1]))


@mutant("NET-CTL-DEV-25")
class NoHashOnFirst(ControlQueue):
    """Packets without hash come on receiveq1."""

    def rss_config(self, data: bytes) -> None:
        super().rss_config(data)
        self.context.steering = replace(self.context.steering, unclassified_queue=0)


@mutant("NET-CTL-DEV-26")
class RssChoosesAgain(Receiver):
    """RSS puts packets for a queue that is being reset on another one."""

    def steer(self, packet: Packet, hashed: tuple[int, int]) -> int | None:
        found = super().steer(packet, hashed)
        live: Any = self.ctx.live_rx_queues
        return min(live) if found is None and self.ctx.steering.rss and live else found


@mutant("INF-51")
class RssForGood(ControlQueue):
    """After RSS_CONFIG the number of pairs changes nothing."""

    def vq_pairs_set(self, data: bytes) -> None:
        if not self.context.steering.rss:
            super().vq_pairs_set(data)
