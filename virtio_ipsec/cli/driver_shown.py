"""What the `driver` verb prints: values for JSON, and a line or a page of text for each. No key is among them."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

from virtio_ipsec.driver.driver import Driver, Received
from virtio_ipsec.driver.features import names
from virtio_ipsec.driver.flows import Rule
from virtio_ipsec.driver.sas import SaHandle
from virtio_ipsec.policy.sa_config import MODES, SaSpec
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import (
    AeadAlgo,
    CipherAlgo,
    FfAction,
    IpsecMode,
    IpsecOption,
    MacAlgo,
    SelectorType,
)

_MODE_NAMES = {mode: name for name, mode in MODES.items()}


def caps_of(driver: Driver) -> dict[str, Any]:
    """Everything that was agreed with the device."""
    link, caps, net = driver.link, driver.caps, driver.net_config
    found: dict[str, Any] = {
        "features": names(driver.features).split(", "),
        "not_negotiated": names(link.device_features() & ~driver.features).split(", "),
        "mac": net.mac.hex(":"),
        "mtu": driver.mtu,
        "queues": link.num_queues(),
        "queue_pairs_used": driver.session.pairs,
    }
    admin = driver.session.admin
    if admin is not None:
        found["admin_queue"] = link.admin_queue_index()
        found["admin_opcodes"] = sorted(admin.opcodes)
    if driver.session.discovery_error is not None:
        found["discovery_error"] = str(driver.session.discovery_error)
    if caps.ipsec_resources is not None and caps.ipsec_sas is not None:
        resources = caps.ipsec_resources
        found["ipsec"] = {
            "inb_sa_limit": resources.inb_sa_limit,
            "outb_sa_limit": resources.outb_sa_limit,
            "modes": [
                {
                    "mode": _MODE_NAMES[IpsecMode(cap.mode)],
                    "max_replay_win_sz": cap.max_replay_win_sz,
                    "options": _flags(IpsecOption, cap.options),
                    "ciphers": _bits(CipherAlgo, cap.cipher_algo),
                    "macs": _bits(MacAlgo, cap.hmac_algo),
                    "aeads": _bits(AeadAlgo, cap.aead_algo),
                    "max_cipher_key_len": cap.max_cipher_key_len,
                    "max_auth_key_len": cap.max_auth_key_len,
                }
                for cap in caps.ipsec_sas.modes
            ],
        }
    if caps.filter_resources is not None and caps.filter_selectors and caps.filter_actions:
        limits = caps.filter_resources
        found["flow_filter"] = {
            "groups_limit": limits.groups_limit,
            "classifiers_limit": limits.classifiers_limit,
            "rules_limit": limits.rules_limit,
            "rules_per_group_limit": limits.rules_per_group_limit,
            "selectors_per_classifier_limit": limits.selectors_per_classifier_limit,
            "last_rule_priority": limits.last_rule_priority,
            "selectors": [SelectorType(each.type).name for each in caps.filter_selectors.selectors],
            "actions": [FfAction(each).name for each in caps.filter_actions.actions],
        }
    return found


def caps_text(found: dict[str, Any], indent: str = "") -> str:
    """The same for people."""
    lines = []
    for name, value in found.items():
        title = name.replace("_", " ")
        if isinstance(value, dict):
            lines += [f"{indent}{title}:", caps_text(value, f"{indent}  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{indent}{title}:", *(f"{indent}  {_one_line(each)}" for each in value)]
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{title}: {text}")
    return "\n".join(lines)


def _one_line(entry: dict[str, Any]) -> str:
    return "; ".join(
        f"{name.replace('_', ' ')} {' '.join(value) or '-' if isinstance(value, list) else value}"
        for name, value in entry.items()
    )


def sa_of(
    spec: SaSpec, handle: SaHandle | None, queried: IpsecSa | None, error: str | None = None
) -> dict[str, Any]:
    """An SA of a file: what the device calls it and whether it says the same of it; why it refuses it otherwise."""
    entry: dict[str, Any] = {
        "id": spec.id,
        "direction": "outbound" if spec.outbound else "inbound",
        "mode": _MODE_NAMES[IpsecMode(spec.sa.mode)],
        "spi": spec.sa.spi,
        "algorithm": spec.suite.name,
    }
    if error is not None:
        return entry | {"refused": error}
    if handle is not None:
        entry["device_id"] = handle.id
        if queried is not None:
            entry["differs"] = _differences(handle.params, queried)
    return entry


def sa_text(entry: dict[str, Any]) -> str:
    """The same in a line."""
    head = (
        f"{entry['direction']:<8} {entry['id']:>5} 0x{entry['spi']:08x} {entry['mode']} {entry['algorithm']}"
    )
    if "refused" in entry:
        return f"{head}: refused: {entry['refused']}"
    if "differs" not in entry:
        return f"{head}: device id {entry['device_id']}"
    says = f"says otherwise of {', '.join(entry['differs'])}" if entry["differs"] else "says the same"
    return f"{head}: device id {entry['device_id']}; QUERY {says}"


def _differences(made: IpsecSa, queried: IpsecSa) -> list[str]:
    """Fields that QUERY gives otherwise. Keys of zeros are withheld, which a device may do (E41)."""
    names_of = (name for name in IpsecSa.__dataclass_fields__ if not name.endswith("_len"))
    found = [name for name in names_of if getattr(made, name) != getattr(queried, name)]
    return [name for name in found if "key" not in name or any(getattr(queried, name))]


def rule_of(number: int, rule: Rule) -> dict[str, Any]:
    """A rule that feeds the inbound SA ``number`` of a file."""
    return {
        "sa": number,
        "rule": rule.id,
        "group": rule.group.id,
        "group_priority": rule.group.priority,
        "classifier": rule.classifier.id,
        "selectors": [SelectorType(each.type).name for each in rule.classifier.selectors],
        "priority": rule.priority,
        "action": FfAction(rule.action).name,
        "mask": rule.classifier.mask.hex(),
        "keys": rule.masked.hex(),
    }


def rule_text(entry: dict[str, Any]) -> str:
    """The same in a line."""
    return (
        f"sa {entry['sa']}: rule {entry['rule']} in group {entry['group']} (priority {entry['group_priority']}), "
        f"classifier {entry['classifier']} {'/'.join(entry['selectors'])}, priority {entry['priority']}: "
        f"{entry['action']}"
    )


def packet_of(packet: Received, numbers: dict[int, int]) -> dict[str, Any]:
    """A received packet; ``numbers``: id of an SA on the device -> in the file."""
    outcome = "error" if packet.error else "protected" if packet.protected else "clear"
    entry: dict[str, Any] = {"outcome": outcome, "length": len(packet.frame), "queue": packet.queue}
    if packet.sa is not None:
        entry |= {"sa": numbers[packet.sa.id], "spi": packet.sa.params.spi}
    if packet.soft_expired:
        entry["soft_expired"] = True
    return entry


def packet_text(entry: dict[str, Any]) -> str:
    """The same in a line."""
    by = f" by sa {entry['sa']} 0x{entry['spi']:08x}" if "sa" in entry else ""
    late = ", SOFT LIMIT" if "soft_expired" in entry else ""
    return f"{entry['outcome']}{by}: {entry['length']} octets, queue {entry['queue']}{late}"


def _bits(enum: type[IntEnum], mask: int) -> list[str]:
    return [member.name for member in enum if mask >> member & 1]


def _flags(enum: type[IntFlag], mask: int) -> list[str]:
    return [member.name for member in enum if mask & member and member.name]
