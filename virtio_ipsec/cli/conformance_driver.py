"""`conformance --driver`: judge a driver by what it does to a watched device."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address
from time import perf_counter

from virtio_ipsec.cli.arguments import positive
from virtio_ipsec.conformance.monitor.judge import Judge
from virtio_ipsec.conformance.monitor.report import judge_trace
from virtio_ipsec.conformance.monitor.script import PCI_FACES, perform, perform_over_pci
from virtio_ipsec.conformance.result import Report
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.transport.monitor.events import Recorder
from virtio_ipsec.transport.monitor.faces import FACES
from virtio_ipsec.transport.monitor.listen import Invitation, Stopper, parse_where, receive_drivers
from virtio_ipsec.wire.dialect import DIALECTS

#: Options of a driver run, which mean nothing without --driver; those of them that want --listen; and those of a
#: device run.
OWN = ("listen", "face", "probe", "rough", "seconds")
_AT_A_SOCKET = ("probe", "rough", "seconds", "wire")
_FOREIGN = ("device", "target", "jobs", "seed", "limit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a driver run."""
    group = parser.add_argument_group("drivers")
    group.add_argument(
        "--driver", action="store_true", help="judge a driver; without --listen our own one, in this process"
    )
    group.add_argument(
        "--listen",
        metavar="WHERE",
        help="where the driver finds the device: vhost-user:PATH (with the IPsec binding, or as a hypervisor's "
        "back-end) or vfio-user:PATH; --wire is then what the device's frames go to",
    )
    group.add_argument(
        "--face",
        action="append",
        metavar="NAME",
        choices=list(FACES),
        help=f"another device for the driver; repeatable ({', '.join(FACES)}; default: full, of our own driver all)",
    )
    group.add_argument(
        "--probe",
        metavar="ADDRESS",
        type=_address,
        help="IPv4 address of what runs behind the driver: connection requests from the two addresses that follow "
        "it ask how the driver takes received packets",
    )
    group.add_argument(
        "--rough",
        action="store_true",
        help="answer some commands with statuses that nobody knows; costs the driver SAs",
    )
    group.add_argument(
        "--seconds",
        type=positive(float),
        metavar="S",
        help="end each face then (default: when the driver goes)",
    )


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check(arguments: argparse.Namespace) -> None:
    """ConfigError for options that do not go together."""
    if not arguments.driver:
        if name := given(arguments, OWN):
            raise ConfigError(f"--{name} is for --driver")
    elif name := given(arguments, _FOREIGN):
        raise ConfigError(f"--{name} is for devices: leave it out with --driver")
    elif arguments.listen is not None:
        parse_where(arguments.listen)
    elif name := given(arguments, _AT_A_SOCKET):
        raise ConfigError(f"--{name} needs --listen")


def given(arguments: argparse.Namespace, names: Iterable[str]) -> str:
    """The first of these options that is not as usual; "" when all are."""
    return next((name for name in names if getattr(arguments, name) != arguments.usual[name]), "")


def judged(arguments: argparse.Namespace, judges: Iterable[Judge]) -> Report:
    """The report on the driver that comes, or on our own. Ends early when it is interrupted. TransportError when
    nothing can listen."""
    begin = perf_counter()
    recorder = Recorder(DIALECTS[arguments.dialect])
    if arguments.listen is None:
        names = arguments.face or list(FACES)
        perform(recorder, os.urandom, [FACES[name] for name in names])
        perform_over_pci(recorder, os.urandom, [FACES[name] for name in names if name in PCI_FACES])
        name = "virtio_ipsec.driver"
    else:
        name = arguments.listen
        invitation = Invitation(
            where=arguments.listen,
            uplink=arguments.wire or "null",
            address=arguments.probe,
            seconds=arguments.seconds,
            rough=arguments.rough,
        )
        stopper = Stopper()
        before = signal.signal(signal.SIGINT, lambda number, frame: stopper.set())
        try:
            faces = [FACES[name] for name in arguments.face or ["full"]]
            receive_drivers(invitation, faces, recorder, _tell, stopper)
        finally:
            signal.signal(signal.SIGINT, before)
        if stopper.is_set:
            _tell("interrupted: judging what was seen")
    return judge_trace(recorder, name, judges=judges, seconds=perf_counter() - begin)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
