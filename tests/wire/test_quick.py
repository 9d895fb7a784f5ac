"""quick_init: the same dataclass, made faster."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.quick import quick_init


@dataclass(frozen=True, slots=True)
class Slow:
    one: int
    two: bytes = field(default=b"x", repr=False)
    three: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "two", self.two.rstrip(b"\0"))


@quick_init
@dataclass(frozen=True, slots=True)
class Quick:
    one: int
    two: bytes = field(default=b"x", repr=False)
    three: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "two", self.two.rstrip(b"\0"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((1,), {}), ((1, b"y\0"), {}), ((), {"one": 1, "three": 3}), ((1, b"", 2), {})],
)
def test_it_makes_the_same_values(arguments: tuple[object, ...], named: dict[str, object]) -> None:
    slow, quick = Slow(*arguments, **named), Quick(*arguments, **named)  # type: ignore[arg-type]
    assert repr(slow).replace("Slow", "Quick") == repr(quick)
    assert (slow.one, slow.two, slow.three) == (quick.one, quick.two, quick.three)
    assert replace(quick, three=9) == Quick(quick.one, quick.two, 9)
    assert hash(quick) == hash(replace(quick))


@pytest.mark.parametrize(("arguments", "named"), [((), {}), ((1, b"", 2, 3), {}), ((1,), {"four": 4})])
def test_it_refuses_the_same_arguments(arguments: tuple[object, ...], named: dict[str, object]) -> None:
    for kind in (Slow, Quick):
        with pytest.raises(TypeError, match="__init__"):
            kind(*arguments, **named)  # type: ignore[arg-type]


def test_it_stays_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Quick(1).one = 2  # type: ignore[misc]


def test_the_signature_is_the_same() -> None:
    assert inspect.signature(Slow) == inspect.signature(Quick)
    assert list(inspect.signature(IpsecSa).parameters) == list(IpsecSa.__dataclass_fields__)
