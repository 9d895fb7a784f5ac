"""Devices at a socket, one face after the other, for a foreign driver to come to."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from time import monotonic_ns

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.driver.link import TRANSPORT_BITS
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.transport.loop import Loop
from virtio_ipsec.transport.monitor.events import Began, Recorder
from virtio_ipsec.transport.monitor.faces import Face, Questions, make_device
from virtio_ipsec.transport.monitor.member import ServedMember, WatchedMember, member_device
from virtio_ipsec.transport.monitor.port import WatchedFunction, WatchedPort, WatchedSession
from virtio_ipsec.transport.monitor.prober import Prober
from virtio_ipsec.transport.monitor.probing import ProbingUplink, Rounds
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.serving import PATIENCE, Conversation, Serving
from virtio_ipsec.transport.uplink import open_uplink
from virtio_ipsec.transport.vfio_user.connection import Connection as VfioConnection
from virtio_ipsec.transport.vfio_user.session import Session as VfioSession
from virtio_ipsec.transport.vhost_user.connection import Connection as VhostConnection
from virtio_ipsec.transport.vhost_user.features import device_features
from virtio_ipsec.transport.virtio_pci.direct import DirectAccess
from virtio_ipsec.transport.virtio_pci.function import PciFunction
from virtio_ipsec.transport.virtio_pci.link import Options, PciLink
from virtio_ipsec.transport.virtio_pci.member import VirtualFunction
from virtio_ipsec.wire.numbers import Feature, mask

_log = logging.getLogger(__name__)
#: Ways for a driver to come.
WAYS = ("vhost-user", "vfio-user")
_SR_IOV = mask(Feature.F_SR_IOV)
_PCI_CARRIES = TRANSPORT_BITS & ~(mask(Feature.F_SUSPEND) | _SR_IOV)
#: What the function itself offers, where it does.
_FUNCTION_OFFERS = mask(Feature.F_NOTIF_CONFIG_DATA)
#: Bytes of memory of a driver in this process.
_MEMORY = 8 << 20
#: The device configuration in the BAR is a page.
_PCI_SHOWS = frozenset({"registers", "notifications", "pci", "long config"})
_MEMBERS = frozenset({"members"})
_VHOST_CARRIES = mask(Feature.F_RING_RESET, Feature.F_ADMIN_VQ)
#: A vhost-user front-end answers for translation itself.
_NOT_OVER_VHOST = mask(Feature.F_ACCESS_PLATFORM)


@dataclass(frozen=True, slots=True)
class Invitation:
    """What is set up for a driver. ``where``: ``vhost-user:PATH`` or ``vfio-user:PATH``. ``address``: of the stack
    behind the driver, to be asked; None: it is not asked. ``seconds``: how long each face is there at most; None:
    until its driver goes. ``rough``: with answers that cost the driver an SA."""

    where: str
    uplink: str = "null"
    address: IPv4Address | None = None
    seconds: float | None = None
    rough: bool = False


class _Once(Serving):
    """Serves one peer; when it has gone the port's loop ends."""

    peer = "driver"

    def __init__(self, port: WatchedPort, path: str, opens: Callable[[socket.socket], Conversation]) -> None:
        self._opens = opens
        super().__init__(port, path)

    def _open(self, sock: socket.socket) -> Conversation:
        return self._opens(sock)

    def _end(self, session: Conversation) -> None:
        super()._end(session)
        self.port.loop.stop()


def parse_where(where: str) -> tuple[str, str]:
    """The way and the path. ConfigError for anything else; a path alone is a vhost-user socket."""
    way, colon, path = where.partition(":")
    if not colon:
        way, path = WAYS[0], where
    if way not in WAYS or not path:
        raise ConfigError(f"--listen {where}: one of {', '.join(f'{w}:PATH' for w in WAYS)}")
    return way, path


class Stopper:
    """Ends a run from anywhere, a signal handler among it: what was seen until then is kept."""

    def __init__(self) -> None:
        self.is_set = False
        self._loop: Loop | None = None

    def set(self) -> None:
        """Let the driver go, and wait for no other one."""
        self.is_set = True
        if self._loop is not None:
            self._loop.stop()

    def holds(self, loop: Loop) -> None:
        """This loop is to be ended."""
        self._loop = loop
        if self.is_set:
            loop.stop()


def receive_drivers(
    invitation: Invitation,
    faces: Sequence[Face],
    recorder: Recorder,
    told: Callable[[str], None] = lambda text: None,
    stopper: Stopper | None = None,
) -> None:
    """A device with each of ``faces``, one after the other, until its driver has gone. ``told`` hears what is going on.
    TransportError when nothing can listen."""
    way, path = parse_where(invitation.where)
    stopper = stopper or Stopper()
    for face in faces:
        if stopper.is_set:
            return
        told(f"{way}:{path}: waiting for a driver; face {face.name}: {face.summary}")
        _receive(way, path, invitation, face, recorder, stopper)


def _receive(
    way: str, path: str, invitation: Invitation, face: Face, recorder: Recorder, stopper: Stopper
) -> None:
    questions = Questions(face, rough=invitation.rough)
    shown = -1 if way == "vfio-user" else ~_NOT_OVER_VHOST
    device = make_device(face, recorder.dialect, questions, os.urandom, shown=shown & ~_FUNCTION_OFFERS)
    uplink = ProbingUplink(open_uplink(invitation.uplink))
    port = WatchedPort(device, uplink, recorder)
    function: WatchedFunction | None = None
    members: list[ServedMember] = []
    opens: Callable[[socket.socket], Conversation]
    try:
        if way == "vfio-user":
            # One by one: those that are there are closed when another one cannot be.
            members.extend(
                ServedMember(device, number, f"{path}.vf{number}", recorder)
                for number in range(1, face.vfs + 1)
            )
            function = _watched_function(face, port, [each.member for each in members])
            opens = partial(_vfio_session, function)
        else:
            began = _began(face, device, device_features(port), _VHOST_CARRIES, frozenset())
            recorder.note(began)
            opens = partial(_vhost_session, port, began)
        if invitation.address is not None:
            prober = uplink.prober = Prober(device, questions, recorder, invitation.address)
            Rounds(port.loop, uplink, prober)
        serving = _Once(port, path, opens)
        if invitation.seconds is not None:
            port.loop.at(monotonic_ns() + int(invitation.seconds * 1e9), port.loop.stop)
        stopper.holds(port.loop)
        try:
            port.loop.run()
        finally:
            serving.close()
    finally:
        if function is not None:
            function.close()
        port.close()
        for each in members:
            each.close()


class WatchedPci(PciLink):
    """A link to a watched function of this process, and to those virtual ones that it owns."""

    def __init__(self, function: WatchedFunction, members: Sequence[PciFunction]) -> None:
        self._members = members
        super().__init__(DirectAccess(function), Options(memory=_MEMORY))

    def member(self, number: int) -> PciLink:
        """Virtual function ``number``, the caller's to close. TransportError while it is not there."""
        return PciLink(DirectAccess(self._members[number - 1]), Options(memory=_MEMORY))


@contextmanager
def watched_pci(face: Face, recorder: Recorder, rng: Callable[[int], bytes]) -> Iterator[WatchedPci]:
    """A link to a device with this face as a PCI function of this process; what is done to it goes to ``recorder``."""
    device = make_device(face, recorder.dialect, Questions(face, rough=True), rng, shown=~_FUNCTION_OFFERS)
    with ExitStack() as held:
        port = WatchedPort(device, open_uplink("null"), recorder)
        held.callback(port.close)
        functions = []
        for number in range(1, face.vfs + 1):
            own = ServedPort(member_device(device, number, rng), open_uplink("null"), name=f"vf{number}")
            held.callback(own.close)
            functions.append(WatchedMember(number, recorder, own, virtual=True))
            held.callback(functions[-1].close)
        function = _watched_function(face, port, [VirtualFunction(each) for each in functions])
        held.callback(function.close)
        link = WatchedPci(function, functions)
        held.callback(link.close)
        yield link


def _watched_function(face: Face, port: WatchedPort, members: Sequence[VirtualFunction]) -> WatchedFunction:
    group = SriovGroup(members, stoppable=True) if members else None
    function = WatchedFunction(port, members=group, notifications=bool(face.beyond))
    carried, shows = (
        (_PCI_CARRIES | _SR_IOV, _PCI_SHOWS | _MEMBERS) if members else (_PCI_CARRIES, _PCI_SHOWS)
    )
    port.recorder.note(_began(face, port.device, function.offered, carried, shows))
    return function


def _began(face: Face, device: Device, offered: int, carried: int, shows: frozenset[str]) -> Began:
    return Began(
        face.name,
        offered,
        carried,
        shows,
        device.queue_count,
        device.config.max_queue_pairs,
        device.admin_queue_index,
        1,
        device.config.mtu,
    )


def _vfio_session(function: WatchedFunction, sock: socket.socket) -> Conversation:
    return VfioSession(function, VfioConnection(sock, patience=PATIENCE))


def _vhost_session(port: WatchedPort, began: Began, sock: socket.socket) -> Conversation:
    return WatchedSession(port, VhostConnection(sock, patience=PATIENCE), began)
