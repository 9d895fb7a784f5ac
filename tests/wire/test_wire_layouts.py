"""Every codec lies as spec/layouts.json says; tests/spec holds that file against the C compiler."""

from __future__ import annotations

from typing import Any

import pytest

from virtio_ipsec.specification import Layout, layout, load_layouts
from virtio_ipsec.wire import admin, device_parts, flow_filter, ipsec, net_config
from virtio_ipsec.wire.codec import Codec
from virtio_ipsec.wire.dialect import DIALECTS, RFC_2025_01, V14, Dialect
from virtio_ipsec.wire.numbers import Feature, mask

FIXED: dict[str, Codec[Any]] = {
    codec.name: codec
    for codec in (
        admin.ADMIN_COMMAND,
        admin.ADMIN_REPLY,
        admin.CAP_COMMAND,
        admin.OBJECT_COMMAND,
        admin.RESOURCE_HEADER,
        device_parts.DEV_PARTS_CAP,
        device_parts.DEV_PARTS_OBJECT,
        device_parts.METADATA_COMMAND,
        device_parts.METADATA_RESULT,
        device_parts.MODE_SET,
        device_parts.PART_HEADER,
        device_parts.PARTS_GET,
        device_parts.PARTS_SET,
        device_parts.QUEUE_CONFIG,
        device_parts.QUEUE_NOTIFY,
        flow_filter.FF_RESOURCE_CAP,
        flow_filter.SELECTOR,
        flow_filter.FF_SELECTOR_CAP,
        flow_filter.FF_ACTION_CAP,
        flow_filter.FF_GROUP,
        flow_filter.FF_CLASSIFIER,
        flow_filter.FF_RULE,
        ipsec.LIFETIME,
        net_config.NET_CONFIG,
    )
}
PREFIXES: dict[str, Codec[Any]] = {
    "virtio_admin_cmd_cap_get_data": admin.CAP_COMMAND,
    "virtio_admin_cmd_resource_modify_data": admin.OBJECT_COMMAND,
    "virtio_admin_cmd_resource_obj_query_data": admin.OBJECT_COMMAND,
}
"""Structures that are the same bytes as another, or its head."""

WITHOUT_CODEC = {
    "virtio_admin_cmd_list": "id bitmap",
    "virtio_admin_cmd_query_cap_id_result": "id bitmap",
    "virtio_admin_cmd_cap_get_result": "bare data of the capability",
    "virtio_admin_cmd_resource_obj_query_result": "bare data of the object",
    "virtio_pci_common_cfg": "register access, not messages",
    "in_addr": "part of the tunnel parameters",
    "in6_addr": "part of the tunnel parameters",
}


def codecs_of(dialect: Dialect) -> dict[str, Codec[Any]]:
    own: tuple[Codec[Any], ...] = (
        dialect.resource_cap,
        dialect.mode_cap,
        dialect.sa_cap,
        dialect.tunnel_param,
        dialect.sa,
        dialect.net_hdr(mask(Feature.NET_F_IPSEC)),
    )
    return {**FIXED, **PREFIXES, **{codec.name: codec for codec in own}}


def members_of(spec: Layout) -> dict[str, tuple[int, int | None]]:
    """The fields that hold bytes of their own: neither structs nor the other name of reserved bytes."""
    rows: dict[str, tuple[int, int | None]] = {}
    for field in spec.fields:
        name = field.name.removesuffix(".s_addr").removesuffix(".s6_u8")
        has_members = any(other.name.startswith(f"{field.name}.") for other in spec.fields)
        if not has_members and name != "padding_reserved_2":
            rows[name] = (field.offset, field.size)
    return rows


CASES = [
    pytest.param(codec, layout(name, dialect.name), id=f"{dialect.name}-{name}")
    for dialect in DIALECTS.values()
    for name, codec in codecs_of(dialect).items()
    # The RFC shows one header struct for all object commands; its own test is below.
    if not (dialect is RFC_2025_01 and name == "virtio_admin_cmd_resource_obj_cmd_hdr")
]


@pytest.mark.parametrize(("codec", "spec"), CASES)
def test_offsets_and_sizes_are_those_of_the_specification(codec: Codec[Any], spec: Layout) -> None:
    ours = {row.name: (row.offset, row.size) for row in codec.layout()}
    theirs = members_of(spec)
    if spec.name in PREFIXES:
        ours = {name: place for name, place in ours.items() if name in theirs}
        assert spec.fixed_size == codec.fixed_size
    else:
        assert (spec.size, spec.fixed_size) == (codec.size, codec.fixed_size)
    assert ours == theirs


def test_the_rfc_object_header_is_the_create_data_of_v14() -> None:
    spec = layout("virtio_admin_cmd_resource_obj_cmd_hdr", RFC_2025_01.name)
    ours = {row.name.removeprefix("hdr."): (row.offset, row.size) for row in admin.OBJECT_COMMAND.layout()}
    assert ours == members_of(spec) | {"resource_obj_specific_data": (admin.OBJECT_COMMAND.fixed_size, None)}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_header_prefixes_end_where_the_specification_says(dialect: Dialect) -> None:
    spec = layout("virtio_net_hdr", dialect.name)
    seen = {}
    for prefix in spec.prefixes:
        wanted = [Feature[name.removeprefix("VIRTIO_")] for name in prefix.when.split() if "VIRTIO_" in name]
        for features in [mask(each) for each in wanted] or [0]:
            codec = dialect.net_hdr(features)
            assert codec.size == prefix.size
            last = spec.field(prefix.last)
            assert last.size is not None
            assert last.offset + last.size == codec.size
            seen[prefix.size] = codec
            places = {row.name: (row.offset, row.size) for row in codec.layout()}
            assert places.items() <= members_of(spec).items()
            assert max(offset + (size or 0) for offset, size in places.values()) == codec.size
    assert len(seen) == len(spec.prefixes)


def test_every_structure_of_the_specification_has_a_codec_or_a_reason() -> None:
    known = {(V14.name, name) for name in (*codecs_of(V14), *WITHOUT_CODEC)}
    known |= {(RFC_2025_01.name, name) for name in codecs_of(RFC_2025_01)}
    assert {(each.dialect, each.name) for each in load_layouts()} <= known


@pytest.mark.parametrize(
    ("dialect", "sizes"),
    [(V14, (196, 44, 44, 32)), (RFC_2025_01, (166, 40, 42, 26))],
    ids=lambda value: getattr(value, "name", ""),
)
def test_sizes_of_the_ipsec_structures(dialect: Dialect, sizes: tuple[int, ...]) -> None:
    header = dialect.net_hdr(mask(Feature.NET_F_IPSEC))
    assert (dialect.sa.size, dialect.mode_cap.size, dialect.tunnel_param.size, header.size) == sizes
