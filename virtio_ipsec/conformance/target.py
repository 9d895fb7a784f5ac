"""What the suite needs of a device under test: a raw link, and a wire when the test bed has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Protocol, cast, runtime_checkable

from virtio_ipsec.driver.link import Link
from virtio_ipsec.errors import ConfigError, VirtioIpsecError
from virtio_ipsec.transport.loopback_pci import loopback_pci
from virtio_ipsec.transport.targets import loopback
from virtio_ipsec.transport.uplink import open_uplink
from virtio_ipsec.transport.vhost_user.target import vhost_user
from virtio_ipsec.transport.virtio_pci.target import vfio, vfio_user
from virtio_ipsec.transport.wire import Wired
from virtio_ipsec.wire.dialect import Dialect

#: Installed packages add targets under this group: name -> callable(argument, dialect) -> Target.
ENTRY_POINTS = "virtio_ipsec.targets"


class Target(Link, Protocol):
    """A device under test. Everything raw: no call interprets what passes through it.

    A target whose device works on its own time lets it work in :meth:`poll`; the suite polls up to
    ``patience`` seconds before it calls the device wedged or a frame absent.
    """

    @property
    def name(self) -> str:
        """What was asked for, for the report: ``loopback``, ``vhost-user:/tmp/s``."""

    @property
    def dialect(self) -> Dialect:
        """The dialect that the device is to speak."""

    @property
    def details(self) -> Mapping[str, str]:
        """Vendor, model, firmware: free text for the report."""

    @property
    def has_wire(self) -> bool:
        """Whether frames can be injected and captured at the device's other side."""

    @property
    def patience(self) -> float:
        """Seconds to wait for an answer; 0 for a device that answers within the call."""

    def reset(self) -> None:
        """Reset the device, wait until it is reset, and forget captured frames and interrupts."""

    def inject(self, frame: bytes) -> None:
        """A frame arrives at the device from the wire."""

    def captured(self) -> list[bytes]:
        """Frames that left on the wire since the last call."""

    def close(self) -> None:
        """Release what the target holds."""


@runtime_checkable
class Owner(Protocol):
    """What a :class:`Target` has in addition when its device owns an SR-IOV group whose members can be reached. After
    a reset of the target all members are there, fresh."""

    @property
    def total_vfs(self) -> int:
        """How many virtual functions there can be."""

    def enable_vfs(self, num_vfs: int | None) -> None:
        """Set VF Enable with this NumVFs where it is clear, or clear it."""

    def member(self, number: int) -> Target:
        """Virtual function ``number``, while it is there."""


Factory = Callable[[str, Dialect], Target]


#: Target name -> what opens it.
BUILT_IN: Mapping[str, Factory] = {
    "loopback": loopback,
    "loopback-pci": loopback_pci,
    "vhost-user": vhost_user,
    "vfio-user": vfio_user,
    "vfio": vfio,
}


def factory(name: str) -> Factory:
    """What opens targets of this name: a built-in one, else that of an installed package. Only the package that is
    asked for is imported: one that is broken spoils its own target alone. ConfigError for an unknown name, and for a
    package that cannot be imported."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    entries = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in entries:
        known = ", ".join(sorted({*BUILT_IN, *entries}))
        raise ConfigError(f"no target is called {name!r}; known: {known}")
    try:
        return cast(Factory, entries[name].load())
    except Exception as error:  # whatever a foreign module does when it is imported
        raise ConfigError(
            f"target {name}: {entries[name].value} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def open_target(uri: str, dialect: Dialect, wire: str | None = None) -> Iterator[Target]:
    """Open ``NAME`` or ``NAME:ARGUMENT`` and close it afterwards; ``wire`` is the uplink URI of the far end of the
    device's wire. Raises ConfigError for an unknown name, and for a wire where there is one already; and whatever
    TransportError the target raises when it cannot be reached."""
    name, _, argument = uri.partition(":")
    target = factory(name)(argument, dialect)
    if wire is not None:
        target = _with_wire(target, wire)
    try:
        yield target
    finally:
        target.close()


def _with_wire(target: Target, uri: str) -> Target:
    try:
        if target.has_wire:
            raise ConfigError(f"target {target.name} has a wire of its own: leave --wire out")
        return cast(Target, Wired(target, open_uplink(uri)))
    except VirtioIpsecError:
        target.close()
        raise
