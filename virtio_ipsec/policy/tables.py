"""Values of policy in tables: octets, ranges, addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from virtio_ipsec import tables

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Table(tables.Table):
    """One table of a configuration, or of a request."""

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
