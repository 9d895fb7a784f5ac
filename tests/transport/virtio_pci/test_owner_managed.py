"""An owner that manages its members' SAs, over PCI: its commands reach data paths that other threads run."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from random import Random

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.admin import demand
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import load_cases
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.conformance.parts import use_group
from virtio_ipsec.conformance.sas import enable, make
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.errors import AdminStatus
from virtio_ipsec.transport.loopback_pci import PciLoopbackOwner
from virtio_ipsec.wire.admin import OBJECT_COMMAND, RESOURCE_HEADER, ObjectCommand, ResourceHeader
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import GroupType, Opcode, ResourceType

KIND = ResourceType.NET_IPSEC_OUTB_SA
SPI = 0x4321


def owner() -> PciLoopbackOwner:
    """Two virtual functions, each with its own engine."""
    config = DeviceConfig(max_queue_pairs=1, owner_managed=True)

    def device(number: int) -> Device:
        own = replace(config, mac=bytes((2, 0, 0, 0, 0, number + 1)), owner_managed=not number)
        return Device(own, os.urandom, fast_path("auto", os.urandom))

    return PciLoopbackOwner(device(0), [device(1), device(2)])


def left(vf: Bench) -> list[bytes]:
    """What a virtual function emits for a packet that names SA 7."""
    header = NetHdr(flags=V14.flag_security, resource_id=7, resource_type=KIND)
    return vf.packets.transmit(frames.ethernet(frames.packet(bytes(40)), PEER_MAC, vf.packets.mac), header)


def test_the_owner_makes_lists_and_destroys_what_a_members_packets_use() -> None:
    with closing(owner()) as target:
        bench = Bench(target, Random(1), load_cases()[0])
        bench.start()
        bench.admin.use_everything()
        use_group(bench)
        vfs = [bench.member(number) for number in (1, 2)]
        for vf in vfs:
            vf.start()
            enable(vf)

        def command(opcode: int, data: bytes, member: int) -> int:
            return bench.admin.command(opcode, data, group=GroupType.SRIOV, member=member).status

        def listed(member: int) -> list[int]:
            asked = {n: OBJECT_COMMAND.build(ObjectCommand(KIND, n)) for n in range(10)}
            return [
                n
                for n, data in asked.items()
                if command(Opcode.RESOURCE_OBJ_QUERY, data, member) == AdminStatus.OK
            ]

        create = OBJECT_COMMAND.build(
            ObjectCommand(KIND, 7, 0, V14.sa.build(make(vfs[0], spi=SPI, obj_id=7)))
        )
        assert (listed(1), listed(2)) == ([], [])
        assert left(vfs[0]) == []
        assert command(Opcode.RESOURCE_OBJ_CREATE, create, 1) == AdminStatus.OK
        assert (listed(1), listed(2)) == ([7], [])
        (sealed,) = left(vfs[0])
        assert SPI.to_bytes(4) in sealed[:62]
        assert left(vfs[1]) == []
        demand(vfs[0].admin.query(KIND, 7))
        assert command(Opcode.RESOURCE_OBJ_DESTROY, RESOURCE_HEADER.build(ResourceHeader(KIND, 7)), 1) == 0
        assert left(vfs[0]) == []
        assert listed(1) == []
        assert command(Opcode.RESOURCE_OBJ_CREATE, create, 1) == AdminStatus.OK
        device = target._embedded[0].port.device
        (sa,) = device.context.outbound.values()
        target.enable_vfs(None)
        assert not device.context.outbound
        assert sa is not None
        target.enable_vfs(2)
        again = bench.member(1)
        again.start()
        enable(again)
        assert listed(1) == []
        assert left(again) == []
