"""The flow filter of csrc/: what ``device.flow_filter`` decides, at a cost that does not grow with the rules.

One object per device, changed by the admin commands while worker threads look packets up in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import native
from virtio_ipsec.wire.flow_filter import FfClassifier, FfGroup, FfRule


class FlowTable:
    """Groups, classifiers and rules by object id. ``seed``: 64 random bits for the hash.

    The values are those of resource objects that the device has accepted; ConfigError for others that cannot be
    kept: a rule without its group or classifier, or with keys of another length. A group or classifier that goes
    takes its rules along.
    """

    __slots__ = ("_handle", "_rules")

    def __init__(self, seed: int) -> None:
        ffi, lib = native.extension()
        handle = lib.vipsec_flow_table_new(seed)
        if handle == ffi.NULL:
            raise MemoryError
        self._handle = ffi.gc(handle, lib.vipsec_flow_table_free)
        self._rules: dict[int, tuple[FfRule, Any]] = {}

    @property
    def handle(self) -> Any:
        """``struct vipsec_flow_table *``, valid as long as this object."""
        return self._handle

    def __len__(self) -> int:
        return len(self._rules)

    def set_group(self, ident: int, group: FfGroup) -> None:
        """Add a group, or change its priority."""
        _, lib = native.extension()
        _check(lib.vipsec_flow_set_group(self._handle, ident, group.group_priority), f"group {ident}")

    def remove_group(self, ident: int) -> None:
        """Take a group away."""
        _, lib = native.extension()
        self._forget(rule for rule, (value, _) in self._rules.items() if value.group_id == ident)
        _check(lib.vipsec_flow_remove_group(self._handle, ident), f"group {ident}")

    def set_classifier(self, ident: int, classifier: FfClassifier) -> None:
        """Add a classifier, or change one that no rule uses."""
        ffi, lib = native.extension()
        masks = [ffi.new("uint8_t[]", s.mask or b"\0") for s in classifier.selectors]
        selectors: Any = ffi.new("struct vipsec_flow_selector[]", len(masks))
        for made, given, mask in zip(selectors, classifier.selectors, masks, strict=True):
            made.type, made.length, made.mask = given.type, len(given.mask), mask
        result = lib.vipsec_flow_set_classifier(self._handle, ident, selectors, len(masks))
        _check(result, f"classifier {ident}")

    def remove_classifier(self, ident: int) -> None:
        """Take a classifier away."""
        _, lib = native.extension()
        self._forget(rule for rule, (value, _) in self._rules.items() if value.classifier_id == ident)
        _check(lib.vipsec_flow_remove_classifier(self._handle, ident), f"classifier {ident}")

    def set_rule(self, ident: int, rule: FfRule) -> None:
        """Add a rule, or put another one in its place."""
        ffi, lib = native.extension()
        config: Any = ffi.new("struct vipsec_flow_rule_config *")
        config.rule_id, config.group_id, config.classifier_id = ident, rule.group_id, rule.classifier_id
        config.vq_index, config.action, config.priority = rule.vq_index, rule.action, rule.rule_priority
        result: Any = ffi.new("int *")
        self._forget([ident] if ident in self._rules else ())
        made = lib.vipsec_flow_add_rule(self._handle, config, rule.keys, len(rule.keys), result)
        _check(result[0], f"rule {ident}")
        self._rules[ident] = rule, made

    def remove_rule(self, ident: int) -> None:
        """Take a rule away; one that is not there is gone already."""
        self._forget([ident] if ident in self._rules else ())

    def match(self, frame: bytes, l3: int = 0) -> FfRule | None:
        """The rule whose action applies to ``frame``, as ``FlowFilter.match``."""
        found = self.verdict(frame, l3)
        return None if found is None else self._rules[found.rule_id][0]

    def match_many(self, frames: Sequence[bytes]) -> list[FfRule | None]:
        """:meth:`match` for each frame of a batch."""
        ffi, lib = native.extension()
        buffers = [ffi.new("uint8_t[]", frame or b"\0") for frame in frames]
        verdicts: Any = ffi.new("struct vipsec_flow_verdict[]", len(frames))
        found: Any = ffi.new("uint8_t[]", len(frames))
        pointers = ffi.new("uint8_t *[]", buffers)
        lengths = ffi.new("uint32_t[]", [len(frame) for frame in frames])
        lib.vipsec_flow_match_many(self._handle, pointers, lengths, len(frames), verdicts, found)
        return [
            self._rules[verdict.rule_id][0] if there else None
            for verdict, there in zip(verdicts, found, strict=True)
        ]

    def verdict(self, frame: bytes, l3: int = 0) -> Any:
        """``struct vipsec_flow_verdict *`` of that rule, or None."""
        ffi, lib = native.extension()
        result: Any = ffi.new("struct vipsec_flow_verdict *")
        return result if lib.vipsec_flow_match(self._handle, frame, len(frame), l3, result) else None

    def _forget(self, idents: Iterable[int]) -> None:
        _, lib = native.extension()
        for ident in list(idents):
            lib.vipsec_flow_remove_rule(self._handle, self._rules.pop(ident)[1])


def _check(result: int, what: str) -> None:
    _, lib = native.extension()
    if result == lib.VIPSEC_FLOW_NO_MEMORY:
        raise MemoryError
    if result == lib.VIPSEC_FLOW_UNKNOWN:
        raise ConfigError(f"{what}: there is no such group or classifier")
    if result == lib.VIPSEC_FLOW_BUSY:
        raise ConfigError(f"{what} is used by rules")
    if result != lib.VIPSEC_FLOW_OK:
        raise ConfigError(f"{what}: keys of the wrong length, or too many selectors")
