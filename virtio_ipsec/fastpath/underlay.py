"""What an operator's port knows of the networks at its ends, for csrc/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import native


class Path(Protocol):
    """How tunnel packets to a peer leave: ``policy.state.PeerPath``."""

    @property
    def mac(self) -> bytes: ...
    @property
    def mtu(self) -> int: ...


class UnderlayBlock:
    """Unchanging; another state of things is another block. ConfigError when C cannot have it.

    ``own``: the port's IP addresses, ``mac`` its Ethernet address, None where there are no tunnels. ``paths``: how
    tunnel packets leave, by peer. ``narrow``: octets that IP packets to an address may have, where that is less than
    ``mtu``. ``learns_guest``: ``guest_mac`` is what the guest has sent from last, not what was configured. ``seed``:
    64 random bits for the hash.
    """

    __slots__ = ("_handle",)

    def __init__(
        self,
        seed: int,
        *,
        mtu: int,
        guest_mtu: int,
        mac: bytes | None = None,
        own: tuple[Any, ...] = (),
        paths: Mapping[Any, Path] | None = None,
        narrow: Mapping[Any, int] | None = None,
        guest_mac: bytes | None = None,
        learns_guest: bool = False,
        mss_clamp: bool = False,
    ) -> None:
        ffi, lib = native.extension()
        known: dict[Any, dict[str, Any]] = {address: {"is_own": 1} for address in own}
        for address, octets in (narrow or {}).items():
            known.setdefault(address, {})["mtu"] = octets
        for address, path in (paths or {}).items():
            known.setdefault(address, {}).update(has_path=1, mac=path.mac, mtu=path.mtu)
        config: Any = ffi.new("struct vipsec_underlay_config *")
        addresses: Any = ffi.new("struct vipsec_underlay_address[]", len(known))
        for made, (address, fields) in zip(addresses, known.items(), strict=True):
            made.address, made.family = address.packed.ljust(16, b"\0"), address.version
            for name, value in fields.items():
                setattr(made, name, value)
        config.hash_seed, config.addresses, config.address_count = seed, addresses, len(known)
        config.mtu, config.guest_mtu = mtu, guest_mtu
        config.has_mac, config.mac = mac is not None, mac or bytes(6)
        config.has_guest, config.guest_mac = guest_mac is not None, guest_mac or bytes(6)
        config.learns_guest, config.mss_clamp = learns_guest, mss_clamp
        handle = lib.vipsec_underlay_new(config)
        if handle == ffi.NULL:
            raise ConfigError(f"csrc/ cannot have {len(known)} addresses")
        self._handle = ffi.gc(handle, lib.vipsec_underlay_free)

    @property
    def handle(self) -> Any:
        """``struct vipsec_underlay *``, valid as long as this object."""
        return self._handle
