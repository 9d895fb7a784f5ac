"""The members of the SR-IOV group as their owner reaches them (virtio v1.4 2.12, group type 1).

Which virtual functions there are and what their registers hold is the transport's business: it makes a
:class:`Member` of every virtual function and tells the :class:`SriovGroup` when ``VF Enable`` changes. The
owner's administration commands ask the group for members and work on their devices.

Locks: the owner's first, then a member's, never the other way round, and never those of two members at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from virtio_ipsec.errors import ConfigError, InvalidGroup, InvalidMember, TransportError
from virtio_ipsec.ring.faults import Fault, LayoutError
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.wire.numbers import Feature, has

if TYPE_CHECKING:
    from virtio_ipsec.device.device import Device

#: VF numbers are 16 bits wide; 0 is none.
MAX_MEMBERS = 0xFFFF


class Member(Protocol):
    """One virtual function, whether it is live or not. A TransportError of any call ends a command with EAGAIN."""

    @property
    def device(self) -> Device:
        """The member's device, the same one for the life of the owner."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Inside, nobody else works on the device's control plane; what was changed there holds for all packets that
        come after it. Entered by the owner's commands, with the owner's lock held."""

    def appear(self) -> None:
        """The function is there from now on, as after a reset."""

    def leave(self) -> None:
        """Begin with what :meth:`vanish` awaits."""

    def vanish(self) -> None:
        """The function is gone: as by a function level reset, with every key wiped when this returns; whoever is
        connected is not served any more until :meth:`appear`. TransportError when it cannot be; then it is asked
        again before it may appear."""


@dataclass(frozen=True, slots=True)
class QueueRegisters:
    """What the common configuration shows of one virtqueue, and where its rings lie (guest addresses)."""

    size: int
    vector: int
    enabled: bool
    desc: int
    driver: int
    device: int
    notify_off: int
    notif_config_data: int


@dataclass(frozen=True, slots=True)
class FunctionState:
    """What device parts hold of a member (virtio v1.4 2.14).

    ``common``: value of each field of ``virtio_pci_common_cfg`` that belongs to the function as a whole and is in no
    part of its own, by its offset. ``queues`` by virtqueue index, the administration queue included. ``controls``:
    control queue commands that bring about what the driver has set with such; a transport leaves them to the device.
    """

    device_features: int
    driver_features: int
    status: int
    common: Mapping[int, bytes] = field(default_factory=dict)
    queues: Mapping[int, QueueRegisters] = field(default_factory=dict)
    controls: tuple[bytes, ...] = ()


class StoppableMember(Member, Protocol):
    """A member whose state can be read and set by device parts. All of this is called with the owner's lock held and
    without the member's."""

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` holds."""

    def stop(self) -> None:
        """Until :meth:`resume`: no access to queues and buffers, no notification of any kind. Buffers that were seen
        are completed when this returns. Registers go on working (DP-DEV-08 to DP-DEV-16)."""

    def resume(self, state: FunctionState | None = None) -> None:
        """Go on; with ``state`` as if the driver had set that up in a fresh function, for which
        :func:`~virtio_ipsec.device.device_parts.restore` sees to the device. A queue that lies where it lay goes on
        where it stopped, another where :func:`ring_position` says. What no function can be set to ends in
        DEVICE_NEEDS_RESET."""

    def state(self) -> FunctionState:
        """The registers as they are."""


def ring_position(memory: GuestMemory, queue: QueueRegisters, features: int) -> int:
    """Where a queue goes on that another function has stopped at: a stopped device has completed all that it has seen,
    so the used index of a split ring tells. MemoryAccessError for a ring outside the memory; RingError for a packed
    ring, which tells nobody (E112)."""
    if has(features, Feature.F_RING_PACKED):
        raise LayoutError(Fault.INDEX, "where a packed ring stopped is in no device part")
    return memory.u16(queue.device + 2)


class Members(Protocol):
    """What the owner's commands ask."""

    @property
    def num_vfs(self) -> int | None:
        """NumVFs while ``VF Enable`` is set; None: the group does not exist."""

    @property
    def total_vfs(self) -> int:
        """Most members there can be."""

    @property
    def stoppable(self) -> bool:
        """Whether every member is a :class:`StoppableMember`."""

    @property
    def lives(self) -> int:
        """How often members have vanished: what was made for them before is void."""

    def member(self, number: int) -> Member:
        """Member ``number``; InvalidGroup or InvalidMember when there is none."""


class SriovGroup:
    """The virtual functions of one owner, VF 1 first. ``stoppable``: all are :class:`StoppableMember`."""

    def __init__(self, members: Sequence[Member], *, stoppable: bool = False) -> None:
        if len(members) > MAX_MEMBERS:
            raise ConfigError(f"{len(members)} virtual functions: at most {MAX_MEMBERS}")
        self._members = tuple(members)
        self._num_vfs: int | None = None
        #: Those that were there and have not been seen to vanish.
        self._leaving: list[Member] = []
        self.stoppable = stoppable
        self.lives = 0

    @property
    def num_vfs(self) -> int | None:
        """See :class:`Members`."""
        return self._num_vfs

    @property
    def total_vfs(self) -> int:
        """See :class:`Members`."""
        return len(self._members)

    def member(self, number: int) -> Member:
        """See :class:`Members`."""
        if self._num_vfs is None:
            raise InvalidGroup("VF Enable is clear", clause="ADM-DEV-17")
        if not 1 <= number <= self._num_vfs:
            raise InvalidMember(f"group member {number}: 1 to {self._num_vfs}", clause="ADM-DEV-18")
        return self._members[number - 1]

    def enable(self, num_vfs: int) -> None:
        """``VF Enable`` is set with this NumVFs: VFs 1 to ``num_vfs`` appear. Nothing where it was set already, for
        NumVFs cannot change then; ConfigError for more than there are, TransportError when one does not answer, and
        then none is there."""
        if not 0 <= num_vfs <= len(self._members):
            raise ConfigError(f"NumVFs {num_vfs}: at most {len(self._members)}")
        if self._num_vfs is None:
            self._purge()
            try:
                for number, member in enumerate(self._members[:num_vfs]):
                    self._leaving = list(self._members[: number + 1])
                    member.appear()
            except TransportError:
                with suppress(TransportError):
                    self._purge()
                raise
            self._leaving = []
            self._num_vfs = num_vfs

    def disable(self) -> None:
        """``VF Enable`` is clear: every member vanishes, and nothing is left of it when this returns. Whatever its
        owner had made in it is gone before the same number answers again. TransportError when one does not answer:
        the group does not exist nevertheless."""
        gone, self._num_vfs = self._members[: self._num_vfs or 0], None
        self.lives += bool(gone)
        self._leaving += gone
        self._purge()

    def _purge(self) -> None:
        """Let those vanish that have to; all of them at once, before the first error is raised."""
        waiting, self._leaving = self._leaving, []
        errors: list[TransportError] = []
        for member in waiting:
            member.leave()
        for member in waiting:
            try:
                member.vanish()
            except TransportError as error:
                errors.append(error)
                self._leaving.append(member)
        if errors:
            raise errors[0]
