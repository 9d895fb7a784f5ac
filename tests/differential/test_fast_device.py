"""The device with the C packet path does what the device without it does."""

from __future__ import annotations

import pytest
from device_twins import RINGS, Story

from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.wire.dialect import DIALECTS
from virtio_ipsec.wire.numbers import Feature, mask

FORMS = {
    "split": mask(Feature.F_INDIRECT_DESC, Feature.F_EVENT_IDX),
    "packed": mask(Feature.F_RING_PACKED, Feature.F_INDIRECT_DESC),
    "split in order": mask(Feature.F_IN_ORDER),
    "packed event index": mask(Feature.F_RING_PACKED, Feature.F_EVENT_IDX, Feature.F_IN_ORDER),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_random_stories_end_alike(dialect: str, form: str) -> None:
    features = IMPLEMENTED & ~RINGS | FORMS[form]
    Story(1, DIALECTS[dialect], features).run(400)


@pytest.mark.parametrize("seed", range(3))
def test_without_rss_flows_keep_to_the_queue_they_were_sent_on(seed: int) -> None:
    features = IMPLEMENTED & ~RINGS & ~mask(Feature.NET_F_RSS)
    Story(seed, DIALECTS["virtio-1.4"], features).run(200)


def test_one_buffer_per_frame_without_mergeable_buffers() -> None:
    features = IMPLEMENTED & ~RINGS & ~mask(Feature.NET_F_MRG_RXBUF)
    Story(5, DIALECTS["virtio-1.4"], features).run(200)


def test_failed_packets_dropped_where_so_configured() -> None:
    Story(6, DIALECTS["virtio-1.4"], IMPLEMENTED & ~RINGS, drop_error_packets=True).run(200)
