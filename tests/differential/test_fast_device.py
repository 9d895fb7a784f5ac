"""The device with the C packet path does what the device without it does. Longer: soak_device.py."""

from __future__ import annotations

import pytest
import soak_device
from device_twins import RINGS, Story, random_story

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
    Story(1, DIALECTS[dialect], features).run(250)


@pytest.mark.parametrize("seed", range(3))
def test_without_rss_flows_keep_to_the_queue_they_were_sent_on(seed: int) -> None:
    features = IMPLEMENTED & ~RINGS & ~mask(Feature.NET_F_RSS)
    Story(seed, DIALECTS["virtio-1.4"], features).run(200)


def test_one_buffer_per_frame_without_mergeable_buffers() -> None:
    features = IMPLEMENTED & ~RINGS & ~mask(Feature.NET_F_MRG_RXBUF)
    Story(5, DIALECTS["virtio-1.4"], features).run(200)


def test_failed_packets_dropped_where_so_configured() -> None:
    Story(6, DIALECTS["virtio-1.4"], IMPLEMENTED & ~RINGS, drop_error_packets=True).run(200)


@pytest.mark.parametrize("seed", range(6))
def test_devices_of_any_settings_stay_alike(seed: int) -> None:
    random_story(seed).run(150)


def test_the_soak_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak_device.main(["--steps", "60", "--length", "30", "--seed", "77"]) == 0
    assert "60 steps of 2 stories alike" in capsys.readouterr().out
