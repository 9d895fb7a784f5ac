"""TOML tables (or JSON objects of the same keys) read field by field, each checked for type and range.

A message says where the field stands (``sa 2: spi``) and what would be right; it never quotes a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NoReturn

from virtio_ipsec.errors import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Table:
    """One table with the place it stands at; fields that are not ``known`` are refused."""

    def __init__(self, values: Mapping[str, Any], place: str, known: frozenset[str]) -> None:
        self.values = values
        self.place = place
        for name in values:
            if name not in known:
                self.refuse(_shown(name), f"is not known here; known: {', '.join(sorted(known))}")

    def refuse(self, name: str, message: str) -> NoReturn:
        raise ConfigError(f"{self.place}: {name} {message}")

    def has(self, name: str) -> bool:
        return name in self.values

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.values.get(name, default)
        if value is None:
            self.refuse(name, "is missing")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(name, f"must be a whole number from {low} to {high}")
        return value

    def boolean(self, name: str) -> bool:
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            self.refuse(name, "must be true or false")
        return value

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if value is None:
            self.refuse(name, "is missing")
        if not isinstance(value, str):
            self.refuse(name, "must be a string")
        return value

    def line(self, name: str) -> str | None:
        """A text that can stand in a log line; None when it is not there."""
        if not self.has(name):
            return None
        value = self.text(name)
        if not value or len(value) > 4096 or not value.isprintable():
            self.refuse(name, "must be one line of printable characters")
        return value

    def choice(self, name: str, known: Mapping[str, object], default: str | None = None) -> str:
        value = self.values.get(name, default)
        if value is None:
            self.refuse(name, f"is missing; one of {', '.join(known)}")
        if not isinstance(value, str) or value not in known:
            self.refuse(name, f"must be one of {', '.join(known)}")
        return value

    def octets(self, name: str) -> bytes:
        if not self.has(name):
            return b""
        try:
            return bytes.fromhex(self.text(name).removeprefix("0x"))
        except ValueError:
            self.refuse(name, "must be hexadecimal digits, two per octet")

    def span(self, name: str, highest: int) -> tuple[int, int] | None:
        """A number, or "low-high": both ends belong to it. None when it is not there."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            low, dash, high = value.partition("-")
            if dash and low.isdecimal() and high.isdecimal() and len(value) <= 11 and value.isascii():
                found = int(low), int(high)
                if found[0] <= found[1] <= highest:
                    return found
            self.refuse(name, f'must be a number or a range as "1000-2000", at most {highest}')
        number = self.integer(name, 0, highest)
        return number, number

    def mac(self, name: str) -> bytes | None:
        """An Ethernet address of one host; None when it is not there."""
        if not self.has(name):
            return None
        parts = self.text(name).split(":")
        try:
            found = bytes(int(part, 16) for part in parts if len(part) == 2 and part.isalnum())
        except ValueError:
            found = b""
        if len(parts) != 6 or len(found) != 6 or found[0] & 1 or not any(found):
            self.refuse(name, "must be the Ethernet address of one host, as 02:00:00:00:00:01")
        return found

    def address(self, name: str) -> Address:
        """An address of one host: no zone, and not the unspecified one."""
        try:
            address = ip_address(self.text(name))
        except ValueError:
            self.refuse(name, "must be an IP address")
        if address.is_unspecified or getattr(address, "scope_id", None):
            self.refuse(name, "must be an IP address of one host, without a zone")
        return address

    def network(self, name: str) -> Network | None:
        if not self.has(name):
            return None
        try:
            network = ip_network(self.text(name))
        except ValueError:
            self.refuse(name, "must be an address or a network whose host bits are zero")
        if getattr(network.network_address, "scope_id", None):
            self.refuse(name, "must have no zone")
        return network

    def texts(self, name: str) -> list[str]:
        entries = self.values.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            self.refuse(name, "must be a list of strings")
        return entries

    def tables(self, name: str, known: frozenset[str]) -> list[Table]:
        entries = self.values.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self.refuse(name, f"must be written as [[{name}]] tables")
        prefix = "" if self.place == "file" else f"{self.place}: "
        return [Table(entry, f"{prefix}{name} {number}", known) for number, entry in enumerate(entries, 1)]

    def table(self, name: str, known: frozenset[str]) -> Table | None:
        if not self.has(name):
            return None
        entry = self.values[name]
        if not isinstance(entry, dict):
            self.refuse(name, "must be a table")
        prefix = "" if self.place == "file" else f"{self.place}: "
        return Table(entry, f"{prefix}{name}", known)


def _shown(name: str) -> str:
    """A name for a message: on one line, and cut, for it may be a key in the wrong place."""
    short = name if len(name) <= 20 else f"{name[:8]}..."
    return short if short.isidentifier() else repr(short)
