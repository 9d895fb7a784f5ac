"""VERSION: the first message of a vfio-user connection and its answer, with capabilities as JSON."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, fields
from typing import Any, Final

from virtio_ipsec.transport.payload import Layout, MessageError

#: The version that is spoken here. Minor versions are not told apart by anything.
MAJOR: Final = 0
MINOR: Final = 1
#: Most bytes of JSON: all that the text defines fits many times.
_LONGEST = 4096
_VERSION = struct.Struct("=HH")
_OBJECT = "capabilities"
_TWIN = "twin_socket"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the sender can take; None is not said. What a peer that says nothing can take, the properties tell.

    ``twin_socket``: the sender has, or wants, a second socket for commands of the server; ``twin_fd`` says which
    descriptor of an answer it is.
    """

    max_msg_fds: int | None = None
    max_data_xfer_size: int | None = None
    max_dma_maps: int | None = None
    pgsizes: int | None = None
    write_multiple: bool | None = None
    twin_socket: bool | None = None
    twin_fd: int | None = None

    @property
    def most_fds(self) -> int:
        """Descriptors of one message."""
        return 1 if self.max_msg_fds is None else self.max_msg_fds

    @property
    def most_data(self) -> int:
        """Bytes moved by one message."""
        return 1 << 20 if self.max_data_xfer_size is None else self.max_data_xfer_size

    @property
    def most_maps(self) -> int:
        """DMA mappings at a time."""
        return 0xFFFF if self.max_dma_maps is None else self.max_dma_maps

    @property
    def page_sizes(self) -> int:
        """Sizes of pages, or'ed together."""
        return 0x1000 if self.pgsizes is None else self.pgsizes


@dataclass(frozen=True, slots=True)
class Version:
    """A version and capabilities, proposed or agreed on."""

    major: int = MAJOR
    minor: int = MINOR
    capabilities: Capabilities = Capabilities()


#: Capabilities that are plain values, and what a value may be.
_PLAIN = {each.name: bool if each.name == "write_multiple" else int for each in fields(Capabilities)[:5]}


def _build(version: Version) -> bytes:
    said = version.capabilities
    found: dict[str, Any] = {name: getattr(said, name) for name in _PLAIN if getattr(said, name) is not None}
    if said.twin_socket is not None:
        found[_TWIN] = {"supported": said.twin_socket}
        if said.twin_fd is not None:
            found[_TWIN]["fd_index"] = said.twin_fd
    text = json.dumps({_OBJECT: found}, separators=(",", ":"))
    return _VERSION.pack(version.major, version.minor) + text.encode() + b"\0"


def _parse(payload: bytes) -> Version:
    major, minor = _VERSION.unpack_from(payload)
    text = payload[_VERSION.size :]
    if not text.strip(b"\0"):
        return Version(major, minor)
    try:
        said = json.loads(text.partition(b"\0")[0])
    except (ValueError, RecursionError):
        raise MessageError("version data that is no JSON") from None
    found = _object(said, "version data").get(_OBJECT, {})
    return Version(major, minor, _capabilities(_object(found, _OBJECT)))


def _capabilities(found: dict[str, Any]) -> Capabilities:
    """Those that are known; others are for somebody else."""
    values = {name: _value(name, found[name], kind) for name, kind in _PLAIN.items() if name in found}
    if _TWIN in found:
        twin = _object(found[_TWIN], _TWIN)
        values["twin_socket"] = _value("supported", twin.get("supported", False), bool)
        if "fd_index" in twin:
            values["twin_fd"] = _value("fd_index", twin["fd_index"], int)
    return Capabilities(**values)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MessageError(f"{name} is no JSON object")
    return value


def _value(name: str, value: Any, kind: type[int]) -> Any:
    if type(value) is not kind or not 0 <= value < 1 << 64:
        raise MessageError(f"capability {name} has a value that is none")
    return value


VERSION: Final[Layout[Version]] = Layout("version", _VERSION.size, _VERSION.size + _LONGEST, _build, _parse)
