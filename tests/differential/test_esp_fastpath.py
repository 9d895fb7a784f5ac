"""ESP of csrc/ against ESP of ipsec/, with every engine of this CPU. Longer: soak_esp.py.

Engines differ in AES-GCM alone, which test_gcm_kernels.py is about: after the first one fewer packets will do.
"""

from __future__ import annotations

from collections import Counter

import pytest
from esp_traffic import Rivalry

from virtio_ipsec.errors import Reason
from virtio_ipsec.fastpath import gcm

each_engine = pytest.mark.parametrize("name", gcm.engine_names())

SHAPES = (Reason.FRAGMENT, Reason.MALFORMED, Reason.NOT_IP)
OUTBOUND = (*SHAPES, Reason.UNKNOWN_SA, Reason.TTL_EXPIRED, Reason.TOO_BIG, Reason.HARD_LIFETIME,
            Reason.SEQUENCE_OVERFLOW, Reason.HELD, None)  # fmt: skip
INBOUND = (*SHAPES, Reason.UNKNOWN_SA, Reason.NOT_IPSEC, Reason.REPLAY, Reason.BAD_ICV, Reason.BAD_PADDING,
           Reason.BAD_NEXT_HEADER, Reason.BAD_INNER, Reason.DUMMY, Reason.CONGESTION, Reason.HARD_LIFETIME,
           Reason.HELD, None)  # fmt: skip


@each_engine
def test_every_byte_verdict_and_counter_is_the_same(name: str) -> None:
    engine, seen, packets = gcm.Engine(name), Counter[tuple[str, Reason | None]](), 0
    first = name == gcm.engine_names()[0]
    for seed in range(20 if first else 4):
        rivalry = Rivalry(f"{name} {seed}", engine, crowd=300 * (seed % 2))
        for _ in range(20):
            rivalry.step()
        seen += rivalry.verdicts
        packets += rivalry.packets
    wanted = {("outbound", each) for each in OUTBOUND} | {("inbound", each) for each in INBOUND}
    assert packets > (30_000 if first else 5_000)
    assert seen.keys() <= wanted
    assert seen.keys() == wanted or not first, seen.keys() ^ wanted  # what is not drawn is not tested
    assert seen.keys() >= {(way, each) for way, each in wanted if each in {None, Reason.BAD_ICV}}
