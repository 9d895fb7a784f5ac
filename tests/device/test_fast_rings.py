"""What the rings of the C path do that has no counterpart in the Python rings."""

from __future__ import annotations

import random
from dataclasses import replace

import plane
import pytest
from device_twins import RINGS, ready

from virtio_ipsec.device import fast_rings
from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import ResourceType

AH_SA, OUTBOUND = 4, int(ResourceType.NET_IPSEC_OUTB_SA)


def test_no_more_packets_than_allowed_go_to_python_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fast_rings.port_config
    monkeypatch.setattr(fast_rings, "port_config", lambda context: replace(made(context), most_punts=2))

    guest = ready(V14, IMPLEMENTED & ~RINGS, random.Random(0)).fast
    header = NetHdr(flags=int(V14.flag_security), resource_id=AH_SA, resource_type=OUTBOUND)
    frame = plane.PEER + plane.MAC + b"\x08\0" + bytes.fromhex("450000140000000040001111") + bytes(8)
    for _ in range(5):
        guest.send(0, guest.device.context.header.build(header) + frame, [], indirect=False)
    guest.kick(0)
    assert len(guest.link.captured()) == 2
    counts = guest.device.counters()
    assert (counts["tx_punted"], counts["tx_refused_overload"]) == (2, 3)
    guest.send(0, guest.device.context.header.build(header) + frame, [], indirect=False)
    guest.kick(0)
    assert len(guest.link.captured()) == 1
