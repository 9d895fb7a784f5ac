"""`python -m virtio_ipsec`: the command line."""

import sys

from virtio_ipsec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
