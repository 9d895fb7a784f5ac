"""Security associations as resource objects (virtio v1.4 5.1.6.8, structures of 5.9.7).

An SA must be within the driver's copy of the SA capability (NET-IPSEC-DEV-06, NET-IPSEC-DEV-08, E47); what
must hold whatever the capability says is checked where SA parameters are made, in ``ipsec``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

from virtio_ipsec.device.capabilities import IPSEC_CAPS
from virtio_ipsec.device.engines import AnyInboundSa, AnyOutboundSa
from virtio_ipsec.device.objects import ObjectKind, Record
from virtio_ipsec.errors import Busy, InvalidField, NoSpace
from virtio_ipsec.ipsec.params import BadSaParameters, SaParams
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa
from virtio_ipsec.wire.ipsec import IpsecSa, ModeCap
from virtio_ipsec.wire.numbers import CapId, Direction, IpsecMode, ResourceType

_ESP_MODES = frozenset({IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TRANSPORT})


class SaKind(ObjectKind[IpsecSa, Any]):
    """What both directions share."""

    needs = IPSEC_CAPS
    disabled_clause = "NET-IPSEC-DEV-03"
    direction: ClassVar[Direction]

    @abstractmethod
    def limit(self) -> int:
        """The driver's limit of this direction."""

    def check_id(self, object_id: int, live: int) -> None:
        """The id is below the driver's limit (NET-IPSEC-DEV-05, NET-IPSEC-DEV-07, E35, E36)."""
        if object_id >= self.limit():
            raise InvalidField(f"SA id {object_id}: limit {self.limit()}", clause="NET-IPSEC-DEV-05")

    def check_room(self) -> None:
        """The device has room for one more SA (RO-DEV-03, RO-DEV-07), and is there to stay."""
        if self.context.is_leaving:
            raise Busy("SAs cannot be migrated, and migration has begun")
        room = self.context.config.sa_table_size
        if room is not None and len(self.context.outbound) + len(self.context.inbound) >= room:
            raise NoSpace(f"room for {room} SAs", clause="RO-DEV-07")

    def check_capability(self, sa: IpsecSa) -> None:
        """Every parameter is within what the driver set for the mode."""
        cap = self.mode_cap(sa.mode)
        self.check_options(sa, cap)
        self.check_algorithms(sa, cap)
        self.check_key_lengths(sa, cap)
        self.check_replay_window(sa, cap)

    def mode_cap(self, mode: int) -> ModeCap:
        """The driver's capability entry of a mode."""
        for cap in self.capabilities.driver(CapId.NET_IPSEC_SA_CAP).modes:
            if cap.mode == mode:
                found: ModeCap = cap
                return found
        raise InvalidField(f"mode {mode} is not in the SA capability", clause="NET-IPSEC-DEV-06")

    def check_options(self, sa: IpsecSa, cap: ModeCap) -> None:
        """Only option bits of the capability; that also keeps the upper half clear (E21)."""
        if sa.options & ~cap.options:
            raise InvalidField(
                f"options {sa.options:#x}: allowed {cap.options:#x}", clause="NET-IPSEC-DEV-06"
            )

    def check_algorithms(self, sa: IpsecSa, cap: ModeCap) -> None:
        """Ids are values, the capability holds masks (E29); without ``auth_algo`` ESP means an AEAD (E28)."""
        if sa.mode in _ESP_MODES and sa.auth_algo == 0:
            allowed = _listed(sa.cipher_algo, cap.aead_algo)
        elif sa.mode in _ESP_MODES:
            allowed = _listed(sa.cipher_algo, cap.cipher_algo) and _listed(sa.auth_algo, cap.hmac_algo)
        else:
            allowed = sa.cipher_algo == 0 and _listed(sa.auth_algo, cap.hmac_algo)
        if not allowed:
            raise InvalidField(
                f"cipher_algo {sa.cipher_algo} with auth_algo {sa.auth_algo} is not in the SA capability",
                clause="NET-IPSEC-DEV-06",
            )

    def check_key_lengths(self, sa: IpsecSa, cap: ModeCap) -> None:
        """Bytes, at most what the capability says (E27)."""
        if sa.cipher_key_length > cap.max_cipher_key_len or sa.auth_key_length > cap.max_auth_key_len:
            raise InvalidField("key longer than the SA capability allows", clause="NET-IPSEC-DEV-06")

    def check_replay_window(self, sa: IpsecSa, cap: ModeCap) -> None:
        """Outbound SAs have no window: the field is ignored (INF-14, E44)."""

    def params(self, sa: IpsecSa) -> SaParams:
        """Checked parameters; the direction must be that of the object type (E38)."""
        self.check_capability(sa)
        try:
            return SaParams.from_wire(sa, self.context.dialect, self.direction)
        except BadSaParameters as error:
            raise InvalidField(str(error), clause="NET-IPSEC-DEV-06") from error

    def prepare_change(self, object_id: int, value: IpsecSa) -> SaParams:
        params = self.params(value)
        self.check_change(self.live(object_id).params, params)
        return params

    def check_change(self, old: SaParams, new: SaParams) -> None:
        """Keys, SPI and whatever else makes the SA what it is stay as they are (E40)."""
        if name := old.changes_forbidden(new):
            raise InvalidField(f"MODIFY must not change {name}")

    def change(self, object_id: int, prepared: SaParams) -> None:
        """Sequence number, window contents and lifetime counters carry on (E40)."""
        self.live(object_id).update(prepared)

    @abstractmethod
    def live(self, object_id: int) -> Any:
        """The running SA."""

    def answer(self, record: Record) -> bytes:
        """The driver's bytes, keys and salt in clear unless the device is set otherwise (RO-DEV-10, E41)."""
        if not self.context.config.zero_keys_in_query:
            return bytes(record.data)
        sa = self.codec.parse(bytes(record.data))
        return self.codec.build(
            replace(
                sa,
                salt=bytes(4),
                cipher_key=bytes(len(sa.cipher_key)),
                auth_key=bytes(len(sa.auth_key)),
            )
        )


def _listed(algorithm: int, mask: int) -> bool:
    return algorithm < 64 and bool(mask >> algorithm & 1)


class OutboundSaKind(SaKind):
    """VIRTIO_NET_RESOURCE_OBJ_IPSEC_OUTB_SA. Equal SPIs are fine: peers choose them on their own (E43)."""

    type = ResourceType.NET_IPSEC_OUTB_SA
    direction = Direction.OUTBOUND

    def limit(self) -> int:
        limit: int = self.capabilities.driver(CapId.NET_IPSEC_RESOURCE_CAP).outb_sa_limit
        return limit

    def live(self, object_id: int) -> AnyOutboundSa:
        return self.context.outbound[object_id]

    def prepare(self, object_id: int, value: IpsecSa) -> AnyOutboundSa:
        params = self.params(value)
        self.check_room()
        fast = self.context.fast
        if fast is not None and fast.takes(object_id, params):
            return fast.outbound(object_id, params, self.context.rng)
        return OutboundSa(params, self.context.rng)

    def install(self, object_id: int, prepared: AnyOutboundSa) -> None:
        self.context.outbound[object_id] = prepared

    def remove(self, object_id: int) -> None:
        self.context.outbound.pop(object_id).wipe()


class InboundSaKind(SaKind):
    """VIRTIO_NET_RESOURCE_OBJ_IPSEC_INB_SA. Found by protocol and SPI (E57), so that pair is unique (E43)."""

    type = ResourceType.NET_IPSEC_INB_SA
    direction = Direction.INBOUND

    def limit(self) -> int:
        limit: int = self.capabilities.driver(CapId.NET_IPSEC_RESOURCE_CAP).inb_sa_limit
        return limit

    def check_replay_window(self, sa: IpsecSa, cap: ModeCap) -> None:
        """At most the capability's window (NET-IPSEC-DEV-08)."""
        if sa.replay_win_sz > cap.max_replay_win_sz:
            raise InvalidField(
                f"replay_win_sz {sa.replay_win_sz}: at most {cap.max_replay_win_sz}",
                clause="NET-IPSEC-DEV-08",
            )

    def live(self, object_id: int) -> AnyInboundSa:
        return self.context.inbound[object_id]

    def prepare(self, object_id: int, value: IpsecSa) -> AnyInboundSa:
        params = self.params(value)
        self.check_spi(params)
        self.check_room()
        fast = self.context.fast
        if fast is not None and fast.takes(object_id, params):
            return fast.inbound(object_id, params)
        return InboundSa(params)

    def check_spi(self, params: SaParams) -> None:
        """No second inbound SA with this SPI (NET-IPSEC-DEV-11)."""
        if (params.protocol, params.spi) in self.context.inbound_by_spi:
            raise InvalidField(f"SPI {params.spi:#x} is in use", clause="NET-IPSEC-DEV-11")

    def install(self, object_id: int, prepared: AnyInboundSa) -> None:
        self.context.inbound[object_id] = prepared
        self.context.python_inbound += isinstance(prepared, InboundSa)
        self.context.inbound_by_spi[prepared.params.protocol, prepared.params.spi] = (object_id, prepared)

    def remove(self, object_id: int) -> None:
        sa = self.context.inbound.pop(object_id)
        self.context.python_inbound -= isinstance(sa, InboundSa)
        key = (sa.params.protocol, sa.params.spi)
        # A variant device may allow duplicates: only the entry of this very SA goes.
        if self.context.inbound_by_spi.get(key, (None, None))[0] == object_id:
            del self.context.inbound_by_spi[key]
        sa.wipe()
