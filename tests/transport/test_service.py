"""A service inside this process: its ports, its end by a call or a signal, and ports that do not want to stop."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from operator_ports import GATE, port_text

from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.errors import TransportError
from virtio_ipsec.fastpath import native
from virtio_ipsec.policy.config import parse_ports
from virtio_ipsec.transport.local_socket import Listener
from virtio_ipsec.transport.loop import Loop
from virtio_ipsec.transport.service import RunningPort, Service, Settings
from virtio_ipsec.transport.service_plan import PortPlan, plan_ports
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = threading.active_count(), signal.getsignal(signal.SIGTERM)
    yield
    assert (threading.active_count(), signal.getsignal(signal.SIGTERM)) == before


def plans(folder: Path, uplink: str = "null") -> tuple[PortPlan, ...]:
    return plan_ports(None, socket=str(folder / "s"), uplink=uplink)


def meanwhile(do: object) -> threading.Thread:
    assert callable(do)
    thread = threading.Thread(target=do)
    thread.start()
    return thread


def test_a_service_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    found: list[int] = []

    def visit() -> None:
        link = VhostUserLink.at(str(tmp_path / "s"))
        Driver(link).start()
        found.append(link.status())
        link.close()
        service.stop()

    with Service(plans(tmp_path), Settings()) as service:
        visitor = meanwhile(visit)
        service.run()
        visitor.join()
    assert found[0] & 4  # DRIVER_OK
    assert not (tmp_path / "s").exists()


def test_an_operators_port_tells_its_neighbours_where_its_addresses_are(tmp_path: Path) -> None:
    """Another machine may have had them until now."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind(("127.0.0.1", 0))
        wire.settimeout(10)
        uplink = f"udp:127.0.0.1:0,127.0.0.1:{wire.getsockname()[1]}"
        ports = plan_ports(parse_ports(port_text("a")), socket=str(tmp_path / "s"), uplink=uplink)

        def listen() -> None:
            heard.extend(wire.recv(2048) for _ in range(2))
            service.stop()

        with Service(ports, Settings()) as service:
            listener = meanwhile(listen)
            service.run()
            listener.join()
    assert sorted(each[12:14].hex() for each in heard) == ["0806", "86dd"]
    for each in heard:
        assert each[6:12].hex(":") == GATE["a"]


def test_a_signal_stops_it_and_the_next_one_would_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("virtio_ipsec"), "propagate", True)
    caplog.set_level(logging.INFO)
    handlers: list[object] = []

    def close(service: Service) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        Service.close(service)

    with Service(plans(tmp_path), Settings()) as service:
        monkeypatch.setattr(service, "close", lambda: close(service))
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        service.run()
        timer.join()
    assert handlers[0] is signal.SIG_DFL
    assert "stopping" in caplog.text
    assert "stopped" in caplog.text


def test_without_the_extension_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("virtio_ipsec"), "propagate", True)
    with Service(plans(tmp_path), Settings(engine="python")) as service:
        monkeypatch.setattr(native, "available", lambda: False)
        monkeypatch.setattr(native, "why_not", lambda: "no compiler")
        service.stop()
        service.run()
        monkeypatch.undo()
    (said,) = {record.getMessage() for record in caplog.records if "Python path" in record.getMessage()}
    for what in ("dirty log", "in-flight tracking", "guard", "no compiler"):
        assert what in said


def test_a_port_that_does_not_stop_is_named_and_the_others_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = plan_ports(None, socket=str(tmp_path / "s"), uplink=f"vhost-user:{tmp_path}/t")
    assert len(both) == 1
    service = Service(both, Settings())
    stuck = service.ports[0]
    release = threading.Event()
    monkeypatch.setattr("virtio_ipsec.transport.service.STOP_WITHIN", 0.05)
    for port in service.ports:
        port.start()
    stuck.port.loop.call(lambda: print(release.wait(20)))
    with pytest.raises(TransportError, match="port port0 does not stop"):
        service.close()
    assert (tmp_path / "s").exists()
    assert not (tmp_path / "t").exists()
    release.set()
    service.close()
    stuck._thread.join(20)
    stuck.port.close()


@pytest.mark.parametrize("taken", ["s", "t"])
def test_a_port_that_cannot_be_leaves_nothing_of_the_service(tmp_path: Path, taken: str) -> None:
    gc.collect()  # what tests before this one have left
    before = len(os.listdir("/proc/self/fd"))
    busy = Listener(str(tmp_path / taken))
    with pytest.raises(TransportError, match=f"{taken}: busy"):
        Service(plans(tmp_path, f"vhost-user:{tmp_path}/t"), Settings())
    busy.close()
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_port_is_described_without_its_keys(tmp_path: Path) -> None:
    with Service(plans(tmp_path), Settings(engine="python")) as service:
        (port,) = service.ports
        assert isinstance(port, RunningPort)
        assert isinstance(service.loop, Loop)
        assert port.description() == {
            "port": "port0", "socket": str(tmp_path / "s"), "uplink": "null", "control": "guest",
            "engine": "python", "queue_pairs": 1, "features": hex(port.port.device.offered_features),
        }  # fmt: skip
