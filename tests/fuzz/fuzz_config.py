"""Configuration files and the text that `decode` reads: ConfigError or a result, and never a key in a message."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

from harness import Target, fuzz

from virtio_ipsec.cli import decode
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.config import parse
from virtio_ipsec.policy.frames import Gateway
from virtio_ipsec.wire.dialect import DIALECTS

KEY = "c0ffee00c0ffee11c0ffee22c0ffee33"
PLAIN = bytes(12) + bytes.fromhex("08004500001c000000004011000a0a0000010a0000020007000700080000")
#: No line break, nothing that moves a terminal's cursor.
LINE = re.compile(r"[^\x00-\x1f\x7f]*")

VALUES = (
    "0", "1", "-1", "64", "0x1001", "4294967296", "9" * 30, "1e400", "nan", "true", "[]", "{}", "[[1]]", '""',
    '"virtio-1.4"', '"rfc-2025-01"', '"outbound"', '"inbound"', '"esp-tunnel"', '"esp-transport"', '"ah-tunnel"',
    '"ah-transport"', '"aes-gcm-16"', '"aes-cbc+hmac-sha2-256-128"', '"chacha20-poly1305"', '"protect"', '"drop"',
    '"bypass"', '"udp"', '"10.0.0.0/8"', '"::/0"', '"192.0.2.1"', '"2001:db8::1"', '"fe80::1%eth0"', '"k"',
    f'"{KEY}"', f'"{KEY * 2}"', '"a0a1a2a3"', '["esn", "ecn"]', '["udp-encap"]', "1979-05-27", "'''", '"\\u0000"',
    '{ src = "192.0.2.1", dst = "192.0.2.2" }', "{ packets_soft = 1, packets_hard = 2 }", "{ sport = 1 }",
    '"operator"', '"guest"', '"arp"', '"nd"', '"auto"', '"any"', '"02:00:00:00:00:01"', '"1-9"', '["192.0.2.1/24"]',
    '[{ local = "10.0.0.0/8" }]', '{ control = "operator", default = "drop" }',
)  # fmt: skip
NAMES = (
    "dialect", "id", "direction", "mode", "spi", "algorithm", "key", "key_file", "auth_key", "auth_key_file",
    "salt", "options", "tunnel", "udp", "replay_window", "lifetime", "first_sequence", "match", "action", "sa",
    "src", "dst", "protocol", "sport", "dport", "local", "remote_port", "icmp_type", "ethertype", "service", "priority",
    "name", "port", "control", "default", "underlay", "mac", "addresses", "mtu", "next_hop", "gateways", "guest_mac",
    "peer", "selectors", '"\\n"', "x.y",
)  # fmt: skip
GOOD = f"""dialect = "virtio-1.4"
[[sa]]
id = 1
direction = "outbound"
mode = "esp-tunnel"
spi = 0x1001
algorithm = "aes-gcm-16"
key = "{KEY}"
salt = "a0a1a2a3"
tunnel = {{ src = "192.0.2.1", dst = "192.0.2.2" }}
[[sa]]
id = 1
direction = "inbound"
mode = "esp-transport"
spi = 2
algorithm = "aes-cbc+hmac-sha2-256-128"
key = "{KEY}"
auth_key = "{KEY * 2}"
[[flow]]
match = {{ dst = "10.0.0.0/24", protocol = "udp" }}
action = "protect"
sa = 1
"""


def document(rng: random.Random) -> bytes:
    """A good file with lines replaced, added, doubled and lost."""
    lines = GOOD.splitlines()
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(lines))
        action = rng.randrange(5)
        if action == 0:
            del lines[at]
        elif action == 1:
            lines.insert(at, rng.choice(lines))
        elif action == 2:
            lines.insert(at, f"{rng.choice(NAMES)} = {rng.choice(VALUES)}")
        elif " = " in lines[at]:
            lines[at] = f"{lines[at].split(' = ')[0]} = {rng.choice(VALUES)}"
    return "\n".join(lines).encode()


def fits_one_line(error: ConfigError) -> None:
    """No key either. Names of unknown fields are quoted up to 20 characters."""
    text = str(error)
    assert LINE.fullmatch(text), text
    assert KEY[:21] not in text


def read_config(data: bytes) -> None:
    """A file that is read gives SAs that work."""
    try:
        config = parse(data.decode("utf-8", "replace"), lambda _name: bytes(16))
    except ConfigError as error:
        fits_one_line(error)
        raise
    assert KEY[:12] not in repr(config)
    gateway = Gateway(config, bytes)
    for frame in (PLAIN, PLAIN[:20], b""):
        gateway.seal(frame)
        gateway.open(frame)


def words(rng: random.Random) -> bytes:
    """Hex as people paste it: plain, spaced, dumped, in a trace."""
    readable, written = rng.randbytes(rng.choice((0, 3, 26, 64, 240))), rng.randbytes(rng.choice((0, 8, 40)))
    readable = bytes((rng.randrange(15), 0)) + readable
    shapes = (
        readable.hex(),
        readable.hex(" "),
        f"0x{readable.hex()},{written.hex()}",
        "\n".join(
            f"{at:08x}: {readable[at : at + 16].hex(' ', 2)}  text" for at in range(0, len(readable), 16)
        ),
        json.dumps({"readable": readable.hex(), "written": written.hex().replace("a", "x")}),
    )
    return rng.choice(shapes).encode()


def explain(what: str) -> Callable[[bytes], None]:
    """Decode as `what`; what is printed as JSON is JSON, whatever was read."""

    def run(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for name in DIALECTS:
            for as_json in (False, True):
                arguments = argparse.Namespace(
                    what=what, bytes=["-"], dialect=name, features="70", show_keys=False, json=as_json
                )
                before, sys.stdin = sys.stdin, StringIO(text)
                try:
                    with redirect_stdout(StringIO()) as out:
                        assert decode.run(arguments) == 0
                except ConfigError as error:
                    fits_one_line(error)
                    assert not out.getvalue()
                    raise
                finally:
                    sys.stdin = before
                assert not as_json or json.loads(out.getvalue())

    return run


TARGETS = (
    Target("toml", document, read_config, (ConfigError,)),
    *(
        Target(f"decode-{what}", words, explain(what), (ConfigError,))
        for what in ("admin", "reply", "sa", "net-hdr")
    ),
)

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
