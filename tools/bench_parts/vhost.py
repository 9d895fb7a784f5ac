"""A served port under load: testpmd's virtio-user, or a driver of our own, sends as fast as ``serve`` takes.

The port is under operator control and protects everything with AES-128-GCM in an ESP tunnel; its uplink only counts.
Against it stands testpmd with net_vhost, which takes the same packets from the same driver and drops them. Driver and
back-end have one core each. Every packet that the driver got rid of must have been sealed, and of each size some are
taken from the wire of a port with the same configuration and opened with `cryptography`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tools.bench_parts import targets
from tools.bench_parts.cells import Cell, Quiet, find, ratio
from tools.bench_parts.comparators import Program
from tools.bench_parts.feeders import (
    GUEST,
    KEY,
    NEXT,
    OURS,
    PATIENCE,
    RING,
    SALT,
    Feeder,
    frame,
    mac,
    opened,
    over_vfio_user,
    over_vhost_user,
    started,
    tunnel,
)
from tools.bench_parts.native import ROOT, Native
from tools.bench_parts.targets import Target
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.transport.pcap import open_capture
from virtio_ipsec.wire.numbers import Feature, mask

ROWS = (targets.VHOST_64, targets.VHOST_1420, targets.VFIO_64)
SIZES = (64, 1420)
WARM, TIMED = 0.15, 0.6  # seconds
CHECKED = 64  # packets that are opened, of each size
#: What a driver accepts that leaves everything to the operator.
_PLAIN = mask(Feature.F_VERSION_1)

CONFIG = f"""
[port]
control = "operator"
default = "drop"
name = "bench"
guest_mac = "{GUEST}"
mtu = 1500

[port.underlay]
mac = "{OURS}"
addresses = ["192.0.2.1/24"]
next_hop = "{NEXT}"
mtu = 2000

[[sa]]
id = 1
direction = "outbound"
mode = "esp-tunnel"
spi = 0x1001
algorithm = "aes-gcm-16"
key = "{KEY.hex()}"
salt = "{SALT.hex()}"
tunnel = {{ src = "192.0.2.1", dst = "192.0.2.2" }}

[[flow]]
match = {{ src = "0.0.0.0/0", dst = "0.0.0.0/0" }}
action = "protect"
sa = 1
"""


class Testpmd:
    """A process that moves packets whenever it is let, and says once a second how many.

    It takes no commands, for waiting for them it would use a core; instead it is stopped and continued by signals.
    """

    def __init__(self, program: Program, cores: tuple[int, int], device: str, mode: str, *more: str) -> None:
        """Packets are moved on the second of ``cores``; the thread that counts is on the first."""
        command = [
            *program.command, "--lcores", f"0@{cores[0]},1@{cores[1]}", "--no-huge", "-m", "128", "--no-pci",
            "--no-telemetry", "--no-shconf", "--vdev", device, "--", "--auto-start", "--stats-period=1",
            "--total-num-mbufs=8192", "--no-mlockall", f"--forward-mode={mode}", f"--txd={RING}", f"--rxd={RING}",
            *more,
        ]  # fmt: skip
        self.output, output = os.openpty()  # into a pipe it would write when its buffer is full
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=program.environment
        )
        os.close(output)
        self.text = ""
        self.find(r"Port statistics")
        self.pause()

    def find(self, pattern: str, begin: int = 0) -> re.Match[str]:
        """Wait until it has said so, from this place of its text on."""
        limit = time.monotonic() + PATIENCE
        while (found := re.compile(pattern).search(self.text, begin)) is None:
            try:
                self.text += os.read(self.output, 65536).decode(errors="replace")
            except OSError:
                limit = 0
            if time.monotonic() > limit:
                raise SystemExit(f"error: testpmd ends or hangs:\n{self.text[-2000:]}")
        return found

    def go(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def rate(self, way: str) -> float:
        """Rx-pps or Tx-pps over a second in which it was not disturbed: the second that ends after the next."""
        place = len(self.text)
        for _ in range(2):
            found = self.find(rf"{way}:\s+(\d+)", place)
            place = found.end()
        return float(found[1])

    def end(self) -> int:
        """Let it end in order; how many packets it sent."""
        place = len(self.text)
        self.go()
        self.process.send_signal(signal.SIGINT)
        found = self.find(r"(?s)Accumulated forward statistics.*?TX-packets: (\d+)", place)
        return int(found[1])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.output)


class Serve:
    """``virtio-ipsec serve`` on one core; ``front``: the option that names its socket."""

    def __init__(self, folder: Path, core: int, name: str, *words: str, front: str = "--socket") -> None:
        self.socket = str(folder / name)
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "virtio_ipsec", "serve", front, self.socket, "--log-json", *words],
                cwd=ROOT, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )  # fmt: skip
        limit = time.monotonic() + PATIENCE
        while "serving" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"error: serve does not start:\n{self.log.read_text()}")
            time.sleep(0.01)

    def stop(self) -> dict[str, int]:
        """End it; what it counted."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        for line in self.log.read_text().splitlines():
            found = json.loads(line)
            if "counters" in found:
                return dict(found["counters"])
        raise SystemExit(f"error: serve does not stop in order:\n{self.log.read_text()}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def check_wire(native: Native, folder: Path, core: int, size: int) -> None:
    """SystemExit unless each of some packets is on the wire as the SA has to make it, under a number of its own."""
    captured = folder / f"wire{size}.pcap"
    config = folder / "port.toml"
    serve = Serve(folder, core, f"check{size}", "--config", str(config), "--uplink", f"pcap:{captured}")
    try:
        link = over_vhost_user(serve.socket)
        feeder = Feeder(native, started(link, _PLAIN), size)
        feeder.run(PATIENCE, CHECKED)
        feeder.close()
        link.close()
        counted = serve.stop()
    finally:
        serve.close()
    with captured.open("rb") as file:
        everything = [packet.data for packet in open_capture(file)]
    frames = [data for data in everything if data[12:14] == b"\x08\x00"]  # the port announces itself by ARP
    if len(frames) != CHECKED or sealed(counted) != CHECKED:
        raise SystemExit(f"vhost: {len(frames)} of {CHECKED} packets left, {counted}")
    sequences, ivs = set(), set()
    sent = {frame(size, number)[14:] for number in range(RING)}
    for data in frames:
        esp = opened(data)
        sequences.add(esp.sequence)
        ivs.add(esp.iv)
        right = (
            data[:14] == mac(NEXT) + mac(OURS) + b"\x08\x00"
            and data[14:34][12:] == bytes((192, 0, 2, 1, 192, 0, 2, 2))
            and esp.spi == 0x1001
            and _as_sent(esp.plain, sent)
        )
        if not right:
            raise SystemExit(f"vhost: wrong bytes on the wire at {size} B")
    if len(sequences) != CHECKED or len(ivs) != CHECKED:
        raise SystemExit("vhost: a sequence number or an IV was used twice")


def _as_sent(plain: bytes, sent: set[bytes]) -> bool:
    """Through a gateway the TTL may be one less, and with it the checksum of the header."""
    return any(plain[:8] == one[:8] and plain[12:] == one[12:] for one in sent)


class VirtioUser:
    """testpmd sends into a back-end's socket; what counts is what the back-end took of it."""

    def __init__(self, program: Program, cores: tuple[int, int], socket: str, cell: Cell) -> None:
        other = cores[1]
        size = 64 if cell.size == 64 else cell.size + 14
        self.cell = cell
        self.driver = Testpmd(
            program, (other, other), f"net_virtio_user0,path={socket},mac={GUEST},queue_size={RING}", "txonly",
            f"--txpkts={size}", f"--eth-peer=0,{OURS}", "--tx-ip=198.18.0.1,198.18.0.2",
        )  # fmt: skip

    def sample(self) -> None:
        self.driver.go()
        rate = self.rate()
        self.driver.pause()
        if not rate:
            raise SystemExit(f"vhost: {self.cell.engine} takes nothing")
        self.cell.samples.append(1e9 / rate)

    def rate(self) -> float:
        return self.driver.rate("Tx-pps")

    def sent(self) -> int:
        return self.driver.end()

    def close(self) -> None:
        self.driver.close()


class Plain(VirtioUser):
    """The comparator: testpmd takes the packets and drops them."""

    def __init__(self, program: Program, cores: tuple[int, int], folder: Path, size: int) -> None:
        socket = f"{folder}/plain{size}"
        core, other = cores
        self.sink = Testpmd(program, (other, core), f"net_vhost0,iface={socket},queues=1", "rxonly")
        self.sink.go()
        try:
            super().__init__(program, cores, socket, Cell("vhost", "testpmd", "virtio-user", size, 0))
        except BaseException:
            self.sink.close()
            raise
        self.sink.pause()

    def sample(self) -> None:
        self.sink.go()
        super().sample()
        self.sink.pause()

    def rate(self) -> float:
        return self.sink.rate("Rx-pps")

    def close(self) -> None:
        super().close()
        self.sink.close()


class Own:
    """Our driver sends, ``feeder`` being what it sends with."""

    def __init__(self, feeder: Feeder, cores: tuple[int, int], cell: Cell) -> None:
        self.cell = cell
        self.cores = cores
        self.feeder = feeder

    def sample(self) -> None:
        core, other = self.cores
        os.sched_setaffinity(0, {other})
        try:
            self.feeder.run(WARM)
            self.cell.samples.append(1e9 / self.feeder.run(TIMED))
        finally:
            os.sched_setaffinity(0, {core})

    def sent(self) -> int:
        return self.feeder.sent

    def close(self) -> None:
        self.feeder.close()


@contextmanager
def serving(folder: Path, core: int, name: str, *words: str, front: str = "--socket") -> Iterator[Serve]:
    serve = Serve(folder, core, name, *words, "--uplink", "null", front=front)
    try:
        yield serve
    finally:
        serve.close()


def sealed(counted: dict[str, int]) -> int:
    """Packets that an SA has made: counted by the operator's port, or by the device where the driver controls."""
    return counted.get("tx_protected", 0) or counted.get("tx_sealed", 0)


def check_counts(counted: dict[str, int], driver: int, who: str, slack: int = 0) -> None:
    """SystemExit unless all that the driver sent was sealed and left; ``slack`` packets may still be in the ring, or
    have been there when the driver disabled the queue."""
    refused = {name for name in counted if name.startswith("tx_refused")}
    left = counted.get("tx_frames", 0)
    if slack:
        refused.discard("tx_refused_queue_disabled")
    if not 0 < left == sealed(counted) or not driver - slack <= left <= driver or refused:
        raise SystemExit(f"vhost: {who} sent {driver} packets; {counted}")


def measure(
    native: Native, folder: Path, program: Program | None, cores: tuple[int, int], rounds: int, quiet: Quiet
) -> Iterator[list[Cell]]:
    """One list of cells per size; ``cores``: of the back-end, and of the driver."""
    config = folder / "port.toml"
    config.touch(0o600)
    config.write_text(CONFIG)
    for size in SIZES:
        check_wire(native, folder, cores[0], size)
        yield _one_size(native, folder, program, cores, rounds, quiet, size)


#: What is measured -> which service it is measured with.
_NAMES = {
    "virtio-user": "virtio-user",
    "own driver": "own",
    "driver's SA": "driver",
    "over vfio-user": "vfio-user",
}


def _one_size(
    native: Native, folder: Path, program: Program | None, cores: tuple[int, int], rounds: int, quiet: Quiet, size: int
) -> list[Cell]:
    operator = ("--config", str(folder / "port.toml"))
    with ExitStack() as stack:
        serves: dict[str, Serve] = {}
        for name in ("virtio-user", "own", "driver", "vfio-user"):
            words = operator if name in ("virtio-user", "own") else ()
            front = "--vfio-user" if name == "vfio-user" else "--socket"
            serve = serving(folder, cores[0], f"{name}{size}", *words, front=front)
            serves[name] = stack.enter_context(serve)
        runners: list[Any] = []

        def add(runner: Any) -> None:
            stack.callback(runner.close)
            runners.append(runner)

        if program is not None:
            add(Plain(program, cores, folder, size))
            cell = Cell("vhost", "serve", "virtio-user", size, 1)
            add(VirtioUser(program, cores, serves["virtio-user"].socket, cell))
        for name, work, reach, wanted in (
            ("own", "own driver", over_vhost_user, _PLAIN),
            ("driver", "driver's SA", over_vhost_user, SUPPORTED),
            ("vfio-user", "over vfio-user", over_vfio_user, SUPPORTED),
        ):
            link = reach(serves[name].socket)
            stack.callback(link.close)
            driver = started(link, wanted)
            sa = driver.sas.create_outbound(tunnel()) if name != "own" else None
            add(Own(Feeder(native, driver, size, sa), cores, Cell("vhost", "serve", work, size, 1)))
        for number in range(rounds):
            quiet.look()
            for runner in runners if number % 2 == 0 else reversed(runners):
                runner.sample()
        for runner in runners:
            name = _NAMES[runner.cell.work]
            if runner.cell.engine == "serve":
                sent, slack = runner.sent(), 0 if isinstance(runner, Own) else RING
                check_counts(serves[name].stop(), sent, runner.cell.work, slack)
        return [runner.cell for runner in runners]


def show(group: Sequence[Cell]) -> None:
    for cell in group:
        what = f"{cell.engine}, {cell.work}"
        print(f"{cell.size:7} {what:24} {cell.best:8.1f} ns {1e3 / cell.best:8.2f} Mpps {cell.gbits:7.1f} Gbit/s")


def judge(cells: Sequence[Cell], program: Program | None) -> list[Target]:
    """Rows 6 and 7, with the same driver before both back-ends, and row 11: the same driver by both ways."""
    return [*_judge_vhost(cells, program), _judge_vfio(cells)]


def _judge_vfio(cells: Sequence[Cell]) -> Target:
    ours, theirs = (
        find(cells, part="vhost", engine="serve", work=work, size=64) for work in ("over vfio-user", "driver's SA")
    )
    if ours is None or theirs is None:
        return targets.VFIO_64.measured(None, "64 B was not asked for")
    made = ratio(theirs, ours)
    rates = f"vfio-user {1e3 / ours.best:.2f} Mpps, vhost-user {1e3 / theirs.best:.2f} Mpps"
    return targets.VFIO_64.measured(made.best, f"{rates}; median of the rounds {made.median:.2f}x")


def _judge_vhost(cells: Sequence[Cell], program: Program | None) -> list[Target]:
    wanted = {"part": "vhost", "work": "virtio-user"}
    found = {(e, n): find(cells, engine=e, size=n, **wanted) for e in ("serve", "testpmd") for n in SIZES}
    if program is None:
        missing = "no testpmd here: tools/bench --interop fetches it"
        return [targets.VHOST_64.measured(None, missing), targets.VHOST_1420.measured(None, missing)]
    results = []
    ours, theirs = found["serve", 64], found["testpmd", 64]
    if ours and theirs:
        made = ratio(theirs, ours)
        own = find(cells, part="vhost", work="own driver", size=64)
        more = f"; {1e3 / own.best:.2f} Mpps from our own driver" if own else ""
        rates = f"serve {1e3 / ours.best:.2f} Mpps, testpmd {1e3 / theirs.best:.2f} Mpps"
        note = f"{rates}; median of the rounds {made.median:.2f}x{more}"
        results.append(targets.VHOST_64.measured(made.best, note))
    ours, theirs = found["serve", 1420], found["testpmd", 1420]
    if ours and theirs:
        own = find(cells, part="vhost", work="own driver", size=1420)
        best = max((each for each in (ours, own) if each), key=lambda each: each.gbits)
        parts = {"virtio-user": ours, "our own driver": own}
        rates = ", ".join(f"{each.gbits:.1f} from {name}" for name, each in parts.items() if each)
        note = f"{rates}; testpmd without ESP takes {theirs.gbits:.1f}"
        results.append(targets.VHOST_1420.measured(best.gbits, note))
    return results
