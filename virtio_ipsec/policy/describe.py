"""SAs and flows in the words of the configuration file: what the readers of this room read back.

Keys and salt are masked by the redactor that masks them everywhere, unless they are asked for.
"""

from __future__ import annotations

from typing import Any

from virtio_ipsec.ipsec.outer import addresses
from virtio_ipsec.policy.flow_config import SERVICES
from virtio_ipsec.policy.flows import Flow
from virtio_ipsec.policy.sa_config import ANY_PEER, DIRECTIONS, MODES, OPTIONS, SaSpec
from virtio_ipsec.policy.selectors import Range, Selector
from virtio_ipsec.wire.ipsec import Lifetime
from virtio_ipsec.wire.numbers import IpsecOption
from virtio_ipsec.wire.redact import Secret, masked_hex
from virtio_ipsec.wire.tunnel import TunnelIPv4, TunnelIPv6

_MODE_NAMES = {mode: name for name, mode in MODES.items()}
_DIRECTION_NAMES = {direction: name for name, direction in DIRECTIONS.items()}


def describe_sa(spec: SaSpec, *, show_keys: bool = False) -> dict[str, Any]:
    """The ``[[sa]]`` table of an SA, of values that TOML and JSON have."""
    sa, params = spec.sa, spec.params
    table: dict[str, Any] = {
        "id": spec.id,
        "direction": _DIRECTION_NAMES[params.direction],
        "mode": _MODE_NAMES[params.mode],
        "spi": sa.spi,
        "algorithm": spec.suite.name,
    }
    if sa.cipher_key:
        table["key"] = _secret(sa.cipher_key, show_keys)
    if sa.auth_key:
        table["auth_key"] = _secret(sa.auth_key, show_keys)
    if spec.suite.salt_len or any(sa.salt):
        table["salt"] = _secret(sa.salt, show_keys)
    options = [name for name, option in OPTIONS.items() if sa.options & option]
    if options:
        table["options"] = options
    if params.tunnel is not None:
        table["tunnel"] = _tunnel(params.tunnel)
    if sa.options & IpsecOption.UDP_ENCAP:
        table["udp"] = {"sport": sa.udp_sport, "dport": sa.udp_dport}
    if not spec.outbound or sa.replay_win_sz:
        table["replay_window"] = sa.replay_win_sz
    if sa.life != Lifetime():
        table["lifetime"] = {
            "packets_soft": sa.life.packets_soft_limit,
            "bytes_soft": sa.life.bytes_soft_limit,
            "packets_hard": sa.life.packets_hard_limit,
            "bytes_hard": sa.life.bytes_hard_limit,
        }
    if sa.esn:
        table["first_sequence"] = sa.esn
    if spec.admitted is not None:
        table["selectors"] = [_selector(selector) for selector in spec.admitted.selectors]
        if params.is_tunnel:
            table["peer"] = ANY_PEER if spec.admitted.peer is None else str(spec.admitted.peer)
    return table


def describe_flow(flow: Flow, name: str = "") -> dict[str, Any]:
    """The ``[[flow]]`` table of a flow; ``name`` where it has got one that is not its own."""
    table: dict[str, Any] = {"action": flow.action.value}
    if name or flow.name:
        table["name"] = name or flow.name
    if flow.sa is not None:
        table["sa"] = flow.sa
    if flow.priority:
        table["priority"] = flow.priority
    service = next(
        (word for word, what in SERVICES.items() if what == (flow.selectors, flow.ethertypes)), None
    )
    if service is not None:
        table["service"] = service
        return table
    # All but services have one of either.
    for ethertype in flow.ethertypes:
        table["match"] = {"ethertype": ethertype}
    for selector in flow.selectors:
        table["match"] = _selector(selector)
    return table


def _secret(octets: bytes, show: bool) -> str:
    return masked_hex(octets, () if show else (Secret(0, len(octets)),))


def _tunnel(tunnel: TunnelIPv4 | TunnelIPv6) -> dict[str, Any]:
    source, destination = addresses(tunnel)
    table: dict[str, Any] = {"src": str(source), "dst": str(destination), "dscp": tunnel.dscp}
    if isinstance(tunnel, TunnelIPv4):
        return table | {"df": bool(tunnel.df), "ttl": tunnel.ttl}
    return table | {"flow_label": tunnel.flabel, "ttl": tunnel.hlimit}


def _selector(selector: Selector) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, network in (("local", selector.local), ("remote", selector.remote)):
        if network is not None:
            table[name] = str(network)
    if selector.protocol is not None:
        table["protocol"] = selector.protocol
    for name, span in (("local_port", selector.local_ports), ("remote_port", selector.remote_ports)):
        if span is not None:
            table[name] = _span(span)
    if selector.icmp is not None:
        table["icmp_type"] = _span((selector.icmp[0] >> 8, selector.icmp[1] >> 8))
    return table


def _span(span: Range) -> str | int:
    low, high = span
    return low if low == high else f"{low}-{high}"
