"""The SAs of one tunnel as a configuration has them, for tests of verbs."""

from __future__ import annotations

KEY = "000102030405060708090a0b0c0d0e0f"


def tunnel_sas(outbound: int, inbound: int) -> str:
    """Both directions under the ids given: what is sealed by the one is opened by the other."""
    return f"""
[[sa]]
id = {outbound}
direction = "outbound"
mode = "esp-tunnel"
spi = 0x1001
algorithm = "aes-gcm-16"
key = "{KEY}"
salt = "a0a1a2a3"
tunnel = {{ src = "192.0.2.1", dst = "192.0.2.2" }}

[[sa]]
id = {inbound}
direction = "inbound"
mode = "esp-tunnel"
spi = 0x1001
algorithm = "aes-gcm-16"
key = "{KEY}"
salt = "a0a1a2a3"
"""
