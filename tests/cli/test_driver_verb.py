"""`virtio-ipsec driver`: what a user is shown of a device, and packets that go through it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from tunnel_sas import KEY, tunnel_sas
from vfio_served import served, served_group

from virtio_ipsec.cli.main import main
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.driver.sas import Sas
from virtio_ipsec.errors import CommandFailed
from virtio_ipsec.ipsec.process import find_spi
from virtio_ipsec.transport.capture import Interface, LinkType, Packet
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.transport.pcap import create_capture, open_capture
from virtio_ipsec.transport.uplink import open_uplink
from virtio_ipsec.wire.numbers import ResourceType

kick = Loopback.kick
SAS = (
    tunnel_sas(7, 9)
    + """
[[flow]]
match = { dst = "10.0.0.2/32" }
action = "protect"
sa = 7

[[flow]]
match = { dst = "10.0.0.3/32" }
action = "drop"
"""
)
CONFIG = DeviceConfig(mac=bytes.fromhex("020000000001"), max_queue_pairs=1)
ETHERNET = bytes.fromhex("020000000001 020000000002 0800")


def packet(host: int, size: int = 16) -> bytes:
    total = (28 + size).to_bytes(2)
    head = b"\x45\0" + total + bytes.fromhex("0000 0000 4011 0000 0a000001 0a0000") + bytes([host])
    words = sum(int.from_bytes(head[at : at + 2]) for at in range(0, 20, 2))
    checksum = ~(words % 0xFFFF) & 0xFFFF
    head = head[:10] + checksum.to_bytes(2) + head[12:]
    return ETHERNET + head + bytes.fromhex("00010002") + (8 + size).to_bytes(2) + bytes(2 + size)


@pytest.fixture
def sas(tmp_path: Path) -> Path:
    path = tmp_path / "sas.toml"
    path.write_text(SAS)
    path.chmod(0o600)
    return path


def capture(path: Path, frames: list[bytes], kind: LinkType = LinkType.ETHERNET) -> Path:
    with path.open("wb") as stream:
        writer = create_capture(stream, "pcap", [Interface(kind)])
        for frame in frames:
            writer.write(Packet(frame))
    return path


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert KEY not in captured.out + captured.err
    assert captured.err == ""
    return captured.out


def driver(*words: object, device: str = "loopback:python") -> int:
    return main(["driver", "--device", device, *map(str, words)])


def test_capabilities(capsys: pytest.CaptureFixture[str]) -> None:
    assert driver("--json", "caps") == 0
    found = json.loads(shown(capsys))
    assert "NET_F_IPSEC" in found["features"]
    assert "F_ADMIN_VQ" in found["features"]
    assert found["admin_queue"] == found["queues"]
    assert found["ipsec"]["outb_sa_limit"] > 0
    assert {"esp-tunnel", "ah-transport"} <= {mode["mode"] for mode in found["ipsec"]["modes"]}
    assert "GCM" in found["ipsec"]["modes"][0]["aeads"]
    assert found["flow_filter"]["actions"] == ["DROP", "DIRECT_RX_VQ", "IPSEC", "IPSEC_RECIRCULATE"]
    assert driver("caps") == 0
    text = shown(capsys)
    assert "\n  inb sa limit: " in text
    assert "mode esp-tunnel; max replay win sz " in text


def test_capabilities_of_a_device_without_ipsec(capsys: pytest.CaptureFixture[str]) -> None:
    with served("python", DeviceConfig(features=CONFIG.features & ~(1 << 41))) as near:
        assert driver("--json", "caps", device=f"vfio-user:{near.path}") == 0
    found = json.loads(shown(capsys))
    assert not {"ipsec", "flow_filter", "admin_queue", "discovery_error"} & found.keys()


def test_sas_are_made_and_read_back(sas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver("sa", sas) == 0
    assert shown(capsys).splitlines() == [
        "outbound     7 0x00001001 esp-tunnel aes-gcm-16: device id 0; QUERY says the same",
        "inbound      9 0x00001001 esp-tunnel aes-gcm-16: device id 0; QUERY says the same",
    ]
    assert driver("--json", "sa", sas) == 0
    assert [entry["differs"] for entry in json.loads(shown(capsys))] == [[], []]


def test_in_the_other_dialect_nothing_can_be_read_back(sas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sas.write_text('dialect = "rfc-2025-01"\n' + SAS)
    assert driver("sa", sas) == 0
    assert shown(capsys).splitlines()[0].endswith("aes-gcm-16: device id 0")
    assert driver("flow", sas) == 0
    assert shown(capsys) == ""


def test_an_sa_that_the_device_refuses(
    sas: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise CommandFailed("status ENOSPC", status=28, qualifier=6)

    monkeypatch.setattr(Sas, "create_inbound", refuse)
    assert driver("sa", sas) == 1
    assert shown(capsys).splitlines()[1].endswith("aes-gcm-16: refused: status ENOSPC")


def test_rules_of_inbound_sas(sas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver("flow", sas) == 0
    assert shown(capsys).splitlines() == [
        "sa 9: rule 0 in group 0 (priority 32768), classifier 0 ETH/IPV4/ESP, priority 0: IPSEC",
        "sa 9: rule 1 in group 0 (priority 32768), classifier 1 ETH/IPV6/ESP, priority 1: IPSEC",
    ]
    assert driver("--json", "flow", sas) == 0
    assert json.loads(shown(capsys))[0]["keys"].endswith("0000100100000000")


def test_packets_go_as_the_flows_say(sas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [packet(2), packet(3), packet(4), packet(2, 1460), ETHERNET + b"\x45" + bytes(8), b"\xff" * 14]
    source = capture(tmp_path / "in.pcap", frames)
    with served("python", CONFIG) as near:
        wire = open_uplink(near.wire)
        assert driver("--json", "send", sas, source, device=f"vfio-user:{near.path}") == 0
        left = wire.receive(16)
        wire.close()
    assert json.loads(shown(capsys)) == {
        "not sent: flow": 1,
        "not sent: malformed": 1,
        "not sent: too big": 1,
        "sent in clear": 2,
        "sent protected": 1,
    }
    header = find_spi(left[0][14:])
    assert header is not None
    assert header.spi == 0x1001
    assert left[1] == packet(4)
    assert driver("send", sas, source) == 0
    assert "       1 sent protected\n" in shown(capsys)


def test_virtual_functions_are_enabled_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    with served_group(2, "python", CONFIG) as functions:
        device = f"vfio-user:{functions[0].path}"
        assert driver("vfs", 2, "--seconds", 0.05, device=device) == 0
        assert shown(capsys) == "2 of 2 virtual functions are enabled\n"
        assert driver("--json", "vfs", 1, "--seconds", 0.01, device=device) == 0
        assert json.loads(shown(capsys)) == [{"enabled": 1, "total": 2}]
        assert driver("vfs", 3, device=device) == 2
        assert f"vfio-user:{functions[0].path} has 2 virtual functions, and N is 3\n" in capsys.readouterr().err
    assert driver("vfs", 1) == 2
    assert "loopback has no virtual functions" in capsys.readouterr().err


def test_what_is_no_socket_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    reasons = {"file": "a file that is no socket", "file/f": "Not a directory", "a" * 120: "path too long"}
    for name, why in reasons.items():
        assert driver("caps", device=f"vfio-user:{tmp_path}/{name}") == 3
        assert why in capsys.readouterr().err


def test_one_port_is_wanted(sas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sas.write_text("[[port]]\nname = 'a'\ncontrol = 'guest'\n[[port]]\nname = 'b'\ncontrol = 'guest'\n")
    assert driver("sa", sas) == 2
    assert "port is there more than once" in capsys.readouterr().err


def test_a_device_that_takes_nothing_is_given_up(
    sas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtio_ipsec.cli.driver._PATIENCE", 0.02)
    monkeypatch.setattr(Loopback, "kick", lambda link, index: index == 1 or kick(link, index))
    assert driver("send", sas, capture(tmp_path / "in.pcap", [packet(2)])) == 3
    assert "does not take 1 of the packets" in capsys.readouterr().err
    assert driver("send", sas, capture(tmp_path / "in.pcap", [packet(4)] * 300)) == 3
    assert "takes no more packets" in capsys.readouterr().err


def test_a_capture_without_ethernet(sas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = capture(tmp_path / "in.pcap", [packet(2)[14:]], LinkType.RAW)
    assert driver("send", sas, source) == 2
    assert "does not hold Ethernet frames" in capsys.readouterr().err


@pytest.mark.parametrize("is_json", [True, False])
def test_packets_are_received_and_opened(
    is_json: bool, sas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sealed = tmp_path / "sealed.pcap"
    source = capture(tmp_path / "in.pcap", [packet(2)])
    assert main(["pcap", "seal", "--config", str(sas), str(source), str(sealed)]) == 0
    capsys.readouterr()
    with sealed.open("rb") as stream:
        (esp,) = [each.data for each in open_capture(stream)]
    arrivals = [esp, packet(1), esp]
    out = tmp_path / "out.pcapng"
    with served("python", CONFIG) as near:
        wire = open_uplink(near.wire)

        def feed() -> None:
            limit, device = time.monotonic() + 10, near.port.device
            while (
                len(device.objects.ids().get(ResourceType.NET_FF_RULE, ())) < 2 and time.monotonic() < limit
            ):
                time.sleep(0.002)
            wire.send(arrivals)

        feeder = threading.Thread(target=feed)
        feeder.start()
        words = ["--json"] if is_json else []
        code = driver(*words, "recv", sas, "--count", 3, "--out", out, device=f"vfio-user:{near.path}")
        feeder.join()
        wire.close()
    assert code == 0
    text = shown(capsys)
    if is_json:
        found = json.loads(text)
        assert [entry["outcome"] for entry in found] == ["protected", "clear", "error"]
        assert found[0] == {"outcome": "protected", "length": 58, "queue": 0, "sa": 9, "spi": 0x1001}
    else:
        assert text.splitlines()[0] == "protected by sa 9 0x00001001: 58 octets, queue 0"
        assert text.splitlines()[1] == "clear: 58 octets, queue 0"
    with served("python", CONFIG) as near:
        device = f"vfio-user:{near.path}"
        assert driver("recv", sas, "--count", 1, "--seconds", 0.05, device=device) == 1
        assert driver("recv", sas, "--seconds", 0.05, device=device) == 0
    with out.open("rb") as stream:
        assert [each.data for each in open_capture(stream)] == [packet(2), packet(1), esp]
