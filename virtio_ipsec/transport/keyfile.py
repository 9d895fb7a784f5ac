"""Key files that let Wireshark decrypt a capture: its ``esp_sa`` table.

**Such a file holds the keys of the SAs in clear.** It is written only where somebody asks for it, readable by
its owner alone (mode 0600), and replaces nothing that exists unless told to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from virtio_ipsec.crypto.algorithms import UnsupportedAlgorithm, esp_suite
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.wire.ipsec import IpsecSa
from virtio_ipsec.wire.numbers import AeadAlgo, CipherAlgo, IpsecMode, IpsecOption, MacAlgo

#: Names of packet-ipsec.c; the preference file matches them literally.
_AEADS = {
    AeadAlgo.GCM: "AES-GCM with 16 octet ICV [RFC4106]",
    AeadAlgo.CHACHA20_POLY1305: "ChaCha20 with Poly1305 [RFC7634]",
}
_CIPHERS = {
    CipherAlgo.NO_CIPHER: "NULL",
    CipherAlgo.AES_CBC: "AES-CBC [RFC3602]",
    CipherAlgo.AES_CTR: "AES-CTR [RFC3686]",
}
_MACS = {
    MacAlgo.HMAC_SHA1: "HMAC-SHA-1-96 [RFC2404]",
    MacAlgo.HMAC_SHA_256: "HMAC-SHA-256-128 [RFC4868]",
}
#: What it knows only by length: decrypted, the ICV skipped unchecked.
_UNCHECKED = {
    MacAlgo.CMAC_AES: "ANY 96 bit authentication [no checking]",
    MacAlgo.XCBC_AES: "ANY 96 bit authentication [no checking]",
}


@dataclass(frozen=True, slots=True)
class Peers:
    """An SA and the addresses between which its packets travel; None stands for any."""

    sa: IpsecSa
    version: int = 4
    source: IPv4Address | IPv6Address | None = None
    destination: IPv4Address | IPv6Address | None = None


def esp_sa_line(peers: Peers, *, modern: bool = False) -> str:
    """One line of the ``esp_sa`` file, or a comment that says why the SA has none.

    ``modern`` adds the two sequence-number fields that Wireshark 4.2 brought; older ones refuse such a line,
    and report wrong ICVs for SAs with extended sequence numbers. The older form knows no ChaCha20-Poly1305
    either. Raises UnsupportedAlgorithm for algorithm ids that form no suite.
    """
    sa = peers.sa
    if sa.mode not in (IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TRANSPORT):
        return f"# SPI {sa.spi:#010x}: AH, nothing to decrypt"
    suite = esp_suite(sa.cipher_algo, sa.auth_algo, sa.cipher_key_length, sa.auth_key_length)
    left_out = f"# SPI {sa.spi:#010x}: Wireshark does not know {suite.name} for ESP"
    if suite.aead_algo:
        if suite.aead_algo not in _AEADS or (suite.aead_algo == AeadAlgo.CHACHA20_POLY1305 and not modern):
            return left_out
        encryption = _AEADS[AeadAlgo(suite.aead_algo)]
        authentication, auth_key = "NULL", b""
    else:
        mac = _MACS.get(MacAlgo(suite.auth_algo)) or _UNCHECKED.get(MacAlgo(suite.auth_algo))
        if mac is None:
            return left_out
        encryption, authentication = _CIPHERS[CipherAlgo(suite.cipher_algo)], mac
        auth_key = b"" if MacAlgo(suite.auth_algo) in _UNCHECKED else sa.auth_key
    key = sa.cipher_key + sa.salt[: suite.salt_len] if sa.cipher_key else b""
    fields = [
        f"IPv{peers.version}",
        str(peers.source or "*"),
        str(peers.destination or "*"),
        f"0x{sa.spi:08x}",
        encryption,
        _hex(key),
        authentication,
        _hex(auth_key),
    ]
    if modern:
        fields += ["64-bit" if sa.options & IpsecOption.ESN else "32-bit", "0"]
    return ",".join(f'"{field}"' for field in fields)


def esp_sa_text(sas: Iterable[Peers], *, modern: bool = False) -> str:
    """The whole file."""
    lines = ["# esp_sa of Wireshark. This file holds the keys of these SAs: keep it to yourself."]
    for peers in sas:
        try:
            lines.append(esp_sa_line(peers, modern=modern))
        except UnsupportedAlgorithm as error:
            lines.append(f"# SPI {peers.sa.spi:#010x}: {error}")
    return "\n".join(lines) + "\n"


def write_key_file(path: Path, sas: Iterable[Peers], *, modern: bool = False, replace: bool = False) -> None:
    """Write the keys of ``sas`` to ``path``, mode 0600. ConfigError when it exists and ``replace`` is not
    set, or cannot be written."""
    text = esp_sa_text(sas, modern=modern)
    fresh = path.with_name(path.name + ".new") if replace else path
    try:
        if replace:
            fresh.unlink(missing_ok=True)  # left by a run that was killed
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(text)
        if replace:
            fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"key file {path}: {error.strerror}") from error


def _hex(key: bytes) -> str:
    return f"0x{key.hex()}" if key else ""
