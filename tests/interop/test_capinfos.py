"""capinfos, which comes with tshark, counts the packets of our capture files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from virtio_ipsec.transport.pcap import Interface, Packet, create_capture

FRAME = bytes.fromhex("020000000002 020000000001 88b5") + bytes(46)


@pytest.mark.interop("capinfos")
@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_capinfos_accepts_our_files(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    with path.open("wb") as stream:
        writer = create_capture(stream, form, [Interface()])
        for number in range(3):
            writer.write(Packet(FRAME, 1_700_000_000_123_456_789 + number))
    command = ["capinfos", "-M", "-c", "-E", "-u", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    facts = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in out.splitlines())
    }
    assert facts["Number of packets"] == "3"
    # Long name or short name: builds of one Wireshark release differ in what -M prints here.
    assert facts["File encapsulation"] in ("Ethernet", "ether")
