"""An owner with virtual functions in the same process: each is a loopback of its own, with its own memory and wire."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from virtio_ipsec.device.device import Device
from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.errors import DeviceStateError
from virtio_ipsec.transport.loopback_target import LoopbackTarget


class LoopbackMember(LoopbackTarget):
    """One virtual function, from its driver's side and from its owner's
    (:class:`~virtio_ipsec.device.members.Member`)."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.live = False

    def exclusive(self) -> AbstractContextManager[object]:
        """One thread has all of it."""
        return nullcontext()

    def appear(self) -> None:
        """VF Enable: as after a reset, which :meth:`vanish` was."""
        self.live = True

    def vanish(self) -> None:
        """VF Enable is clear: the device is reset, and frames on the wire are lost."""
        self.reset()
        self.live = False


class LoopbackOwner(LoopbackTarget):
    """A physical function that owns ``members`` (:class:`~virtio_ipsec.conformance.target.Owner`)."""

    def __init__(self, device: Device, members: Sequence[LoopbackMember]) -> None:
        super().__init__(device)
        self._members = tuple(members)
        self._group = SriovGroup(self._members)
        device.members = self._group
        self.enable_vfs(len(members))

    def reset(self) -> None:
        """Reset the device; all virtual functions vanish and appear anew."""
        super().reset()
        self.enable_vfs(None)
        self.enable_vfs(len(self._members))

    @property
    def total_vfs(self) -> int:
        """How many virtual functions there can be."""
        return len(self._members)

    def enable_vfs(self, num_vfs: int | None) -> None:
        """Set VF Enable with this NumVFs, or clear it."""
        if num_vfs is None:
            self._group.disable()
        else:
            self._group.enable(num_vfs)

    def member(self, number: int) -> LoopbackMember:
        """Virtual function ``number`` from its driver's side; DeviceStateError while it is not there."""
        found = self._members[number - 1]
        if not found.live:
            raise DeviceStateError(f"virtual function {number} is not there")
        return found
