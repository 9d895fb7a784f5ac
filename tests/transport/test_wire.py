"""A target that has no wire gets one from an uplink; here the embedded device behind a local socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from virtio_ipsec.cli.main import main
from virtio_ipsec.conformance import target as targets
from virtio_ipsec.conformance.reports.master import to_json
from virtio_ipsec.conformance.runner import run, select
from virtio_ipsec.conformance.target import open_target
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.targets import LoopbackTarget
from virtio_ipsec.transport.uplink import open_uplink
from virtio_ipsec.wire.dialect import V14, Dialect


class Bare(LoopbackTarget):
    """The embedded device whose wire ends in an uplink, as in a process of its own."""

    has_wire = False
    patience = 0.2

    def __init__(self, uri: str, dialect: Dialect = V14) -> None:
        super().__init__(Device(DeviceConfig(dialect=dialect), os.urandom))
        self.uplink = open_uplink(uri)
        self._wire = lambda frame: self.uplink.send([frame])
        self.polled: list[float] = []
        self.closed = 0

    def poll(self, timeout: float) -> None:
        self.polled.append(timeout)
        for frame in self.uplink.receive(64):
            super().inject(frame)

    def close(self) -> None:
        self.closed += 1
        self.uplink.close()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Bare]]:
    """Registers the target "bare"; collects those that were opened."""
    found: list[Bare] = []

    def factory(argument: str, dialect: Dialect) -> Bare:
        found.append(Bare(argument, dialect))
        return found[-1]

    monkeypatch.setitem(targets.BUILT_IN, "bare", factory)
    yield found
    assert all(each.closed == 1 for each in found)


def test_cases_with_a_wire_run_over_it(made: list[Bare], tmp_path: Path) -> None:
    uri = f"unix:{tmp_path}/wire"
    cases = select("virtio-1.4", ["ipsec-*-tunnel", "*replay*", "sanity*"])
    with open_target(f"bare:{uri}", V14) as target:
        alone = run(target, cases)
    with open_target(f"bare:{uri}", V14, uri) as target:
        report = run(target, cases)
    with_wire, without = (
        {case["id"]: case["verdict"] for case in to_json(each)["cases"]} for each in (report, alone)
    )
    wanting = {case.id for case in cases if "wire" in case.needs}
    assert len(wanting) > 5
    assert {without[name] for name in wanting} == {"UNSUPPORTED"}
    assert {with_wire[name] for name in wanting if name.startswith("ipsec-")} == {"PASS"}
    assert set(with_wire.values()) <= {"PASS", "UNSUPPORTED"}
    assert report.identity.wire
    assert not alone.identity.wire


def test_a_reset_forgets_what_was_on_the_wire(made: list[Bare], tmp_path: Path) -> None:
    uri = f"unix:{tmp_path}/wire"
    with open_target(f"bare:{uri}", V14, uri) as target:
        target.inject(bytes(60))  # lets the other end notice us
        made[0].uplink.send([bytes(60)])
        target.reset()
        assert target.captured() == []
        made[0].uplink.send([bytes(61)])
        assert target.captured() == [bytes(61)]


def test_poll_ends_for_a_frame_and_else_takes_its_time(made: list[Bare], tmp_path: Path) -> None:
    uri = f"unix:{tmp_path}/wire"
    with open_target(f"bare:{uri}", V14, uri) as target:
        target.inject(bytes(60))
        made[0].uplink.send([bytes(60)])
        target.poll(30)
        assert made[0].polled == []
        target.captured()
        target.poll(0)
        begin = monotonic()
        target.poll(30)  # the bare target returns early from its own poll: something has happened there
        assert monotonic() - begin < 15
        assert 1 <= len(made[0].polled) < 1000  # a machine at work elsewhere makes an early return look late


def test_frames_that_nobody_takes_do_not_keep_a_driver_from_waiting(made: list[Bare], tmp_path: Path) -> None:
    uri = f"unix:{tmp_path}/wire"
    with open_target(f"bare:{uri}", V14, uri) as target:
        target.inject(bytes(60))
        for _ in range(2):
            made[0].uplink.send([bytes(60)])
            made[0].polled.clear()
            target.poll(30)
            assert made[0].polled == []
            target.poll(0)
            assert made[0].polled == [0]
            target.captured()


def test_a_wire_without_a_descriptor_is_polled_through_the_target(made: list[Bare], tmp_path: Path) -> None:
    with open_target(f"bare:unix:{tmp_path}/wire", V14, "null") as target:
        target.poll(0.001)
        assert len(made[0].polled) == 1


def test_a_frame_that_the_wire_does_not_take_is_an_error(made: list[Bare], tmp_path: Path) -> None:
    uri = f"unix:{tmp_path}/wire"
    with open_target(f"bare:{uri}", V14, uri) as target:
        made[0].uplink.close()
        target.captured()
        with pytest.raises(TransportError, match="the wire did not take a frame of 60 octets"):
            target.inject(bytes(60))


def test_wires_that_cannot_be_are_refused_and_nothing_stays_open(made: list[Bare], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has a wire of its own"), open_target("loopback", V14, "null"):
        pass
    with (
        pytest.raises(ConfigError, match="no uplink is called"),
        open_target(f"bare:unix:{tmp_path}/w", V14, "x"),
    ):
        pass
    assert len(made) == 1


def test_the_verb_has_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--only", "sanity*", "--wire", "null"]) == 2
    assert capsys.readouterr().err == (
        "virtio-ipsec: error: target loopback has a wire of its own: leave --wire out\n"
    )
