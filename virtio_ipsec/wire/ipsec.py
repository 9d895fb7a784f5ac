"""IPsec capabilities and the SA object of virtio v1.4 (5.9.7, structures that the network device borrows).

Numbers stay plain integers: an unknown mode or algorithm parses, and the device decides what to answer.
The January-2025 forms of the same values are in ``ipsec_rfc202501.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from virtio_ipsec.errors import WireError
from virtio_ipsec.wire.codec import Codec, Counted, FieldView, Record
from virtio_ipsec.wire.fields import (
    Field,
    bit_numbers,
    flagged,
    hexadecimal,
    le16,
    le32,
    le64,
    named,
    nested,
    octets,
    reserved,
    u8,
)
from virtio_ipsec.wire.numbers import AeadAlgo, CipherAlgo, Direction, IpsecMode, IpsecOption, MacAlgo
from virtio_ipsec.wire.quick import quick_init
from virtio_ipsec.wire.tunnel import NO_TUNNEL, TunnelParam, TunnelParamCodec

KEY_BYTES = 32
"""Room for key material in a key blob; longer keys cannot be carried (E27)."""
#: Attributes of a key: its bytes, what the blob's ``length`` says, and that number where the bytes do not tell it.
_KEYS = (
    ("cipher_key", "cipher_key_length", "cipher_key_len"),
    ("auth_key", "auth_key_length", "auth_key_len"),
)


@dataclass(frozen=True, slots=True)
class IpsecResourceCap:
    """``virtio_crypto_ipsec_resource_cap``: how many SAs of each direction; ids run from 0."""

    inb_sa_limit: int
    outb_sa_limit: int


@dataclass(frozen=True, slots=True)
class ModeCap:
    """``virtio_crypto_ipsec_mode_cap``. Algorithm members are masks, key lengths are bytes."""

    mode: int
    max_replay_win_sz: int = 0
    options: int = 0
    cipher_algo: int = 0
    hmac_algo: int = 0
    aead_algo: int = 0
    max_cipher_key_len: int = 0
    max_auth_key_len: int = 0


@dataclass(frozen=True, slots=True)
class IpsecSaCap:
    """``virtio_crypto_ipsec_sa_cap_data``: one entry per mode."""

    modes: tuple[ModeCap, ...] = ()


@quick_init
@dataclass(frozen=True, slots=True)
class Lifetime:
    """``virtio_crypto_ipsec_lifetime``; 0 means no limit (E45)."""

    packets_soft_limit: int = 0
    bytes_soft_limit: int = 0
    packets_hard_limit: int = 0
    bytes_hard_limit: int = 0


@quick_init
@dataclass(frozen=True, slots=True)
class IpsecSa:
    """``virtio_crypto_resource_obj_ipsec_sa_256b_key``, both directions and both dialects.

    ``salt`` is four bytes in nonce order (E24). ``*_key_len`` is the blob's ``length`` where that is not the
    number of key bytes at hand, for instance above 32; None otherwise. ``life`` exists in v1.4 only, ``esn``
    (first sequence number) in the January-2025 RFC only.
    """

    mode: int
    direction: int
    spi: int
    salt: bytes = field(default=bytes(4), repr=False)
    options: int = 0
    param: TunnelParam = NO_TUNNEL
    udp_sport: int = 0
    udp_dport: int = 0
    replay_win_sz: int = 0
    cipher_algo: int = 0
    cipher_key: bytes = field(default=b"", repr=False)
    auth_algo: int = 0
    auth_key: bytes = field(default=b"", repr=False)
    life: Lifetime = Lifetime()
    obj_id: int = 0
    esn: int = 0
    cipher_key_len: int | None = None
    auth_key_len: int | None = None

    @property
    def cipher_key_length(self) -> int:
        """What the blob's ``length`` says, in bytes."""
        return len(self.cipher_key) if self.cipher_key_len is None else self.cipher_key_len

    @property
    def auth_key_length(self) -> int:
        """What the blob's ``length`` says, in bytes."""
        return len(self.auth_key) if self.auth_key_len is None else self.auth_key_len


class SaCodec(Record[IpsecSa]):
    """An SA object of either dialect; ``absent`` names the attributes that this form has no field for."""

    def __init__(self, fields: tuple[Field, ...], param: Codec[TunnelParam], absent: str) -> None:
        super().__init__("virtio_crypto_resource_obj_ipsec_sa_256b_key", fields, IpsecSa)
        self.param = param
        self.absent = absent
        self._absent_default = IpsecSa.__dataclass_fields__[absent].default
        # Places among the members, worked out once: rekeying thousands of SAs a second comes through here.
        place = {name: index for index, name in enumerate(self.members.attributes)}
        #: Members that are structures themselves; with the value, and its bytes, that most SAs have.
        inner: list[tuple[str, Codec[Any]]] = [("param", param)]
        if absent != "life":
            inner.append(("life", LIFETIME))
        self._inner = [
            (place[name], codec, usual, codec.build(usual))
            for name, codec in inner
            for usual in (IpsecSa.__dataclass_fields__[name].default,)
        ]
        self._keys = [(place[name], place[length], name, exception) for name, length, exception in _KEYS]
        #: The attributes of an SA in the order of the dataclass; behind the members stands the absent one.
        place[absent] = len(place)
        self._in_order = itemgetter(*(place[name] for name in IpsecSa.__dataclass_fields__ if name in place))

    def take_apart(self, value: IpsecSa) -> list[Any]:
        if getattr(value, self.absent) != self._absent_default:
            raise WireError(f"{self.name}: this dialect has no field for {self.absent}")
        members = list(self._values(value))
        for at, codec, usual, built in self._inner:
            members[at] = built if members[at] is usual else codec.build(members[at])
        for at, _, name, _ in self._keys:
            key = members[at]
            if len(key) > KEY_BYTES:
                raise WireError(f"{self.name}: {name} of {len(key)} bytes does not fit {KEY_BYTES}")
            members[at] = key.ljust(KEY_BYTES, b"\0")
        return members

    def put_together(self, members: Sequence[Any]) -> IpsecSa:
        values = [*members, self._absent_default]
        for at, codec, usual, built in self._inner:
            values[at] = usual if values[at] == built else codec.read(values[at], 0)[0]
        lengths = {}
        for at, length_at, _, exception in self._keys:
            length = values[length_at]
            values[at] = values[at][:length]
            if length > KEY_BYTES:
                lengths[exception] = length
        return IpsecSa(*self._in_order(values), **lengths)

    def views(self, data: bytes, at: int, prefix: str = "") -> tuple[list[FieldView], int]:
        views, end = super().views(data, at, prefix)
        rows = {view.name.removeprefix(prefix): index for index, view in enumerate(views)}
        if "auth_algo" in rows and not any(views[rows["auth_algo"]].raw):
            # An AEAD id stands in cipher_algo, and the absence of a MAC is all that says so (E28).
            cipher = views[rows["cipher_algo"]]
            if any(cipher.raw):
                text = named(AeadAlgo)(int.from_bytes(cipher.raw, "little"))
                views[rows["cipher_algo"]] = replace(cipher, text=text)
        return views, end


def key_blob(name: str, *gap: Field) -> tuple[Field, ...]:
    """``{le16 length; [gap]; u8 data[32]}``."""
    return (
        le16(f"{name}.length", to=f"{name}_length"),
        *gap,
        octets(f"{name}.data", KEY_BYTES, to=name, secret=True),
    )


SA_HEAD = (
    u8("mode", named(IpsecMode)),
    u8("direction", named(Direction)),
    reserved("reserved", 2),
    le32("obj_id"),
    le32("spi", hexadecimal),
    octets("salt", 4, secret=True),
    le64("options", flagged(IpsecOption)),
)
"""The members before ``param``, which both dialects share."""

LIFETIME = Record(
    "virtio_crypto_ipsec_lifetime",
    (
        le64("packets_soft_limit"),
        le64("bytes_soft_limit"),
        le64("packets_hard_limit"),
        le64("bytes_hard_limit"),
    ),
    Lifetime,
)

RESOURCE_CAP = Record(
    "virtio_crypto_ipsec_resource_cap", (le32("inb_sa_limit"), le32("outb_sa_limit")), IpsecResourceCap
)


def mode_cap(*gap: Field) -> Record[ModeCap]:
    """A capability entry; ``gap`` is what v1.4 put before ``cipher_algo``."""
    return Record(
        "virtio_crypto_ipsec_mode_cap",
        (
            u8("mode", named(IpsecMode)),
            reserved("reserved", 3),
            le32("max_replay_win_sz"),
            le32("options", flagged(IpsecOption)),
            *gap,
            le64("cipher_algo", bit_numbers(CipherAlgo)),
            le64("hmac_algo", bit_numbers(MacAlgo)),
            le32("aead_algo", bit_numbers(AeadAlgo)),
            le32("max_cipher_key_len"),
            le32("max_auth_key_len"),
        ),
        ModeCap,
    )


def sa_cap(array: str, entry: Codec[ModeCap]) -> Counted[IpsecSaCap]:
    """The SA capability; entries follow one another without padding (E20)."""
    return Counted("virtio_crypto_ipsec_sa_cap_data", array, entry, IpsecSaCap, "modes")


MODE_CAP = mode_cap(reserved("reserved1", 4))
SA_CAP = sa_cap("cap_mode", MODE_CAP)


def sa(param: TunnelParamCodec) -> SaCodec:
    """The v1.4 SA object, 196 bytes."""
    return SaCodec(
        (
            *SA_HEAD,
            nested("param", param),
            le16("udp_sport"),
            le16("udp_dport"),
            le32("replay_win_sz"),
            le64("cipher_algo", named(CipherAlgo)),
            *key_blob("cipher_key", reserved("cipher_key.reserved1", 2)),
            le64("auth_algo", named(MacAlgo)),
            *key_blob("auth_key", reserved("auth_key.reserved2", 2)),
            nested("life", LIFETIME),
        ),
        param,
        absent="esn",
    )
