"""The same values as ``ipsec.py`` in the layout of the January-2025 RFC: no lifetimes, no gaps, an ``esn``.

Sizes: capability entry 40, tunnel parameters 42, SA object 166 bytes, all packed.
"""

from __future__ import annotations

from virtio_ipsec.wire.fields import le16, le32, le64, named, nested
from virtio_ipsec.wire.ipsec import SA_HEAD, SaCodec, key_blob, mode_cap, sa_cap
from virtio_ipsec.wire.numbers import CipherAlgo, MacAlgo
from virtio_ipsec.wire.tunnel import TunnelParamCodec

MODE_CAP = mode_cap()
SA_CAP = sa_cap("mode", MODE_CAP)


def sa(param: TunnelParamCodec) -> SaCodec:
    """The RFC's SA object, 166 bytes; ``esn`` is the first sequence number."""
    return SaCodec(
        (
            *SA_HEAD,
            nested("param", param),
            le64("esn"),
            le16("udp_sport"),
            le16("udp_dport"),
            le32("replay_win_sz"),
            le64("cipher_algo", named(CipherAlgo)),
            *key_blob("cipher_key"),
            le64("auth_algo", named(MacAlgo)),
            *key_blob("auth_key"),
        ),
        param,
        absent="life",
    )
