"""In a guest: our driver creates both SAs of every case and sends echo requests through them to a Linux kernel.

  drive.py TARGET [TEXT]     TARGET as of `virtio-ipsec conformance --device`; TEXT: cases with it in their name

The other guest's kernel opens them, and what it answers comes back through the inbound SAs. Prints a line of JSON for
the session and one for each case. Status 0: every echo came back as it had to.
"""

from __future__ import annotations

import json
import sys
import time
from ipaddress import ip_address

from lab.cases import CASES, GUEST_MAC, PEER_MAC, Case, configuration

from virtio_ipsec.conformance.target import open_target
from virtio_ipsec.driver import Driver, DriverConfig, SaHandle
from virtio_ipsec.ipsec.ip import checksum
from virtio_ipsec.policy.config import parse
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.numbers import Feature, mask

REQUIRED = mask(Feature.F_ADMIN_VQ, Feature.NET_F_OUT_NET_HEADER, Feature.NET_F_IPSEC)
#: Octets of an echo's payload.
SIZES = (0, 56, 1000)
PATIENCE = 20.0
HEADS = {4: (b"\x08\x00", 8, 0), 6: (b"\x86\xdd", 128, 129)}
MACS = bytes.fromhex((PEER_MAC + GUEST_MAC).replace(":", ""))


def echo(case: Case, kind: int, number: int, size: int) -> bytes:
    """The ICMP message: kind, identifier, number and octets that follow from it."""
    local, remote = (ip_address(address).packed for address in case.addresses)
    body = case.number.to_bytes(2) + number.to_bytes(2) + bytes((number + at) & 0xFF for at in range(size))
    message = bytes([kind, 0, 0, 0]) + body
    if case.inner == 4:
        total = checksum(message)
    else:
        total = checksum(local + remote + len(message).to_bytes(4) + bytes([0, 0, 0, 58]) + message)
    return message[:2] + total.to_bytes(2) + body


def frame(case: Case, message: bytes) -> bytes:
    local, remote = (ip_address(address).packed for address in case.addresses)
    if case.inner == 4:
        head = bytes([0x45, 0]) + (20 + len(message)).to_bytes(2) + bytes(4) + bytes([64, 1])
        head += checksum(head + local + remote).to_bytes(2) + local + remote
    else:
        head = bytes([0x60, 0, 0, 0]) + len(message).to_bytes(2) + bytes([58, 64]) + local + remote
    return MACS + HEADS[case.inner][0] + head + message


def is_ip(frame: bytes) -> bool:
    return any(frame[12:14] == ethertype for ethertype, _, _ in HEADS.values())


def one_case(driver: Driver, case: Case, outbound: SaHandle, inbound: SaHandle) -> dict[str, object]:
    _, request, reply = HEADS[case.inner]
    for number, size in enumerate(SIZES):
        driver.send(frame(case, echo(case, request, number, size)), outbound)
    wanted = {echo(case, reply, number, size) for number, size in enumerate(SIZES)}
    remote = ip_address(case.addresses[1]).packed
    others: list[str] = []
    limit = time.monotonic() + PATIENCE
    while wanted and time.monotonic() < limit:
        driver.link.poll(0.5)
        for packet in driver.receive():
            message = packet.frame[54 if case.inner == 6 else 34 :]
            # The pseudo-header is the same both ways: the addresses change places.
            if packet.protected and packet.sa is inbound and message in wanted:
                wanted.remove(message)
            elif packet.protected or packet.error or (is_ip(packet.frame) and remote in packet.frame[14:54]):
                others.append(f"flags {packet.flags:#x} {packet.frame[:54].hex()}")
    return {"case": case.name, "sent": len(SIZES), "missing": len(wanted), "others": others[:5]}


def main() -> int:
    cases = [case for case in CASES if len(sys.argv) < 3 or sys.argv[2] in case.name]
    sas = {(spec.id, spec.outbound): spec.sa for spec in parse(configuration(cases)).sas}
    with open_target(sys.argv[1], V14) as target:
        driver = Driver(target, V14, config=DriverConfig(required=REQUIRED, polls=200))
        driver.start()
        bits = [bit for bit in range(128) if driver.features >> bit & 1]
        print(
            json.dumps({"target": target.name, "details": dict(target.details), "features": bits}), flush=True
        )
        failed = False
        for case in cases:
            outbound = driver.sas.create_outbound(sas[case.number, True])
            inbound = driver.sas.create_inbound(sas[case.number, False])
            driver.flows.protect(inbound)
            result = one_case(driver, case, outbound, inbound)
            failed = failed or bool(result["missing"] or result["others"])
            print(json.dumps(result), flush=True)
        driver.stop()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
