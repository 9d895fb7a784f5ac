"""Management of ports that serve: what the control socket answers has happened."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from managed import config_of
from operator_ports import datagram
from served import PLAIN, Bench, until
from test_port_operator import OFFER

from virtio_ipsec.policy.config import parse
from virtio_ipsec.policy.operator import OperatorPort
from virtio_ipsec.transport.control_client import ControlClient
from virtio_ipsec.transport.loop import Loop
from virtio_ipsec.transport.management import Management, ManagementSettings


def test_a_change_is_in_force_in_c_before_its_answer(tmp_path: Path) -> None:
    """The port's own loop does not turn between an answer and the packets that come after it."""
    socket, loop = str(tmp_path / "ctl"), Loop()
    bench = Bench(PLAIN, start=False, offer=OFFER)
    management = Management(ManagementSettings(control=socket), loop)
    spec = parse(config_of("a"))
    operator = OperatorPort(spec, management.sas("port0", bench.port.device.fast), os.urandom)
    bench.attach(operator)
    port = bench.port
    management.add("port0", spec.dialect, port.lock, port.counters, operator, port.publish, port.look_soon)
    management.start()
    serving = threading.Thread(target=loop.run)
    serving.start()
    bench.negotiate()
    for index in (0, 1):
        bench.start(index)
    left: list[bytes] = []

    def send(size: int) -> None:
        bench.guest.send(datagram("a", bytes(size)))
        until(lambda: bench.guest.reclaim() == 1)

    def both_left() -> bool:
        """A buffer is used before its packet is seen on the wire."""
        left.extend(frame for frame in bench.uplink.take() if frame[12:14] == b"\x08\x00")
        return len(left) >= 2

    try:
        port.loop.turn(0)
        send(100)
        with ControlClient(socket) as client:
            (flow, *_) = [each for each in client.call("flow.list")["flows"] if each["action"] == "protect"]
            client.call("flow.remove", name=flow["name"])
            send(200)
            client.call("flow.add", flow=flow)
            send(300)
        until(both_left)
    finally:
        loop.stop()
        serving.join()
        management.close(orderly=True)
        loop.close()
        bench.close()
        operator.close()
    small, large = left
    assert len(large) - len(small) == 200
