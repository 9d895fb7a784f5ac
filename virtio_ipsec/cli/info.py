"""Show the dialects, algorithms and packet engines of this installation.

examples:
  virtio-ipsec info
  virtio-ipsec info --json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from typing import Any

import cryptography
from cryptography.hazmat.backends.openssl.backend import backend

from virtio_ipsec import __version__
from virtio_ipsec.cli.exits import DONE
from virtio_ipsec.crypto.algorithms import SUITES
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.gcm import Engine, engine_names
from virtio_ipsec.specification import load_clauses
from virtio_ipsec.wire.dialect import DIALECTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def facts() -> dict[str, Any]:
    """What there is to say, as JSON values."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "engines": {
            "python": {
                "present": True,
                "library": f"cryptography {cryptography.__version__}, {backend.openssl_version_text()}",
                "covers": "every mode and algorithm below",
            },
            "c": {
                "present": native.available(),
                "library": _kernels(),
                "covers": "AES-GCM ESP, offloads, flow filter, steering and rings of the device",
            },
        },
        "dialects": {
            name: {
                "sa_object_octets": dialect.sa.size,
                "clauses": sum(name in clause.dialects for clause in load_clauses()),
            }
            for name, dialect in DIALECTS.items()
        },
        "algorithms": [
            {
                "name": suite.name,
                "protocol": suite.protocol.value,
                "rfc": suite.rfc,
                "cipher_key_octets": sorted(suite.cipher_key_lens - {0}),
                "auth_key_octets": sorted(suite.auth_key_lens - {0}),
                "iv_octets": suite.iv_len,
                "icv_octets": suite.icv_len,
            }
            for suite in SUITES
        ],
    }


def _kernels() -> str:
    """The kernels of the extension that this CPU can run, or why there is no extension."""
    if not native.available():
        return f"absent: {native.why_not()}"
    return f"kernels {', '.join(engine_names())}; in use: {Engine().name}"


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    known = facts()
    if arguments.json:
        json.dump(known, sys.stdout, indent=1)
        print()
        return DONE
    print(f"virtio-ipsec {known['version']}, Python {known['python']}")
    for name, engine in known["engines"].items():
        print(f"engine {name}: {engine['library']}; covers {engine['covers']}")
    if native.available():
        print("packets run on the C path; SAs of other algorithms and rare packets on the Python path")
    else:
        print("PACKETS RUN ON THE PYTHON PATH, about a thousandth of the speed: there is no C extension")
    for name, dialect in known["dialects"].items():
        print(
            f"dialect {name}: SA object of {dialect['sa_object_octets']} octets, {dialect['clauses']} clauses"
        )
    print(f"\n{'algorithm':<28} {'proto':<5} {'keys':<16} {'iv':>2} {'icv':>3}  source")
    for entry in known["algorithms"]:
        keys = "/".join(map(str, entry["cipher_key_octets"])) or "-"
        keys += " + " + ("/".join(map(str, entry["auth_key_octets"])) or "-")
        print(
            f"{entry['name']:<28} {entry['protocol']:<5} {keys:<16} "
            f"{entry['iv_octets']:>2} {entry['icv_octets']:>3}  {entry['rfc']}"
        )
    return DONE
