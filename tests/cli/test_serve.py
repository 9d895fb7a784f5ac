"""`virtio-ipsec serve` as a process of its own: what it says, whom it serves, how it stops, what it refuses."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from virtio_ipsec.cli.main import main
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.transport.uplink import Uplink, open_uplink
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import Feature, IpsecMode, has
from virtio_ipsec.wire.tunnel import TunnelIPv4

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
KEY, BACK = "000102030405060708090a0b0c0d0e0f", "101112131415161718191a1b1c1d1e1f"
GUEST, OURS, PEER = "02:00:00:00:0a:01", "02:00:00:00:0a:fe", "02:aa:00:00:00:01"

OPERATOR = f"""
[port]
control = "operator"
default = "drop"
name = "blue"
guest_mac = "{GUEST}"

[port.underlay]
mac = "{OURS}"
addresses = ["192.0.2.1/24"]

[[sa]]
id = 1
direction = "outbound"
mode = "esp-tunnel"
spi = 0x1001
algorithm = "aes-gcm-16"
key = "{KEY}"
salt = "a0a1a2a3"
tunnel = {{ src = "192.0.2.1", dst = "192.0.2.2" }}

[[sa]]
id = 1
direction = "inbound"
mode = "esp-tunnel"
spi = 0x2001
algorithm = "aes-gcm-16"
key = "{BACK}"
salt = "b0b1b2b3"
peer = "192.0.2.2"
selectors = [{{ local = "10.0.1.0/24", remote = "10.0.2.0/24" }}]

[[flow]]
match = {{ src = "10.0.1.0/24", dst = "10.0.2.0/24" }}
action = "protect"
sa = 1
"""


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "virtio_ipsec", "serve", *map(str, words)]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


class Process:
    """A service; its log goes to a file."""

    def __init__(self, folder: Path, *words: object, environment: dict[str, str] | None = None) -> None:
        self.log = folder / f"log{time.monotonic_ns()}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command(*words), cwd=ROOT, stdout=log, stderr=log, env=os.environ | (environment or {})
            )

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for(self, word: str, count: int = 1) -> list[str]:
        """The lines with ``word``, once there are so many."""
        until(lambda: sum(word in line for line in self.lines()) >= count or self.process.poll() is not None)
        found = [line for line in self.lines() if word in line]
        assert len(found) >= count, self.lines()
        return found

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


Serve = Callable[..., Process]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts services, which have to end well and leave no trace of trouble."""
    running: list[Process] = []

    def start(*words: object, ports: int = 1, **more: dict[str, str]) -> Process:
        running.append(Process(tmp_path, *words, **more))
        running[-1].wait_for("serving", ports)
        return running[-1]

    yield start
    for each in running:
        try:
            assert each.stop() == 0
        finally:
            each.process.kill()
        text = each.log.read_text()
        assert "Traceback" not in text
        assert KEY not in text


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)


def arrive(wire: Uplink, count: int = 1) -> list[Packet]:
    frames: list[bytes] = []

    def enough() -> bool:
        frames.extend(wire.receive(64))
        return len(frames) >= count

    until(enough)
    return [Ether(frame) for frame in frames]


def heard(driver: Driver) -> Packet:
    """The next frame that the driver receives."""
    got: list[bytes] = []

    def some() -> bool:
        driver.link.poll(0.01)
        got.extend(packet.frame for packet in driver.receive())
        return bool(got)

    until(some)
    return Ether(got[0])


def started(path: object) -> Driver:
    driver = Driver(VhostUserLink.at(str(path)))
    driver.start()
    return driver


def inner(source: str = "10.0.1.1", target: str = "10.0.2.2", text: bytes = b"hello") -> Packet:
    return IP(src=source, dst=target) / UDP(sport=1, dport=2) / text


def scapy_sa(spi: int, key: str, salt: str, source: str, target: str) -> SecurityAssociation:
    """The peer's idea of a tunnel's SA."""
    outer = IP(src=source, dst=target)
    return SecurityAssociation(
        ESP, spi=spi, crypt_algo="AES-GCM", crypt_key=bytes.fromhex(key + salt), tunnel_header=outer
    )


def opened(sealed: Packet) -> bytes:
    """What the peer finds in a packet of the outbound SA."""
    return bytes(scapy_sa(0x1001, KEY, "a0a1a2a3", "192.0.2.1", "192.0.2.2").decrypt(sealed[IP]))


def sealed_by_peer(packet: Packet) -> bytes:
    """A frame of the inbound SA."""
    sa = scapy_sa(0x2001, BACK, "b0b1b2b3", "192.0.2.2", "192.0.2.1")
    return bytes(Ether(dst=OURS, src=PEER) / sa.encrypt(packet))


# -- whom it serves


def test_a_driver_that_speaks_the_binding_controls_ipsec(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "s", "--uplink", f"unix:{tmp_path}/w", "--log-json")
    (line,) = process.wait_for('"serving"')
    found = json.loads(line)
    assert {name: found[name] for name in ("level", "port", "socket", "uplink", "control", "queue_pairs")} == {
        "level": "info",
        "port": "port0",
        "socket": f"{tmp_path}/s",
        "uplink": f"unix:{tmp_path}/w",
        "control": "guest",
        "queue_pairs": 1,
    }
    assert has(int(found["features"], 16), Feature.NET_F_IPSEC)
    assert found["engine"].startswith("c (") or found["engine"] == "python"
    wire = open_uplink(f"unix:{tmp_path}/w")
    driver = started(tmp_path / "s")
    param = TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))
    sa = driver.sas.create_outbound(
        IpsecSa(IpsecMode.ESP_TUNNEL, direction=1, spi=0x1001, salt=bytes.fromhex("a0a1a2a3"), param=param,
                cipher_algo=1, cipher_key=bytes.fromhex(KEY))
    )  # fmt: skip
    plain = Ether(dst=PEER, src=GUEST) / inner()
    driver.send(bytes(plain), sa)
    driver.send(bytes(plain))
    sealed, clear = arrive(wire, 2)
    assert opened(sealed) == bytes(plain[IP])
    assert bytes(clear) == bytes(plain)
    back = bytes(Ether(dst="02:00:00:00:00:01", src=PEER) / inner("10.0.2.2", "10.0.1.1"))
    wire.send([back])
    assert bytes(heard(driver)) == back
    driver.link.close()
    wire.close()
    process.stop()
    (counts,) = process.wait_for("stopped port")
    assert json.loads(counts)["counters"]["uplink_tx_frames"] == 2


@pytest.mark.parametrize("engine", ["c", "python"])
def test_an_operators_policy_holds_for_a_guest_that_knows_nothing_of_it(
    serve: Serve, tmp_path: Path, engine: str
) -> None:
    config = write(tmp_path / "p.toml", OPERATOR)
    words = ("--config", config, "--socket", tmp_path / "s", "--uplink", f"unix:{tmp_path}/w", "--engine", engine)
    process = serve(*words)
    (line,) = process.wait_for("serving")
    for word in (f"port=blue socket={tmp_path}/s", "control=operator", f"engine={engine}"):
        assert word in line
    assert line.endswith("outbound_sas=1 inbound_sas=1 flows=1 default=drop")
    wire = open_uplink(f"unix:{tmp_path}/w")
    driver = started(tmp_path / "s")
    assert not has(driver.link.driver_features(), Feature.NET_F_IPSEC)
    driver.send(bytes(Ether(dst=OURS, src=GUEST) / inner()))
    driver.send(bytes(Ether(dst=OURS, src=GUEST) / inner(target="203.0.113.9")))  # no flow: dropped
    (question,) = arrive(wire)
    assert (question[ARP].op, question[ARP].pdst, question[ARP].hwsrc) == (1, "192.0.2.2", OURS)
    answer = ARP(op=2, hwsrc=PEER, psrc="192.0.2.2", hwdst=OURS, pdst="192.0.2.1")
    wire.send([bytes(Ether(dst=OURS, src=PEER) / answer)])
    (sealed,) = arrive(wire)
    assert (sealed.src, sealed.dst, sealed[IP].src, sealed[IP].dst) == (OURS, PEER, "192.0.2.1", "192.0.2.2")
    assert opened(sealed) == bytes(inner())
    wire.send([bytes(Ether(dst=OURS, src=PEER) / inner("10.0.2.2", "10.0.1.1"))])  # in the clear: dropped
    wire.send([sealed_by_peer(inner("10.0.2.2", "10.0.1.1", b"back"))])
    got = heard(driver)
    assert (got.dst, bytes(got[IP])) == (GUEST, bytes(inner("10.0.2.2", "10.0.1.1", b"back")))
    driver.link.close()
    wire.close()


def test_several_ports_of_one_process_do_not_disturb_each_other(serve: Serve, tmp_path: Path) -> None:
    text = "".join(
        f'[[port]]\ncontrol = "guest"\nname = "{name}"\n'
        f'socket = "{tmp_path}/{name}"\nuplink = "unix:{tmp_path}/{name}-wire"\n'
        for name in "ab"
    )
    process = serve("--config", write(tmp_path / "p.toml", text), ports=2)
    wires = [open_uplink(f"unix:{tmp_path}/{name}-wire") for name in "ab"]
    drivers = [started(tmp_path / name) for name in "ab"]
    for number, (wire, driver) in enumerate(zip(wires, drivers, strict=True)):
        frame = bytes(Ether(dst=PEER, src=GUEST) / inner(text=bytes([number]) * 20))
        driver.send(frame)
        assert [bytes(each) for each in arrive(wire)] == [frame]
    drivers[0].link.close()
    with socket.socket(socket.AF_UNIX) as hostile:
        hostile.connect(str(tmp_path / "a"))
        hostile.sendall(b"\xff" * 12)
        hostile.settimeout(PATIENCE)
        assert hostile.recv(1) == b""
    (line,) = process.wait_for("disconnected")
    assert "warning a: " in line
    drivers[1].send(bytes(Ether(dst=PEER, src=GUEST) / inner()))
    assert len(arrive(wires[1])) == 1
    again = started(tmp_path / "a")
    again.send(bytes(Ether(dst=PEER, src=GUEST) / inner()))
    assert len(arrive(wires[0])) == 1
    for each in (again, drivers[1]):
        each.link.close()
    for wire in wires:
        wire.close()


def test_a_front_end_can_be_the_wire(serve: Serve, tmp_path: Path) -> None:
    """The plain side and the protected side of one port, both behind sockets."""
    text = OPERATOR.replace("[port.underlay]", f'[port.underlay]\nnext_hop = "{PEER}"')
    config = write(tmp_path / "p.toml", text)
    serve("--config", config, "--socket", tmp_path / "s", "--uplink", f"vhost-user:{tmp_path}/t", ports=2)
    guest, wire = started(tmp_path / "s"), started(tmp_path / "t")
    guest.send(bytes(Ether(dst=OURS, src=GUEST) / inner()))
    sealed = heard(wire)
    assert (sealed.dst, sealed[IP].dst) == (PEER, "192.0.2.2")
    assert opened(sealed) == bytes(inner())
    wire.send(sealed_by_peer(inner("10.0.2.2", "10.0.1.1")))
    assert bytes(heard(guest)[IP]) == bytes(inner("10.0.2.2", "10.0.1.1"))
    guest.link.close()
    wire.link.close()


def test_as_a_client_it_comes_to_the_front_end_and_comes_back(serve: Serve, tmp_path: Path) -> None:
    process = serve("--client", "--socket", tmp_path / "s", "--uplink", f"unix:{tmp_path}/w")
    wire = open_uplink(f"unix:{tmp_path}/w")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        listening.settimeout(PATIENCE)
        for turn in range(2):
            driver = Driver(VhostUserLink(lambda: listening.accept()[0]))
            driver.start()
            driver.send(bytes(Ether(dst=PEER, src=GUEST) / inner()))
            assert len(arrive(wire)) == 1
            driver.link.close()
            process.wait_for("the front-end has gone", turn + 1)
    wire.close()


def test_the_suite_judges_it_by_its_socket_and_its_wire(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve("--socket", tmp_path / "s", "--uplink", f"unix:{tmp_path}/w")
    cases = [word for name in ("ipsec-out-esp-tunnel", "ipsec-in-replayed", "cap-*") for word in ("--only", name)]
    wire = ("--wire", f"unix:{tmp_path}/w")
    assert main(["conformance", "--device", f"vhost-user:{tmp_path}/s", *wire, *cases]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("passed: vhost-user:")
    assert "UNSUPPORTED" not in last


# -- how it starts and stops


def test_systemd_is_told_and_what_was_begun_is_finished(serve: Serve, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        words = ("--socket", tmp_path / "s", "--uplink", f"pcap:{tmp_path}/out.pcap", "--socket-mode", "660")
        process = serve(*words, environment=environment)
        assert systemd.recv(500).split(b"\n")[0] == b"READY=1"
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o660
        driver = started(tmp_path / "s")
        driver.send(bytes(Ether(dst=PEER, src=GUEST) / inner()))
        until(lambda: (tmp_path / "out.pcap").stat().st_size > 24)
        assert process.stop() == 0
        assert systemd.recv(500) == b"STOPPING=1"
    assert not (tmp_path / "s").exists()
    assert [line for line in process.lines() if "stopping" in line and "signal=SIGTERM" in line]
    driver.link.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_stop_it_as_well(serve: Serve, tmp_path: Path, number: signal.Signals) -> None:
    process = serve("--socket", tmp_path / "s", "--uplink", "null")
    process.process.send_signal(number)
    assert process.process.wait(PATIENCE) == 0
    assert process.wait_for(f"signal={number.name}")


def test_no_core_is_left_to_find_keys_in(serve: Serve, tmp_path: Path) -> None:
    process = serve("--socket", tmp_path / "s", "--uplink", "null")
    limits = Path(f"/proc/{process.process.pid}/limits").read_text().splitlines()
    assert next(line for line in limits if line.startswith("Max core")).split()[4] == "0"


# -- what it refuses


def test_a_configuration_is_checked_and_nothing_served(tmp_path: Path) -> None:
    config = write(tmp_path / "p.toml", OPERATOR)
    done = subprocess.run(
        command("--config", config, "--socket", tmp_path / "s", "--uplink", "tap:nosuchtap", "--check"),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "port blue: operator control, 1 outbound and 1 inbound SAs, 1 flows, default drop, "
        f"socket {tmp_path}/s, uplink tap:nosuchtap\n"
    )
    assert not (tmp_path / "s").exists()


SAME_KEY = OPERATOR[OPERATOR.index("[[sa]]") : OPERATOR.index("[[sa]]\nid = 1\ndirection = \"inbound\"")].replace(
    "id = 1", "id = 2"
)

def test_the_sample_is_printed_and_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--sample"]) == 0
    config = write(tmp_path / "p.toml", capsys.readouterr().out)
    assert main(["serve", "--config", str(config), "--socket", "s", "--uplink", "null", "--check"]) == 0
    assert capsys.readouterr().out.startswith("port blue: operator control, 1 outbound and 1 inbound SAs")


@pytest.mark.parametrize("mode", ["8", "1000", "400", "rw"])
def test_a_socket_mode_is_octal_and_lets_the_owner_in(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--socket-mode", mode])
    assert ended.value.code == 2
    assert f"--socket-mode: {mode!r} is no mode from 600 to 777" in capsys.readouterr().err


#: name -> (what replaces what in the configuration, words of the command line, exit code, what is said).
Refusal = tuple[tuple[str, str], Sequence[str], int, str]
REFUSALS: dict[str, Refusal] = {
    "key length": ((KEY, KEY[2:]), (), 2, "sa 1: key must be 16 or 24 or 32 octets for aes-gcm-16, not 15"),
    "no tap": (("", ""), ("--uplink", "tap:nosuchtap"), 3, "tap:nosuchtap: there is no such interface; make it"),
}
#: The same without a process of their own.
MORE: dict[str, Refusal] = {
    "no such file": (("", ""), ("--config", "{tmp}/none.toml"), 2, "none.toml: No such file or directory"),
    "algorithm": (("aes-gcm-16", "rot13"), (), 2, "sa 1: algorithm must be one of aes-gcm-16, "),
    "busy socket": (("", ""), ("--socket", "{tmp}/busy"), 3, "busy: busy: another process listens there"),
    "not TOML": (("[port]", "[port"), (), 2, "p.toml: not TOML: "),
    "no port": (('[port]\ncontrol = "operator"\ndefault = "drop"', "[other]"), (), 2, "other is not known here"),
    "keys twice": (("[[flow]]", f"{SAME_KEY}\n[[flow]]"), (), 2, "sa id 2: has the key and salt of another SA"),
    "socket path": (("", ""), ("--socket", "{tmp}/none/s"), 3, "none/s: No such file or directory"),
    "no uplink": (("", ""), ("--uplink", "pigeon"), 2, "no uplink is called 'pigeon'"),
    "wire to nobody": (("", ""), ("--uplink", "vhost-user:"), 2, "uplink vhost-user needs an argument"),
    "the same socket": (("", ""), ("--uplink", "vhost-user:{tmp}/s"), 2, "/s cannot be both the socket of port"),
}  # fmt: skip


def words_of(refusal: Refusal, folder: Path) -> list[str]:
    (old, new), words, _, _ = refusal
    config = write(folder / "p.toml", OPERATOR.replace(old, new) if old else OPERATOR)
    given = [word.format(tmp=folder) for word in words]
    for option, value in (("--config", config), ("--socket", folder / "s"), ("--uplink", "null")):
        if option not in given:
            given += [option, str(value)]
    return given


def is_refused(refusal: Refusal, code: int, text: str, folder: Path) -> None:
    _, _, wanted, words = refusal
    assert code == wanted
    assert words in text
    assert text.startswith("virtio-ipsec: error: ")
    assert text.count("\n") == 1
    assert KEY not in text
    assert {path.name for path in folder.iterdir()} <= {"p.toml", "busy"}


def test_what_cannot_be_served_is_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    running = []
    for refusal in REFUSALS.values():
        folder = tmp_path_factory.mktemp("refused")
        process = subprocess.Popen(
            command(*words_of(refusal, folder)),
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append((refusal, process, folder))
    for refusal, process, folder in running:
        text = process.communicate(timeout=PATIENCE)[1]
        is_refused(refusal, process.returncode, text, folder)


@pytest.mark.parametrize("name", MORE)
def test_and_so_is_whatever_else_is_wrong(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gc.collect()  # what other tests have left open
    with socket.socket(socket.AF_UNIX) as busy:
        if name == "busy socket":
            busy.bind(str(tmp_path / "busy"))
            busy.listen()
        before = len(os.listdir("/proc/self/fd"))
        code = main(["serve", *words_of(MORE[name], tmp_path)])
        captured = capsys.readouterr()
        assert captured.out == ""
        is_refused(MORE[name], code, captured.err, tmp_path)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_function_over_vfio_user_is_checked_and_never_a_client(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["serve", "--vfio-user", "/run/f", "--uplink", "null", "--vfs", "2"]
    assert main([*words, "--check"]) == 0
    assert capsys.readouterr().out == (
        "port port0: guest control, vfio-user /run/f, uplink null, 2 virtual functions\n"
    )
    assert main([*words, "--check", "--client"]) == 2
    assert "--client is for vhost-user" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*words, "--socket", "/s"])
    assert ended.value.code == 2
    for option in ("control", "metrics"):
        assert main([*words, "--check", f"--{option}", "/run/f.vf2"]) == 2
        said = f"/run/f.vf2 cannot be both {option} and the socket of port port0.vf2: give one of them another path\n"
        assert said in capsys.readouterr().err
