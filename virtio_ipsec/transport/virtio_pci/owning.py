"""A link to a function that owns virtual functions, which are reached through it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, TypeVar

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.virtio_pci.link import PciLink
from virtio_ipsec.transport.virtio_pci.owner import VirtualFunctions

#: What is reached of a virtual function.
M = TypeVar("M", bound=PciLink)


class OwnerLink(PciLink, Generic[M]):
    """What a target has in addition when its virtual functions can be reached
    (:class:`~virtio_ipsec.conformance.target.Owner`): stands before its class among the bases of the owner's."""

    name: str

    def __init__(self, *arguments: Any) -> None:
        self._members: dict[int, M] = {}
        super().__init__(*arguments)

    @abstractmethod
    def _reach(self, number: int) -> M:
        """Virtual function ``number``, which is there, from its driver's side."""

    @property
    def _functions(self) -> VirtualFunctions:
        if self.virtual_functions is None:
            raise TransportError(f"{self.name} has no virtual functions")
        return self.virtual_functions

    @property
    def total_vfs(self) -> int:
        """How many virtual functions there can be."""
        return self._functions.total

    def enable_vfs(self, num_vfs: int | None) -> None:
        """Set VF Enable with this NumVFs where it is clear, or clear it."""
        if num_vfs is None:
            self._let_go()
            self._functions.disable()
        else:
            self._functions.enable(num_vfs)

    def member(self, number: int) -> M:
        """Virtual function ``number`` from its driver's side; TransportError while it is not there."""
        if not 1 <= number <= self._functions.enabled:
            raise TransportError(f"virtual function {number} of {self.name} is not there")
        if number not in self._members:
            self._members[number] = self._reach(number)
        return self._members[number]

    def reset(self) -> None:
        """Reset the device; all virtual functions vanish and appear anew."""
        super().reset()
        self.enable_vfs(None)
        self.enable_vfs(self.total_vfs)

    def close(self) -> None:
        """Release them, then the owner."""
        self._let_go()
        super().close()

    def _let_go(self) -> None:
        for member in self._members.values():
            member.close()
        self._members.clear()
