"""Functions that a service serves, and their virtual functions, which come and go as their owner says."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from served import until
from vfio_client import DMA_MAP, Client

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.policy.config import parse_ports
from virtio_ipsec.transport.local_socket import Listener
from virtio_ipsec.transport.service import Service, Settings
from virtio_ipsec.transport.service_plan import Overrides, PortPlan, plan_all, plan_ports
from virtio_ipsec.transport.vfio_user import dma
from virtio_ipsec.transport.virtio_pci.tables import ExtendedId, Header, Region, SriovCap, SriovControl

GUEST = '[port]\ncontrol = "guest"\nname = "blue"\n'


class Alone:
    """A bench for clients of a service whose loops run."""

    until = staticmethod(until)


def plans(folder: Path, vfs: int = 2, **said: object) -> tuple[PortPlan, ...]:
    return plan_all(None, Overrides(uplink="null", vfio_user=str(folder / "f"), vfs=vfs, **said))  # type: ignore[arg-type]


@contextmanager
def running(ports: tuple[PortPlan, ...]) -> Iterator[Service]:
    """A service that serves meanwhile."""
    with Service(ports, Settings()) as service:
        for port in service.ports:
            port.start()
        yield service


def dial(path: Path) -> Client:
    client = Client(Alone(), str(path))  # type: ignore[arg-type]
    client.version()
    return client


def extended(client: Client, wanted: int) -> int:
    """Where an extended capability is."""
    at = 0x100
    while at:
        header = int.from_bytes(client.read(Region.CONFIG, at, 4), "little")
        if header & 0xFFFF == wanted:
            return at
        at = header >> 20
    raise AssertionError(f"no capability {wanted}")


def enable(owner: Client, number: int) -> None:
    """So many virtual functions; 0: none."""
    sriov = extended(owner, ExtendedId.SRIOV)
    owner.write(Region.CONFIG, sriov + SriovCap.CONTROL.offset, b"\0\0")
    if number:
        owner.write(Region.CONFIG, sriov + SriovCap.NUM_VFS.offset, number.to_bytes(2, "little"))
        owner.write(Region.CONFIG, sriov + SriovCap.CONTROL.offset, struct.pack("<H", SriovControl.VF_ENABLE))


def mac(client: Client) -> bytes:
    """The device configuration's, which begins at the third page of BAR0."""
    return client.read(Region.BAR0, 0x2000, 6)


def test_a_function_is_served_until_the_service_stops(tmp_path: Path) -> None:
    with running(plans(tmp_path, 0)) as service:
        client = dial(tmp_path / "f")
        assert client.read(Region.CONFIG, Header.VENDOR_ID.offset, 4) == bytes.fromhex("f41a4110")
        (port,) = service.ports
        assert port.description()["vfio_user"] == str(tmp_path / "f")
        service.close()
        assert client.is_closed()
        client.close()
    assert os.listdir(tmp_path) == []


def test_clients_have_equal_shares_of_the_mappings_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dma, "_ALL_MAPS", 6)
    with running(plans(tmp_path)):
        owner = dial(tmp_path / "f")
        enable(owner, 1)
        vf = Client(Alone(), str(tmp_path / "f.vf1"))  # type: ignore[arg-type]
        assert b'"max_dma_maps":2,' in vf.version()
        for client in (vf, owner):
            client.map(None, 0x1000, 0x1000)
            client.map(None, 0x2000, 0x1000)
            more = struct.pack("<IIQQQ", 32, 3, 0, 0x3000, 0x1000)
            assert client.refused(DMA_MAP, more) == errno.ENOSPC
            client.unmap(0, 0, 2)
            client.map(None, 0x3000, 0x1000)
            client.close()


def test_virtual_functions_come_and_go_with_vf_enable(tmp_path: Path) -> None:
    with running(plans(tmp_path)):
        owner = dial(tmp_path / "f")
        assert os.listdir(tmp_path) == ["f"]
        enable(owner, 1)
        assert sorted(os.listdir(tmp_path)) == ["f", "f.vf1"]
        enable(owner, 2)
        vfs = [dial(tmp_path / f"f.vf{number}") for number in (1, 2)]
        macs = [int.from_bytes(mac(each), "big") for each in (owner, *vfs)]
        assert macs == [macs[0], macs[0] + 1, macs[0] + 2]
        enable(owner, 0)
        assert all(vf.is_closed() for vf in vfs)
        assert os.listdir(tmp_path) == ["f"]
        enable(owner, 2)
        again = dial(tmp_path / "f.vf2")
        owner.close()  # as killed: its virtual functions go with it
        assert again.is_closed()
        for vf in (*vfs, again):
            vf.close()
        until(lambda: os.listdir(tmp_path) == ["f"])
        dial(tmp_path / "f").close()


def test_a_service_stops_in_time_with_all_of_them_at_work(tmp_path: Path) -> None:
    threads = threading.active_count()
    with running(plans(tmp_path)):
        owner = dial(tmp_path / "f")
        enable(owner, 2)
        clients = [owner, *(dial(tmp_path / f"f.vf{number}") for number in (1, 2))]
    for client in clients:
        assert client.is_closed()
        client.close()
    assert os.listdir(tmp_path) == []
    assert threading.active_count() == threads


@pytest.mark.parametrize("taken", ["f", "f.vf2"])
def test_a_socket_that_is_taken_is_found_at_the_beginning(tmp_path: Path, taken: str) -> None:
    busy = Listener(str(tmp_path / taken))
    with pytest.raises(TransportError, match=f"{taken}: busy"):
        Service(plans(tmp_path), Settings())
    busy.close()
    assert os.listdir(tmp_path) == []


def test_a_socket_that_is_taken_later_leaves_its_function_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(plans(tmp_path)):
        owner = dial(tmp_path / "f")
        busy = Listener(str(tmp_path / "f.vf1"))
        enable(owner, 2)
        dial(tmp_path / "f.vf2").close()
        assert "nobody can reach the function" in caplog.text
        busy.close()
        enable(owner, 1)
        dial(tmp_path / "f.vf1").close()
        owner.close()


# What is planned.


def test_virtual_functions_are_ports_of_their_own() -> None:
    (plan,) = plan_all(
        parse_ports(
            GUEST + 'vfio_user = "/run/f"\nuplink = "unix:/run/w"\nvfs = 2\nguest_mac = "02:00:00:00:00:ff"'
        ),
        Overrides(),
    )
    assert [(vf.name, vf.socket, vf.uplink) for vf in plan.vfs] == [
        ("blue.vf1", "/run/f.vf1", "unix:/run/w.vf1"),
        ("blue.vf2", "/run/f.vf2", "unix:/run/w.vf2"),
    ]
    macs = [each.device_config().mac.hex() for each in (plan, *plan.vfs)]
    assert macs == ["0200000000ff", "020000000100", "020000000101"]
    assert [each.is_virtual for each in (plan, *plan.vfs)] == [False, True, True]


def test_the_command_line_stands_above_the_file() -> None:
    text = GUEST + 'socket = "/run/s"\nuplink = "null"\n'
    said = Overrides(vfio_user="/run/f", vfs=1, vf_uplink="unix:/w{}", owner_managed=True)
    (plan,) = plan_all(parse_ports(text), said)
    assert (plan.is_pci, plan.socket, plan.vfs[0].uplink) == (True, "/run/f", "unix:/w1")
    assert (plan.device_config().owner_managed, plan.vfs[0].device_config().owner_managed) == (True, False)
    (plain,) = plan_ports(parse_ports(text.replace("socket", "vfio_user")), socket="/run/t")
    assert (plain.is_pci, plain.socket) == (False, "/run/t")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (Overrides("/s", "null", vfs=1), "virtual functions are for ports with vfio_user"),
        (Overrides("/s", "null", owner_managed=True), "virtual functions are for ports with vfio_user"),
        (Overrides("/s", "null", "/f"), "exclude each other"),
        (Overrides(uplink="null", vfio_user="/f", owner_managed=True), "has no virtual functions"),
        (Overrides(uplink="null", vfio_user="/f", vf_uplink="null"), "has no virtual functions"),
        (Overrides(uplink="tap:t", vfio_user="/f", vfs=1), "no uplinks; give --vf-uplink"),
        (
            Overrides(uplink="tap:t", vfio_user="/f", vfs=2, vf_uplink="tap:t1"),
            "two ports have the uplink tap:t1",
        ),
        (Overrides(uplink="null", vfio_user="/f", vfs=1, vf_uplink="tap"), "uplink tap needs"),
        (Overrides(uplink="null"), "--vfio-user PATH"),
        (Overrides(uplink="unix:/f", vfio_user="/f"), "/f cannot be both the socket of port port0 and the uplink of"),
        (Overrides(uplink="unix:/f.vf1", vfio_user="/x/../f", vfs=1), "cannot be both the uplink of port port0 and"),
        (Overrides(uplink="pcap:/in,/f.vf1", vfio_user="/f", vfs=1, vf_uplink="null"), "cannot be both"),
    ],
)
def test_contradictions_are_refused_by_name(said: Overrides, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        plan_all(None, said)


def test_an_operators_port_has_no_virtual_functions() -> None:
    text = '[port]\ncontrol = "operator"\ndefault = "drop"\nvfio_user = "/f"\nuplink = "null"\nvfs = 1'
    with pytest.raises(ConfigError, match='are for ports with control = "guest"'):
        plan_ports(parse_ports(text))
    (plan,) = plan_ports(parse_ports(text.replace("vfs = 1", "vfs = 0")))
    assert plan.is_pci


def test_what_is_for_one_port_is_refused_with_several() -> None:
    text = "".join(f'[[port]]\ncontrol = "guest"\nsocket = "/{n}"\nuplink = "null"\n' for n in range(2))
    with pytest.raises(ConfigError, match="are for one port"):
        plan_all(parse_ports(text), Overrides(vfs=1))
    with pytest.raises(ConfigError, match=r"two ports have the socket /f\.vf1"):
        plan_ports(
            parse_ports(
                '[[port]]\ncontrol = "guest"\nvfio_user = "/f"\nuplink = "null"\nvfs = 1\n'
                '[[port]]\ncontrol = "guest"\nvfio_user = "/f.vf1"\nuplink = "null"\n'
            )
        )
