"""Two devices back to back, driven by two drivers over virtqueues: real frames sealed by one, opened by the other.

Writes demo.pcapng (what both guests and the wire see), demo.esp_sa (the keys, for Wireshark) and
demo.trace.jsonl (the administration commands, keys masked; `virtio-ipsec decode admin @FILE` explains them).

examples:
  virtio-ipsec demo
  virtio-ipsec demo --out /tmp/demo --frames mine.pcap --json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import IO, BinaryIO, cast

from virtio_ipsec.cli.exits import DONE, FINDING
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.transport.capture import LinkType
from virtio_ipsec.transport.demo import Demo, StageResult, run_demo
from virtio_ipsec.transport.keyfile import write_key_file
from virtio_ipsec.transport.pcap import create_capture, open_capture
from virtio_ipsec.wire.dialect import DIALECTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--out", default="out", metavar="DIR", help="where to write (default: %(default)s)")
    parser.add_argument(
        "--frames", metavar="FILE", help="capture of Ethernet frames from one host to another"
    )
    parser.add_argument(
        "--dialect", default="virtio-1.4", choices=list(DIALECTS), help="default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run all stages, write the files, print what happened."""
    quiet = arguments.json
    frames, folder = _frames(arguments.frames), Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    if not quiet:
        print(f"{'stage':<58} {'sent':>5} {'clear':>5} {'wire':>5} {'opened':>6} {'octets':>8}  result")
    demo = run_demo(
        frames,
        dialect=DIALECTS[arguments.dialect],
        done=(lambda result: None) if quiet else _print_stage,
    )
    _write(demo, folder)
    if quiet:
        json.dump(_as_json(demo), sys.stdout, indent=1)
        print()
    else:
        _explain(demo, folder)
    return DONE if demo.passed else FINDING


def _frames(name: str | None) -> list[bytes]:
    if name is not None:
        with Path(name).open("rb") as stream:
            return _read(stream)
    with _built_in() as stream:
        return _read(stream)


def _built_in() -> IO[bytes]:
    """The frames that come with the package, or those of the checkout."""
    try:
        shipped = files("virtio_ipsec.frames").joinpath("frames.pcap")
        if shipped.is_file():
            return shipped.open("rb")
    except ModuleNotFoundError:
        pass
    return (Path(__file__).parents[2] / "tests" / "vectors" / "frames" / "frames.pcap").open("rb")


def _read(stream: IO[bytes]) -> list[bytes]:
    reader = open_capture(cast(BinaryIO, stream))
    frames = []
    for packet in reader:
        if reader.interfaces[packet.interface].link_type != LinkType.ETHERNET:
            raise ConfigError("the demo needs Ethernet frames")
        if len(packet.data) != packet.wire_length:
            raise ConfigError("the capture holds cut packets: capture with a larger snap length")
        frames.append(packet.data)
    if not any(len(frame) >= 14 and not frame[0] & 1 for frame in frames):
        raise ConfigError("the capture holds no frame from one host to another")
    return frames


def _print_stage(result: StageResult) -> None:
    state = "ok" if not result.mismatches else f"{len(result.mismatches)} WRONG: {result.mismatches[0]}"
    skipped = f" ({result.unsuited} fragments not for transport mode)" if result.unsuited else ""
    print(
        f"{result.stage.title:<58} {result.sent:>5} {result.plain:>5} {result.on_wire:>5} "
        f"{result.opened:>6} {result.octets:>8}  {state}{skipped}",
        flush=True,
    )


def _write(demo: Demo, folder: Path) -> None:
    interfaces, packets = demo.pair.capture()
    with (folder / "demo.pcapng").open("wb") as stream:
        writer = create_capture(stream, "pcapng", interfaces)
        for packet in packets:
            writer.write(packet)
    write_key_file(folder / "demo.esp_sa", demo.peers, replace=True)
    with (folder / "demo.trace.jsonl").open("w", encoding="ascii") as trace:
        trace.writelines(json.dumps(asdict(exchange)) + "\n" for exchange in demo.exchanges)


def _explain(demo: Demo, folder: Path) -> None:
    frames = sum(result.sent for result in demo.results)
    outcome = "every frame arrived as it was sent" if demo.passed else "some frames did not arrive as sent"
    print(f"\ndemo: {frames} frames in {len(demo.results)} stages: {outcome}")
    print(f"wrote {folder}/demo.pcapng, demo.esp_sa (keys of this run: keep them private), demo.trace.jsonl")
    print(
        f"to look inside: copy {folder}/demo.esp_sa to Wireshark's profile folder as 'esp_sa', switch on\n"
        "  Preferences > Protocols > ESP > 'Attempt to detect/decode encrypted ESP payloads' and 'Attempt to\n"
        f"  check ESP authentication', then open {folder}/demo.pcapng (interface 'wire' holds the ESP and AH)"
    )


def _as_json(demo: Demo) -> dict[str, object]:
    return {
        "passed": demo.passed,
        "stages": [
            {
                "title": result.stage.title,
                "sent": result.sent,
                "clear": result.plain,
                "on_wire": result.on_wire,
                "opened": result.opened,
                "octets": result.octets,
                "fragments_not_sent": result.unsuited,
                "mismatches": result.mismatches,
            }
            for result in demo.results
        ],
    }
