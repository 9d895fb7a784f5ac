"""Commands of a control or administration queue: what they changed holds once anybody can see that they are done."""

from __future__ import annotations

from typing import Any

import pytest
from vfio_served import Served, served

from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.transport.rings import PortRings
from virtio_ipsec.transport.vfio_user.client import VfioUserFunction
from virtio_ipsec.transport.virtio_pci.link import Options, PciLink


class Watched:
    """A queue that asks ``look`` whenever a buffer is marked used."""

    def __init__(self, queue: Any, look: Any) -> None:
        self._queue = queue
        self._look = look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def push(self, chain: Any, written: int) -> None:
        self._look()
        self._queue.push(chain, written)


@pytest.mark.needs("extension")
def test_steering_is_in_force_before_its_command_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may look at the ring instead of waiting for the interrupt, and send or expect a packet at once."""
    seen: list[bool] = []

    def look(near: Served) -> None:
        port = near.port
        context, path = port.device.context, port._around.path
        fast = port.device.fast
        assert path is not None
        assert fast is not None
        seen.append(
            path._published[0] is fast.steering(context.rx_filter, context.steering, context.features)
        )

    with served() as near:
        work_off = PortRings.work_off

        def watched(rings: PortRings, index: int, *more: Any) -> Any:
            kept = rings._queues.get(index)
            if kept is not None and index == rings.control_queue_index:
                rings._queues[index] = Watched(kept, lambda: look(near))  # type: ignore[assignment]
                try:
                    return work_off(rings, index, *more)
                finally:
                    rings._queues[index] = kept
            return work_off(rings, index, *more)

        monkeypatch.setattr(PortRings, "work_off", watched)
        link = PciLink(VfioUserFunction.at(near.path), Options(memory=16 << 20))
        driver = Driver(link, config=DriverConfig(receive_buffers=4))
        driver.start()
        for last in (7, 8):
            driver.control.set_mac(bytes((2, 0, 0, 0, 0, last)))
        link.close()
    assert seen == [True, True]
