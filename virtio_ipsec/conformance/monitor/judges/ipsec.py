"""Security associations: what is read and set before them, their parameters, the packets that name them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.judges.commands import named, sets
from virtio_ipsec.conformance.monitor.judges.transmit import base
from virtio_ipsec.conformance.monitor.life import Command, Life, Object, Objects, Packet, Run
from virtio_ipsec.crypto.algorithms import UnsupportedAlgorithm, ah_suite, esp_suite
from virtio_ipsec.errors import VirtioIpsecError, WireError
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.ipsec.process import overhead
from virtio_ipsec.wire.admin import id_bitmap_parse
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import CapId, Direction, Feature, HdrFlag, IpsecMode, Opcode, ResourceType
from virtio_ipsec.wire.tunnel import NO_TUNNEL, TunnelIPv4, TunnelIPv6

_OUT, _IN = ResourceType.NET_IPSEC_OUTB_SA, ResourceType.NET_IPSEC_INB_SA
_CAPS = (CapId.NET_IPSEC_RESOURCE_CAP, CapId.NET_IPSEC_SA_CAP)
_TUNNELS = (IpsecMode.ESP_TUNNEL, IpsecMode.AH_TUNNEL)
_AH = (IpsecMode.AH_TUNNEL, IpsecMode.AH_TRANSPORT)
_CREATE = Opcode.RESOURCE_OBJ_CREATE


def _uses_ipsec(life: Life) -> bool:
    """Whether the driver went for IPsec: it negotiated it and sent commands."""
    return life.has(Feature.NET_F_IPSEC) and bool(life.admin_indices) and bool(life.commands)


def _gets(life: Life) -> Iterator[tuple[Command, int]]:
    for command in life.commands:
        if command.capability is not None and command.opcode == Opcode.DEVICE_CAP_GET:
            yield command, command.capability.id


def _listed(life: Life) -> tuple[int, frozenset[int]] | None:
    """When the capability list was answered, and what it says."""
    for command in life.commands:
        if command.opcode == Opcode.CAP_ID_LIST_QUERY and command.ok and command.returned is not None:
            return command.returned, id_bitmap_parse(command.result)
    return None


@judge("NET-IPSEC-DRV-01", when="capabilities were read or set, or objects created, with IPsec negotiated")
def list_first(run: Run) -> Iterator[Finding]:
    """CAP_ID_LIST_QUERY is answered before the first DEVICE_CAP_GET, DRIVER_CAP_SET and CREATE."""
    for life in filter(_uses_ipsec, run.lives):
        listed = _listed(life)
        for command in life.commands:
            if command.capability is not None or command.opcode == _CREATE:
                holds = listed is not None and listed[0] < command.exposed
                yield Finding(holds, "CAP_ID_LIST_QUERY before", named(command, run.dialect), command.at)
                break


@judge(
    "NET-IPSEC-DRV-02", when="capabilities or objects were used, and the device lists both IPsec capabilities"
)
def both_read(run: Run) -> Iterator[Finding]:
    """Both IPsec capabilities are read when they are listed."""
    for life in filter(_uses_ipsec, run.lives):
        read = {cap for _, cap in _gets(life)}
        used = [command for command, cap, _ in sets(life, ok=False) if cap in _CAPS] or _sas_created(life)
        if used:
            missing = [cap.name for cap in _CAPS if cap not in read]
            yield Finding(not missing, "DEVICE_CAP_GET of both", f"not of {', '.join(missing)}", used[0].at)


def _sas_created(life: Life) -> list[Command]:
    creates = [command for command in life.commands if command.opcode == _CREATE]
    return [command for command in creates if command.object and command.object.type in (_OUT, _IN)]


@judge("NET-IPSEC-DRV-03", when="an IPsec capability was set or an SA created")
def both_set(run: Run) -> Iterator[Finding]:
    """Both IPsec capabilities are set."""
    for life in filter(_uses_ipsec, run.lives):
        done = {cap: command for command, cap, _ in sets(life, ok=False) if cap in _CAPS}
        used = [*done.values(), *_sas_created(life)]
        if used:
            missing = [cap.name for cap in _CAPS if cap not in done]
            yield Finding(not missing, "DRIVER_CAP_SET of both", f"not of {', '.join(missing)}", used[-1].at)


@judge("RFC-34", when="an SA was created")
def read_set_create(run: Run) -> Iterator[Finding]:
    """Both capabilities are read, both are set, and then SAs are created."""
    for life in run.lives:
        created = _sas_created(life)
        if not created:
            continue
        read = {cap: command.at for command, cap in _gets(life)}
        done = {cap: command.at for command, cap, _ in sets(life)}
        for cap in _CAPS:
            ordered = read.get(cap, created[0].at) < done.get(cap, created[0].at) < created[0].at
            yield Finding(ordered, f"{cap.name} read, then set, then CREATE", "another order", created[0].at)


@judge("INF-11", when="an SA was created")
def sa_cap_first(run: Run) -> Iterator[Finding]:
    """DRIVER_CAP_SET of the IPsec SA capability completes before the first SA is created."""
    for life in run.lives:
        created = _sas_created(life)
        if created:
            done = [c.returned for c, cap, _ in sets(life) if cap == CapId.NET_IPSEC_SA_CAP]
            holds = bool(done) and done[0] is not None and done[0] < created[0].exposed
            yield Finding(holds, "the SA capability set before", "not set", created[0].at)


# -- parameters -------------------------------------------------------------------------------------------


def _sa(run: Run, data: bytes) -> IpsecSa | None:
    if len(data) < run.dialect.sa.fixed_size:
        return None
    try:
        return run.dialect.sa.parse(data)
    except WireError:
        return None


def _wrong(sa: IpsecSa, direction: Direction) -> list[str]:
    """Parameters that have no value, or none that an SA can have."""
    found = []
    if sa.mode not in IpsecMode._value2member_map_:
        found.append(f"mode {sa.mode}")
    if sa.direction != direction:
        found.append(f"direction {sa.direction}")
    if not sa.spi:
        found.append("spi 0")
    try:
        if sa.mode in _AH:
            ah_suite(sa.auth_algo, sa.auth_key_length, sa.cipher_algo, sa.cipher_key_length)
        else:
            esp_suite(sa.cipher_algo, sa.auth_algo, sa.cipher_key_length, sa.auth_key_length)
    except UnsupportedAlgorithm as error:
        found.append(f"algorithms: {error}")
    for name, length, key in (
        ("cipher_key", sa.cipher_key_length, sa.cipher_key),
        ("auth_key", sa.auth_key_length, sa.auth_key),
    ):
        if length and not any(key):
            found.append(f"{name} all zero")
    return found


@judge("NET-IPSEC-DRV-04", when="an outbound SA was created")
def outbound_parameters(run: Run) -> Iterator[Finding]:
    """An outbound SA comes whole: mode, direction, SPI, algorithms and keys, in tunnel modes the outer header."""
    for life in run.lives:
        for command in _sas_created(life):
            if command.object is None or command.object.type != _OUT:
                continue
            sa = _sa(run, command.object.data)
            wrong = ["the structure is cut short"] if sa is None else _wrong(sa, Direction.OUTBOUND)
            if sa is not None and sa.mode in _TUNNELS:
                param = sa.param
                ends = (
                    (int(param.src_ip), int(param.dst_ip))
                    if isinstance(param, TunnelIPv4)
                    else (int(param.src_addr), int(param.dst_addr))
                    if isinstance(param, TunnelIPv6)
                    else (0, 0)
                )
                wrong += [] if all(ends) else ["no outer addresses"]
            yield Finding(not wrong, "every parameter", "; ".join(wrong), command.at)


@judge("NET-IPSEC-DRV-05", when="an inbound SA was created")
def inbound_parameters(run: Run) -> Iterator[Finding]:
    """An inbound SA comes with everything but the tunnel parameters."""
    for life in run.lives:
        for command in _sas_created(life):
            if command.object is not None and command.object.type == _IN:
                sa = _sa(run, command.object.data)
                wrong = ["the structure is cut short"] if sa is None else _wrong(sa, Direction.INBOUND)
                yield Finding(not wrong, "every parameter", "; ".join(wrong), command.at)


@judge("NET-IPSEC-DRV-06", when="a second inbound SA was created")
def spis_differ(run: Run) -> Iterator[Finding]:
    """The SPIs of live inbound SAs are distinct."""
    for life in run.lives:
        latest: dict[int, int] = {}
        for command, live in life.commands_with():
            about = command.object
            if about is None or command.opcode != _CREATE or about.type != _IN:
                continue
            sa = _sa(run, about.data)
            if sa is None:
                continue
            other = latest.get(sa.spi)
            clash = other is not None and other != about.id and (_IN, other) in live
            if live.counts[_IN]:
                seen = f"SPI {sa.spi:#x} of inbound SA {other}"
                yield Finding(not clash, "an SPI of its own", seen, command.at)
            if command.ok:
                latest[sa.spi] = about.id


# -- packets ----------------------------------------------------------------------------------------------


def _protected(run: Run) -> Iterator[tuple[Life, Packet, NetHdr, Objects]]:
    """Packets marked SECURITY, where IPsec is negotiated."""
    for life in run.lives:
        if not life.has(Feature.NET_F_IPSEC):
            continue
        for packet, live in life.packets_with():
            if packet.header is not None and packet.header.flags & run.dialect.flag_security:
                yield life, packet, packet.header, live


def _params(run: Run, each: Object) -> SaParams | None:
    """What is known of an SA; its keys are masked, which changes no length."""
    sa = _sa(run, each.data)
    if sa is None:
        return None
    try:
        return SaParams.from_wire(replace(sa, param=sa.param or NO_TUNNEL), run.dialect)
    except VirtioIpsecError:
        return None


@judge("NET-IPSEC-DRV-07", when="a packet was marked SECURITY with VIRTIO_NET_F_MTU negotiated")
def within_the_mtu(run: Run) -> Iterator[Finding]:
    """An outbound packet is within the path MTU with what its SA adds; of a packet to segment, each segment."""
    for life, packet, header, live in _protected(run):
        known = live.get((_OUT, header.resource_id))
        params = _params(run, known) if known is not None else None
        if params is None or not life.has(Feature.NET_F_MTU) or not packet.headers.version:
            continue
        found = packet.headers
        length = found.end - found.network
        if base(header):
            length = min(length, found.payload - found.network + header.gso_size)
        payload = length if params.is_tunnel else length - (20 if found.version == 4 else 40)
        total = length + overhead(params, payload)
        yield Finding(total <= life.began.mtu, f"at most {life.began.mtu} bytes", f"{total}", packet.at)


@judge("NET-TX-DRV-33", when="a packet was marked SECURITY")
def sa_before_packet(run: Run) -> Iterator[Finding]:
    """An outbound SA was created before the first packet marked SECURITY."""
    for life in run.lives:
        created = [c for c in _sas_created(life) if c.ok and c.object and c.object.type == _OUT]
        if not life.has(Feature.NET_F_IPSEC):
            continue
        for packet in life.packets:
            if packet.header is not None and packet.header.flags & run.dialect.flag_security:
                holds = bool(created) and (created[0].returned or packet.at) < packet.at
                yield Finding(holds, "an outbound SA created before", "none", packet.at)
                break


@judge("NET-TX-DRV-34", "RFC-06", when="a packet was marked SECURITY")
def valid_sa(run: Run) -> Iterator[Finding]:
    """resource_id of a packet marked SECURITY is the id of a live outbound SA."""
    for _, packet, header, live in _protected(run):
        seen = f"resource_id {header.resource_id}"
        yield Finding((_OUT, header.resource_id) in live, "a live outbound SA", seen, packet.at)


@judge("INF-04", when="a packet was sent without VIRTIO_NET_F_IPSEC")
def security_needs_feature(run: Run) -> Iterator[Finding]:
    """Packets are marked SECURITY only when VIRTIO_NET_F_IPSEC is negotiated."""
    for life, packet, header in run.packets():
        if not life.has(Feature.NET_F_IPSEC):
            marked = header.flags & run.dialect.flag_security
            yield Finding(not marked, "no SECURITY", f"flags {header.flags:#x}", packet.at)


@judge("RFC-05", when="a packet named an SA or was marked SECURITY")
def security_flag(run: Run) -> Iterator[Finding]:
    """A packet of an SA has SECURITY, and no flag besides it and that of checksums."""
    allowed = run.dialect.flag_security | HdrFlag.NEEDS_CSUM
    for life, packet, header in run.packets():
        if life.has(Feature.NET_F_IPSEC) and (
            header.resource_type or header.flags & run.dialect.flag_security
        ):
            holds = bool(header.flags & run.dialect.flag_security) and not header.flags & ~allowed
            expected = f"flag {run.dialect.flag_security} and at most {int(HdrFlag.NEEDS_CSUM)} besides"
            yield Finding(holds, expected, f"flags {header.flags:#x}", packet.at)


@judge("RFC-07", when="a packet was marked SECURITY")
def sa_type(run: Run) -> Iterator[Finding]:
    """resource_type of a packet marked SECURITY is that of outbound SAs."""
    for _, packet, header, _ in _protected(run):
        seen = f"{header.resource_type:#06x}"
        yield Finding(header.resource_type == _OUT, f"resource_type {int(_OUT):#06x}", seen, packet.at)
