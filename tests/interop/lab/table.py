"""Print what interoperates: a virtual machine on our device, protected by us, against a Linux kernel's IPsec.

examples:
  tests/interop/table
  tests/interop/table --only tunnel --bulk 5
  tests/interop/table --newer --card packed=on,in_order=on
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from lab import xfrm
from lab.cases import CASES


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/interop/table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this text in their name")
    parser.add_argument(
        "--bulk", type=int, default=50, metavar="MB", help="size of measured transfers; default: 50"
    )
    parser.add_argument("--newer", action="store_true", help="newer QEMU and guest kernel (setup --newer)")
    parser.add_argument(
        "--card", help="QEMU's options of guest A's network card; default: vectors=0, with --newer none"
    )
    parser.add_argument("--keep", action="store_true", help="keep capture and logs")
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.only in case.name]
    if not cases:
        parser.error(f"no case has {arguments.only!r} in its name")
    xfrm.BULK = arguments.bulk * 1_000_000
    card = arguments.card if arguments.card is not None else "" if arguments.newer else "vectors=0"
    with tempfile.TemporaryDirectory(prefix="interop", ignore_cleanup_errors=True) as name:
        folder = Path(tempfile.mkdtemp(prefix="interop") if arguments.keep else name)
        table = xfrm.run(
            folder, cases, card=card, newer=arguments.newer, show=lambda row: print(row, flush=True)
        )
    for note in table.notes:
        print(note)
    if arguments.keep:
        print(f"capture and logs: {folder}")
    print(f"{len(table.rows) - len(table.failed)} of {len(table.rows)} rows pass")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
