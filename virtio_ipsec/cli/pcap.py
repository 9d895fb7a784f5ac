"""Seal or open the packets of a capture with the SAs and flows of a configuration file.

`seal` protects what a flow says, in file order of the flows; `open` opens what an inbound SA knows. Other
packets pass. Reads pcap and pcapng; writes pcapng when OUT ends in .pcapng, else pcap.

examples:
  virtio-ipsec pcap seal --config sas.toml plain.pcap sealed.pcapng
  virtio-ipsec pcap open --config sas.toml sealed.pcapng opened.pcap
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO

from virtio_ipsec.cli.configs import read_config
from virtio_ipsec.cli.exits import DONE
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.frames import Gateway, Outcome
from virtio_ipsec.transport.capture import Interface, LinkType, link_type
from virtio_ipsec.transport.pcap import create_capture, open_capture
from virtio_ipsec.transport.pcapng import PcapngWriter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("action", choices=("seal", "open"))
    parser.add_argument("--config", required=True, metavar="FILE", help="SAs and flows (TOML)")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument("input", metavar="IN", help="capture to read")
    parser.add_argument("output", metavar="OUT", help="capture to write")


def run(arguments: argparse.Namespace) -> int:
    """Convert the file and print what became of its packets."""
    config = read_config(arguments.config)
    source, target = Path(arguments.input), Path(arguments.output)
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError("IN and OUT are the same file")
    gateway = Gateway(config, os.urandom)
    treat = gateway.seal if arguments.action == "seal" else gateway.open
    form = "pcapng" if target.suffix == ".pcapng" else "pcap"
    with source.open("rb") as infile, _written_whole(target) as outfile:
        _copy(treat, infile, outfile, form)
    if arguments.json:
        print(json.dumps(gateway.counts, indent=1, sort_keys=True))
    else:
        for what, number in sorted(gateway.counts.items()):
            print(f"{number:>8} {what}")
    return DONE


@contextmanager
def _written_whole(target: Path) -> Iterator[BinaryIO]:
    """A file that appears as ``target`` when all went well, and not at all otherwise. What is there and is no
    regular file (a link, a pipe, /dev/null) is written to as it is."""
    if target.is_symlink() or (target.exists() and not target.is_file()):
        with target.open("wb") as stream:
            yield stream
        return
    try:
        number, name = mkstemp(dir=target.parent, prefix=".virtio-ipsec.")
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror}") from None
    unfinished = Path(name)
    try:
        with os.fdopen(number, "wb") as stream:
            yield stream
        mask = os.umask(0)
        os.umask(mask)
        unfinished.chmod(0o666 & ~mask)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _outgoing(interface: Interface) -> Interface:
    """What is written may be longer than what was captured, and may be of the other IP version."""
    kind = LinkType.RAW if link_type(interface.link_type).is_ip else LinkType.ETHERNET
    return replace(interface, link_type=kind, snaplen=0)


def _copy(treat: Callable[..., Outcome], infile: BinaryIO, outfile: BinaryIO, form: str) -> None:
    """Treat every packet. The packet's interface keeps its number; pcap files have just one."""
    reader = open_capture(infile)
    packets = iter(reader)
    first = next(packets, None)
    writer = create_capture(outfile, form, [_outgoing(each) for each in reader.interfaces])
    known = len(reader.interfaces)
    for packet in chain(() if first is None else (first,), packets):
        for interface in reader.interfaces[known:]:
            if not isinstance(writer, PcapngWriter):
                raise ConfigError("IN has several interfaces: name OUT *.pcapng")
            writer.add_interface(_outgoing(interface))
        known = len(reader.interfaces)
        if packet.wire_length != len(packet.data):
            raise ConfigError("IN holds packets cut by the capture: capture with a larger snap length")
        raw_ip = link_type(reader.interfaces[packet.interface].link_type).is_ip
        outcome = treat(packet.data, raw_ip=raw_ip)
        if outcome.frame is not None:
            writer.write(replace(packet, data=outcome.frame, original_length=-1))
