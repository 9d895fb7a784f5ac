"""Drive a virtio-net device with IPsec: what it can do, SAs and rules on it, protected packets to and from it.

TARGET is vfio-user:PATH (a function that `serve --vfio-user` or another server has), vfio:0000:bb:dd.f (a function of
this machine that is bound to vfio-pci), vhost-user:PATH or loopback. FILE holds SAs and flows, as for `serve`; it must
be closed to other users when it holds keys. What is made on the device goes when the command ends: the device is reset
then.

examples:
  virtio-ipsec driver --device vfio-user:/run/nic caps
  virtio-ipsec driver --device vfio:0000:03:00.0 sa sas.toml
  virtio-ipsec driver --device vfio-user:/run/nic flow sas.toml
  virtio-ipsec driver --device vfio:03:00.0 send sas.toml frames.pcap
  virtio-ipsec driver --device vfio-user:/run/nic recv sas.toml --count 10 --out got.pcapng
  virtio-ipsec driver --device vfio-user:/run/nic vfs 2 --seconds 3600
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, time_ns
from typing import Any

from virtio_ipsec.cli.arguments import add_action, between, positive
from virtio_ipsec.cli.configs import read_ports
from virtio_ipsec.cli.driver_shown import (
    caps_of,
    caps_text,
    packet_of,
    packet_text,
    rule_of,
    rule_text,
    sa_of,
    sa_text,
)
from virtio_ipsec.cli.exits import DONE, FINDING
from virtio_ipsec.conformance.target import Owner, Target, open_target
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.driver.errors import PathMtuExceeded, QueueFull
from virtio_ipsec.driver.sas import SaHandle
from virtio_ipsec.errors import CommandFailed, ConfigError, PacketError, TransportError
from virtio_ipsec.policy.actions import Action
from virtio_ipsec.policy.config import Config
from virtio_ipsec.policy.flows import first_match
from virtio_ipsec.policy.frames import network_header
from virtio_ipsec.policy.sa_config import SaSpec
from virtio_ipsec.transport.capture import Interface, LinkType, Packet, link_type
from virtio_ipsec.transport.pcap import create_capture, open_capture
from virtio_ipsec.wire.dialect import DIALECTS

#: Seconds that a device may take for packets that it has been shown.
_PATIENCE = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--device", required=True, metavar="TARGET", help="the device")
    parser.add_argument(
        "--dialect", default="virtio-1.4", choices=list(DIALECTS), help="default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_action(
        actions, "caps", "features, queues and capabilities", "driver --device vfio-user:/run/nic caps"
    )
    for name, what in (
        ("sa", "make the SAs of FILE on the device, and read each back"),
        ("flow", "make the inbound SAs of FILE and the rules that feed them"),
    ):
        action = add_action(actions, name, what, f"driver --device vfio:0000:03:00.0 {name} sas.toml")
        action.add_argument("file", metavar="FILE")
    send = add_action(
        actions,
        "send",
        "send a capture, each frame as the flows of FILE say",
        "driver --device vfio:03:00.0 send sas.toml frames.pcap",
    )
    send.add_argument(
        "file", metavar="FILE", help="outbound SAs, and flows that name them; other frames go in clear"
    )
    send.add_argument("capture", metavar="IN", help="Ethernet frames, pcap or pcapng")
    receive = add_action(
        actions,
        "recv",
        "receive packets, opened by the inbound SAs of FILE",
        "driver --device vfio-user:/run/nic recv sas.toml --count 10 --out got.pcapng",
    )
    receive.add_argument("file", metavar="FILE")
    receive.add_argument("--count", type=positive(int), metavar="N", help="end after N packets; fewer are an error")
    receive.add_argument(
        "--seconds", type=positive(float), default=10.0, metavar="S", help="end then (default: %(default)g)"
    )
    receive.add_argument("--out", metavar="FILE", help="write what was received as a capture")
    virtual = add_action(
        actions,
        "vfs",
        "enable virtual functions, of a PCI function that has any",
        "driver --device vfio-user:/run/nic vfs 2 --seconds 3600",
    )
    virtual.add_argument("number", type=between(0, 0xFFFF), metavar="N", help="how many")
    virtual.add_argument("--seconds", type=positive(float), metavar="S", help="end then (default: when interrupted)")


def run(arguments: argparse.Namespace) -> int:
    """Start the driver, do what is asked, and reset the device."""
    config = _config(arguments.file) if "file" in arguments else None
    dialect = config.dialect if config is not None else DIALECTS[arguments.dialect]
    with open_target(arguments.device, dialect) as target:
        driver = Driver(target, dialect, config=DriverConfig())
        driver.start()
        try:
            if config is not None:
                return _ACTIONS[arguments.action](driver, target, config, arguments)
            return _caps(driver, arguments) if arguments.action == "caps" else _vfs(target, arguments)
        finally:
            driver.stop()


def _config(name: str) -> Config:
    configs = read_ports(name)
    if len(configs) != 1:
        raise ConfigError(f"{name}: port is there more than once; this wants the SAs and flows of one")
    return configs[0]


def _print(
    arguments: argparse.Namespace, entries: Iterable[dict[str, Any]], text: Callable[[Any], str]
) -> None:
    """A list as JSON, or each entry in a line as it comes."""
    if arguments.json:
        print(json.dumps(list(entries), indent=1))
    else:
        for entry in entries:
            print(text(entry), flush=True)


def _caps(driver: Driver, arguments: argparse.Namespace) -> int:
    found = caps_of(driver)
    print(json.dumps(found, indent=1) if arguments.json else caps_text(found))
    return DONE


def _vfs(target: Target, arguments: argparse.Namespace) -> int:
    """They are there as long as this lasts."""
    if not isinstance(target, Owner):
        raise ConfigError(f"{target.name} has no virtual functions")
    if arguments.number > target.total_vfs:
        raise ConfigError(f"{target.name} has {target.total_vfs} virtual functions, and N is {arguments.number}")
    target.enable_vfs(arguments.number)
    _print(arguments, [{"enabled": arguments.number, "total": target.total_vfs}], _vfs_text)
    limit = None if arguments.seconds is None else monotonic() + arguments.seconds
    while limit is None or monotonic() < limit:
        target.poll(0.1)
    target.enable_vfs(None)
    return DONE


def _vfs_text(entry: dict[str, int]) -> str:
    return f"{entry['enabled']} of {entry['total']} virtual functions are enabled"


# -- what is made on the device


def _made(driver: Driver, specs: Iterable[SaSpec]) -> dict[int, SaHandle]:
    """The SAs, by the id in the file; the device's own ids are the driver's to choose."""
    return {
        spec.id: driver.sas.create_outbound(spec.sa) if spec.outbound else driver.sas.create_inbound(spec.sa)
        for spec in specs
    }


def _sa(driver: Driver, _: Target, config: Config, arguments: argparse.Namespace) -> int:
    """Each SA, or why the device does not take it."""
    refused = Counter[str]()

    def entries() -> Iterator[dict[str, Any]]:
        for spec in config.sas:
            try:
                ((_, handle),) = _made(driver, [spec]).items()
            except CommandFailed as error:
                refused[spec.suite.name] += 1
                yield sa_of(spec, None, None, str(error))
            else:
                has_query = driver.dialect.supports_modify_query
                yield sa_of(spec, handle, driver.sas.query(handle) if has_query else None)

    _print(arguments, entries(), sa_text)
    return FINDING if refused else DONE


def _flow(driver: Driver, _: Target, config: Config, arguments: argparse.Namespace) -> int:
    """The inbound SAs are made, then a rule for each of them and each IP version."""
    inbound = [spec for spec in config.sas if not spec.outbound]
    made = _made(driver, inbound)
    entries = (rule_of(number, rule) for number, sa in made.items() for rule in driver.flows.protect(sa))
    _print(arguments, entries, rule_text)
    return DONE


# -- packets


def _send(driver: Driver, target: Target, config: Config, arguments: argparse.Namespace) -> int:
    made = _made(driver, (spec for spec in config.sas if spec.outbound))
    counts = Counter[str]()
    for frame in _frames(Path(arguments.capture)):
        counts[_send_one(driver, target, config, made, frame)] += 1
    limit = monotonic() + _PATIENCE
    while driver.unsent:
        if monotonic() > limit:
            raise TransportError(f"the device does not take {driver.unsent} of the packets")
        target.poll(0.01)
        driver.reap()
    found = dict(sorted(counts.items()))
    print(
        json.dumps(found, indent=1)
        if arguments.json
        else "\n".join(f"{n:>8} {what}" for what, n in found.items())
    )
    return DONE


def _send_one(driver: Driver, target: Target, config: Config, made: dict[int, SaHandle], frame: bytes) -> str:
    """What became of a frame."""
    try:
        at = network_header(frame)
        flow = first_match(config.flows, frame[at:]) if at else None
    except PacketError as error:
        return f"not sent: {error.reason.value}"
    if flow is not None and flow.action is Action.DROP:
        return "not sent: flow"
    sa = made[flow.sa] if flow is not None and flow.sa is not None else None
    limit = monotonic() + _PATIENCE
    while True:
        try:
            driver.send(frame, sa)
        except PathMtuExceeded:
            return "not sent: too big"
        except QueueFull:
            if monotonic() > limit:
                raise TransportError("the device takes no more packets") from None
            target.poll(0.01)
        else:
            return "sent in clear" if sa is None else "sent protected"


def _frames(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        reader = open_capture(stream)
        for packet in reader:
            if link_type(reader.interfaces[packet.interface].link_type) is not LinkType.ETHERNET:
                raise ConfigError(f"{path} does not hold Ethernet frames")
            yield packet.data


def _recv(driver: Driver, target: Target, config: Config, arguments: argparse.Namespace) -> int:
    made = _made(driver, (spec for spec in config.sas if not spec.outbound))
    names = {handle.id: number for number, handle in made.items()}
    for handle in made.values():
        driver.flows.protect(handle)
    wanted, received = arguments.count, 0
    with ExitStack() as stack:
        writer = None
        if arguments.out is not None:
            stream = stack.enter_context(Path(arguments.out).open("wb"))
            form = "pcapng" if Path(arguments.out).suffix == ".pcapng" else "pcap"
            writer = create_capture(stream, form, [Interface(LinkType.ETHERNET)])

        def entries() -> Iterator[dict[str, Any]]:
            nonlocal received
            limit = monotonic() + arguments.seconds
            while wanted is None or received < wanted:
                for packet in driver.receive():
                    received += 1
                    if writer is not None:
                        writer.write(Packet(packet.frame, time_ns()))
                    yield packet_of(packet, names)
                    if received == wanted:
                        return
                left = limit - monotonic()
                if left <= 0:
                    return
                target.poll(min(left, 0.1))

        _print(arguments, entries(), packet_text)
    return FINDING if wanted is not None and received < wanted else DONE


_ACTIONS = {"sa": _sa, "flow": _flow, "send": _send, "recv": _recv}
