"""Layouts against C structures and against what QEMU and DPDK really sent; the table against the text."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio_ipsec.transport.payload import Layout, MessageError
from virtio_ipsec.transport.vhost_user import messages
from virtio_ipsec.transport.vhost_user.messages import (
    FRONTEND,
    Config,
    Inflight,
    Kind,
    Log,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VringAddress,
    VringFile,
    VringState,
    bits,
    name_of,
)

HERE = Path(__file__).parent
RECORDED = sorted((HERE.parent.parent / "vectors" / "vhost_user").glob("*.txt"))
COMPILER = next((path for path in map(shutil.which, ("gcc", "cc", "clang")) if path), None)

#: A value of each layout, and the C statements that fill the same into a zeroed `struct message m`.
REGION = MemoryRegion(0x1111, 0x2222, 0x3333, 0x4444)
REGION_C = "r->guest_address = 0x1111; r->size = 0x2222; r->user_address = 0x3333; r->mmap_offset = 0x4444;"
SAMPLES: dict[str, tuple[Layout[Any], Any, str]] = {
    "u64": (messages.U64, 0x1122334455667788, "m.payload.u64 = 0x1122334455667788; n = 8;"),
    "state": (
        messages.VRING_STATE,
        VringState(1, 0x80008000),
        "m.payload.state.index = 1; m.payload.state.num = 0x80008000; n = sizeof(struct vring_state);",
    ),
    "address": (
        messages.VRING_ADDRESS,
        VringAddress(2, 1, 0x10, 0x20, 0x30, 0x40),
        "struct vring_addr *a = &m.payload.addr; a->index = 2; a->flags = 1; a->descriptor = 0x10; a->used = 0x20;"
        "a->available = 0x30; a->log = 0x40; n = sizeof *a;",
    ),
    "memory": (
        messages.MEMORY,
        (MemoryRegion(1, 2, 3, 4), REGION),
        "struct region *r = m.payload.memory.regions; r->guest_address = 1; r->size = 2; r->user_address = 3;"
        f"r->mmap_offset = 4; r++; {REGION_C} m.payload.memory.num_regions = 2;"
        "n = offsetof(struct memory, regions) + 2 * sizeof *r;",
    ),
    "single": (
        messages.MEMORY_REGION,
        REGION,
        f"struct region *r = &m.payload.single.region; {REGION_C} n = sizeof(struct single_region);",
    ),
    "log": (
        messages.LOG_BASE,
        Log(0x5000, 0x6000),
        "m.payload.log.size = 0x5000; m.payload.log.offset = 0x6000; n = sizeof(struct log);",
    ),
    "config": (
        messages.CONFIG,
        Config(6, 3, 1, b"\1\2\3"),
        "m.payload.config = (struct config){.offset = 6, .size = 3, .flags = 1, .data = {1, 2, 3}};"
        "n = offsetof(struct config, data) + 3;",
    ),
    "inflight": (
        messages.INFLIGHT,
        Inflight(0x7000, 0x8000, 4, 256),
        "m.payload.inflight = (struct inflight){0x7000, 0x8000, 4, 256}; n = sizeof(struct inflight);",
    ),
    "file": (messages.VRING_FILE, VringFile(3, has_fd=False), "m.payload.u64 = 3 | 1 << 8; n = 8;"),
}


@pytest.fixture(scope="module")
def built_by_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("structs")
    blocks = "".join(
        f"{{ struct message m; size_t n; memset(&m, 0, sizeof m); {fill}"
        f' printf("{name} "); for (size_t i = 0; i < n; i++)'
        ' printf("%02x", ((unsigned char *)&m.payload)[i]); puts(""); }\n'
        for name, (_, _, fill) in SAMPLES.items()
    )
    (folder / "probe.c").write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n#include "structs.h"\n'
        f'int main(void) {{\n{blocks}printf("header %zu\\n", offsetof(struct message, payload));return 0; }}\n'
    )
    program = folder / "probe"
    subprocess.run(
        [COMPILER, "-std=c11", "-I", str(HERE), "-o", str(program), str(folder / "probe.c")], check=True
    )
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines.pop() == "header 12"
    return {name: bytes.fromhex(data) for name, data in (line.split() for line in lines)}


@pytest.mark.needs("compiler")
@pytest.mark.parametrize("name", SAMPLES)
def test_payloads_are_those_of_the_c_structures(name: str, built_by_c: dict[str, bytes]) -> None:
    layout, value, _ = SAMPLES[name]
    assert layout.build(value) == built_by_c[name]
    assert layout.parse(built_by_c[name]) == value
    assert layout.smallest <= len(built_by_c[name]) <= layout.largest


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_real_front_ends_sent_is_legal_and_built_alike(path: Path) -> None:
    rows = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(rows) > 20
    for fds, data in rows:
        message = bytes.fromhex(data)
        number, payload = int.from_bytes(message[:4], "little"), message[12:]
        kind = FRONTEND[number]
        kind.check(name_of(number), payload, int(fds))
        assert kind.payload.build(kind.payload.parse(payload)) == payload


def test_the_recorded_front_ends_mean_what_their_log_said() -> None:
    rows = (HERE.parent.parent / "vectors" / "vhost_user" / "dpdk-22.11-packed.txt").read_text().splitlines()
    found = {int.from_bytes(bytes.fromhex(row.split()[1])[:4], "little"): row for row in rows[1:]}

    def value(request: Request) -> Any:
        return FRONTEND[request].payload.parse(bytes.fromhex(found[request].split()[1])[12:])

    assert value(Request.SET_VRING_BASE) == VringState(3, 0x8000)
    assert value(Request.SET_VRING_KICK) == VringFile(3)
    (region,) = value(Request.SET_MEM_TABLE)
    assert (region.guest_address, region.size) == (region.user_address, 0x8000000)
    features = bits(ProtocolFeature.MQ, ProtocolFeature.REPLY_ACK, ProtocolFeature.STATUS)
    assert value(Request.SET_PROTOCOL_FEATURES) == features


@pytest.mark.parametrize("request_", FRONTEND)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_byte_too_few_or_too_many_is_refused(request_: int, change: int) -> None:
    kind = FRONTEND[request_]
    length = kind.payload.smallest - 1 if change < 0 else kind.payload.largest + 1
    if length < 0:
        return
    with pytest.raises(MessageError, match=f"{length} bytes"):
        kind.check(name_of(request_), bytes(length), kind.fewest_fds)
    with pytest.raises(MessageError):
        kind.payload.parse(bytes(length))


@pytest.mark.parametrize("request_", FRONTEND)
def test_a_descriptor_too_few_or_too_many_is_refused(request_: int) -> None:
    kind = FRONTEND[request_]
    payload = bytes(kind.payload.smallest)
    for fds in {kind.fewest_fds - 1, kind.most_fds + 1} - {-1}:
        with pytest.raises(MessageError, match="file descriptors"):
            kind.check(name_of(request_), payload, fds)
    kind.check(name_of(request_), payload, kind.most_fds)


def test_counts_inside_a_payload_must_agree_with_its_length() -> None:
    with pytest.raises(MessageError, match="2 regions"):
        messages.MEMORY.parse(messages.MEMORY.build((REGION,)).replace(b"\1", b"\2", 1))
    with pytest.raises(MessageError, match="for 4 bytes"):
        messages.CONFIG.parse(messages.CONFIG.build(Config(0, 4, 0, b"abc")))
    with pytest.raises(MessageError, match="no vring"):
        messages.VRING_FILE.parse(messages.U64.build(0x200))


def test_an_in_flight_description_without_the_padding_is_taken() -> None:
    value = Inflight(1, 2, 3, 4)
    assert messages.INFLIGHT.parse(messages.INFLIGHT.build(value)[:20]) == value


def test_a_log_base_without_a_log_is_an_address_of_no_meaning() -> None:
    assert messages.LOG_BASE.parse(messages.LOG_BASE.build(None)) is None


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_message_error(data: bytes) -> None:
    kinds: list[Kind] = list(FRONTEND.values())
    for kind in kinds:
        try:
            kind.payload.parse(data)
        except MessageError:
            continue


def test_names_of_requests() -> None:
    assert (name_of(5), name_of(99)) == ("SET_MEM_TABLE", "request 99")


def test_answers_are_due_where_the_text_says_so() -> None:
    """ "Communication": the list of requests that need a reply, and those whose entry has a reply payload."""
    assert {Request(number).name for number, kind in FRONTEND.items() if kind.answer is not None} == {
        *("GET_FEATURES", "GET_PROTOCOL_FEATURES", "GET_VRING_BASE", "SET_LOG_BASE", "GET_INFLIGHT_FD"),
        *("GET_QUEUE_NUM", "GET_CONFIG", "GET_MAX_MEM_SLOTS", "GET_STATUS"),
    }
