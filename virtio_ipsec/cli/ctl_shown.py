"""One line each for what the control socket lists."""

from __future__ import annotations

from typing import Any

_MATCH = ("local", "local_port", "remote", "remote_port", "protocol", "icmp_type", "ethertype")


def port_line(port: dict[str, Any]) -> str:
    """A port."""
    parts = [f"{port['name']}: {port['control']} control"]
    if "flows" in port:
        parts.append(
            f"{port['outbound_sas']} outbound and {port['inbound_sas']} inbound SAs, {port['flows']} flows"
        )
        parts.append(port.get("owner", "owns its SAs"))
    if port.get("state_failure"):
        parts.append(f"STATE CANNOT BE WRITTEN: {port['state_failure']}")
    return ", ".join(parts)


def sa_line(entry: dict[str, Any]) -> str:
    """An SA and what it has done."""
    sa = entry["sa"]
    parts = [f"{sa['direction']:<8} {sa['id']:>5} 0x{sa['spi']:08x} {sa['mode']} {sa['algorithm']}"]
    if "tunnel" in sa:
        parts.append(f"{sa['tunnel']['src']} > {sa['tunnel']['dst']}")
    if "peer" in sa:
        parts.append(f"peer {sa['peer']}")
    parts += [f"{name} {sa[name]}" for name in ("key", "auth_key", "salt") if name in sa]
    parts.append(f"sequence {entry['sequence']}, {entry['packets']} packets, {entry['bytes']} bytes")
    refused = sum(entry["refused"].values())
    if refused:
        parts.append("refused " + " ".join(f"{reason}={count}" for reason, count in entry["refused"].items()))
    if entry.get("flows"):
        parts.append(f"flows {' '.join(entry['flows'])}")
    parts += [word for word, said in (("SOFT LIMIT", "soft_expired"), ("FROZEN", "frozen")) if entry[said]]
    return "; ".join(parts)


def flow_line(flow: dict[str, Any]) -> str:
    """A flow."""
    what = flow["action"] + (f" by sa {flow['sa']}" if "sa" in flow else "")
    if "service" in flow:
        match = f"service {flow['service']}"
    else:
        match = (
            " ".join(f"{name} {flow['match'][name]}" for name in _MATCH if name in flow["match"])
            or "everything"
        )
    return f"{flow['name']}: {match}: {what}" + (
        f" (priority {flow['priority']})" if "priority" in flow else ""
    )
