"""`serve` without a single capability, on a tap that was made for its user; the host's network stack is the wire."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.namespace import ip, own_namespace
from lab.processes import processor_seconds, running, until
from operator_ports import GATE, KEYS, OUTER, from_guest, text
from operator_ports import HOST as INSIDE
from scapy.layers.inet import IP, UDP
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import Ether

from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.transport.uplink import open_uplink
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink

pytestmark = [pytest.mark.interop("ip", "setpriv"), pytest.mark.needs("namespaces")]

ROOT = Path(__file__).parents[2]
HOST = "02:00:00:00:0b:01"


@pytest.fixture
def namespace() -> Iterator[int]:
    with own_namespace() as descriptor:
        yield descriptor


def test_the_owner_of_a_tap_serves_it_and_the_kernel_is_its_neighbour(namespace: int, tmp_path: Path) -> None:
    ip("tuntap", "add", "t0", "mode", "tap", "user", "0")
    ip("addr", "add", "192.0.2.2/24", "dev", "t0")
    ip("link", "set", "t0", "address", HOST, "up")
    config, log, path = tmp_path / "port.toml", tmp_path / "log", tmp_path / "s"
    config.write_text(text("a"))
    config.chmod(0o600)
    command = [
        "setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "virtio_ipsec", "serve",
        "--config", str(config), "--socket", str(path), "--uplink", "tap:t0", "--log-json",
    ]  # fmt: skip
    with running(command, log, cwd=ROOT) as process:
        until("it serves", lambda: "serving" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        assert json.loads(log.read_text().splitlines()[0])["uplink"] == "tap:t0"
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        watcher = open_uplink("afpacket:t0")
        link = VhostUserLink.at(str(path))
        driver = Driver(link)
        driver.start()
        packet = IP(src=INSIDE["a"], dst=INSIDE["b"]) / UDP(sport=1, dport=2) / b"hello"
        driver.send(from_guest("a", packet))
        seen: list[bytes] = []

        def sealed() -> list[bytes]:
            seen.extend(watcher.receive(64))
            return [frame for frame in seen if frame[12:14] == b"\x08\x00" and frame[23] == 50]

        until("the packet is on the wire", sealed)
        found = Ether(sealed()[0])
        sa = SecurityAssociation(
            ESP, spi=0x1001, crypt_algo="AES-GCM", crypt_key=bytes.fromhex(KEYS[0] + "a0a1a2a3"),
            tunnel_header=IP(src=OUTER["a"], dst=OUTER["b"]),
        )  # fmt: skip
        assert bytes(sa.decrypt(found[IP])) == bytes(packet)
        assert (found.src, found.dst) == (GATE["a"], HOST)
        watcher.close()
        ip("link", "del", "t0")
        until("it has noticed", lambda: "uplink tap:t0 has gone" in log.read_text())
        before = processor_seconds(process.pid)
        driver.send(from_guest("a", packet))
        time.sleep(0.5)
        assert processor_seconds(process.pid) - before < 0.25
        link.close()
    assert process.returncode == 0
    assert "Traceback" not in log.read_text()
