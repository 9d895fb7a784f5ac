"""`virtio-ipsec VERB`: finds the verb, prints its result, turns declared errors into one line."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from virtio_ipsec import __version__
from virtio_ipsec.cli.exits import UNREACHABLE, USAGE
from virtio_ipsec.errors import ConfigError, TransportError, VirtioIpsecError

#: Verb -> (module in this package, one line of help). A verb is imported only when it is named.
VERBS = {
    "serve": ("serve", "serve virtio-net devices over vhost-user or vfio-user, for QEMU, DPDK and our own driver"),
    "ctl": ("ctl", "look at a running `serve` and change it: SAs, flows, rekeying, handover"),
    "conformance": ("conformance", "run the conformance suite against a device"),
    "driver": ("driver", "drive a device: its capabilities, SAs, rules, protected packets to and from it"),
    "demo": ("demo", "two devices back to back: real frames sealed by one and opened by the other"),
    "pcap": ("pcap", "seal or open the packets of a capture file"),
    "decode": ("decode", "explain admin commands, SA objects and net headers given as hex"),
    "info": ("info", "dialects, algorithms and engines of this installation"),
}


def parser(chosen: str | None) -> argparse.ArgumentParser:
    """The argument parser; only the chosen verb brings its own arguments, so that the others cost nothing."""
    top = argparse.ArgumentParser(
        prog="virtio-ipsec",
        description="The executable reference of virtio-net inline IPsec.",
        epilog="example: virtio-ipsec conformance --dialect virtio-1.4",
    )
    top.add_argument("--version", action="version", version=f"virtio-ipsec {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (module, summary) in VERBS.items():
        sub = verbs.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name == chosen:
            verb = import_module(f"virtio_ipsec.cli.{module}")
            sub.description = verb.__doc__
            verb.add_arguments(sub)
            sub.set_defaults(run=verb.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0 (done), 1 (a finding), 2 (usage) or 3 (target unreachable)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the terminal's encoding lacks is shown escaped: file names may hold anything.
        sys.stdout.reconfigure(errors="backslashreplace")
    chosen = next((word for word in words if not word.startswith("-")), None)
    arguments = parser(chosen).parse_args(words)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (a pager, `head`): not our error. Keep the interpreter from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except TransportError as error:
        return _complain(error, UNREACHABLE)
    except (ConfigError, VirtioIpsecError) as error:
        return _complain(error, USAGE)
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else error, USAGE)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    return code


def _complain(error: object, code: int) -> int:
    """One line, whatever a file name or a library's message holds."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(error))
    print(f"virtio-ipsec: error: {text}", file=sys.stderr)
    return code
