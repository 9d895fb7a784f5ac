"""ESP trailers and traffic flow confidentiality padding (RFC 4303 2.4-2.7; E68)."""

from __future__ import annotations

import pytest
from ipsec_samples import PADN6, ipv4, ipv6, options6, udp

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import padding


@pytest.mark.parametrize("alignment", [4, 16])
def test_trailers_are_the_shortest_that_align_and_count_upwards(alignment: int) -> None:
    for length in range(70):
        made = padding.trailer(length, 41, alignment)
        assert (length + len(made)) % alignment == 0
        assert len(made) < alignment + 2
        assert made == bytes(range(1, len(made) - 1)) + bytes((len(made) - 2, 41))


def test_padding_longer_than_needed_is_read_too() -> None:
    assert padding.split(b"data" + bytes(range(1, 256)) + b"\xff\x04") == (b"data", 4)
    assert padding.split(b"\0\x3b") == (b"", 59)


@pytest.mark.parametrize(
    "plaintext",
    [
        b"data" + b"\x01\x03\x02\x04",  # pad length larger than what counts upwards
        b"data" + b"\x02\x01\x02\x04",
        b"data" + b"\x00\x00\x02\x04",
        b"\x01\x02\x03\x04",  # pad length larger than the packet
        b"\xff\x04",
    ],
)
def test_padding_that_does_not_count_upwards_is_refused(plaintext: bytes) -> None:
    with pytest.raises(PacketError) as refused:
        padding.split(plaintext)
    assert refused.value.reason is Reason.BAD_PADDING


TFC = b"\xa5" * 37
WITH_LENGTH = [
    pytest.param(udp(b"hello"), 17, id="udp"),
    pytest.param(options6(17, PADN6[:6]) + udp(b"hello"), 60, id="udp behind destination options"),
    pytest.param(ipv4(b"inner"), 4, id="ipv4"),
    pytest.param(ipv6(b"inner"), 41, id="ipv6"),
    pytest.param(options6(41, PADN6[:6]) + ipv6(b"inner"), 60, id="ipv6 behind destination options"),
]


@pytest.mark.parametrize(("payload", "next_header"), WITH_LENGTH)
def test_transport_payloads_are_cut_to_the_length_they_state(payload: bytes, next_header: int) -> None:
    assert padding.without_tfc(payload + TFC, next_header) == payload
    assert padding.without_tfc(payload, next_header) == payload


@pytest.mark.parametrize(
    ("payload", "next_header"),
    [
        pytest.param(bytes(40), 6, id="tcp has no length"),
        pytest.param(bytes(40), 17, id="udp length 0 (jumbogram)"),
        pytest.param(b"\0\1\0\2\0\7\0\0", 17, id="udp length below its header"),
        pytest.param(b"\0\1\0\2\0", 17, id="udp cut short"),
        pytest.param(b"\0\1\0\2\xff\xff\0\0", 17, id="udp length beyond the payload"),
        pytest.param(bytes(40), 4, id="no ipv4 at all"),
        pytest.param(b"\x11\xff" + bytes(20), 60, id="options cut short"),
        pytest.param(b"", 17, id="empty"),
    ],
)
def test_what_states_no_usable_length_is_left_alone(payload: bytes, next_header: int) -> None:
    assert padding.without_tfc(payload, next_header) == payload
