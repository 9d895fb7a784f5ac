"""The registers of a virtio PCI function against the headers of Linux, as a C compiler sees them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from virtio_ipsec.specification import layout
from virtio_ipsec.transport.virtio_pci import tables
from virtio_ipsec.transport.virtio_pci.tables import (
    AriCap,
    CapabilityId,
    CommonCfg,
    ExpressCap,
    ExtendedId,
    Header,
    MsixCap,
    MsixEntry,
    Register,
    SriovCap,
    StructureCap,
    VirtioCap,
    extended_header,
    notification,
)

COMPILER = next((path for path in map(shutil.which, ("gcc", "cc", "clang")) if path), None)

#: C expression -> what we say. Every name on the left is Linux's or the compiler's.
CONSTANTS: dict[str, int] = {
    "PCI_STD_NUM_BARS": tables.BARS,
    "PCI_STD_HEADER_SIZEOF": tables.HEADER_SIZE,
    "PCI_CFG_SPACE_SIZE": tables.EXTENDED_CAPABILITIES,
    "PCI_CFG_SPACE_EXP_SIZE": tables.CONFIG_SIZE,
    "PCI_COMMAND_IO": tables.Command.IO,
    "PCI_COMMAND_MEMORY": tables.Command.MEMORY,
    "PCI_COMMAND_MASTER": tables.Command.MASTER,
    "PCI_COMMAND_INTX_DISABLE": tables.Command.INTX_DISABLE,
    "PCI_STATUS_INTERRUPT": tables.DeviceState.INTERRUPT,
    "PCI_STATUS_CAP_LIST": tables.DeviceState.CAP_LIST,
    "PCI_BASE_ADDRESS_SPACE_IO": tables.BarBit.IO,
    "PCI_BASE_ADDRESS_MEM_TYPE_64": tables.BarBit.MEM_64,
    "PCI_BASE_ADDRESS_MEM_PREFETCH": tables.BarBit.PREFETCHABLE,
    "(unsigned)PCI_BASE_ADDRESS_MEM_MASK": tables.BAR_ADDRESS_MASK,
    "PCI_CAP_ID_VNDR": CapabilityId.VENDOR,
    "PCI_CAP_ID_EXP": CapabilityId.EXPRESS,
    "PCI_CAP_ID_MSIX": CapabilityId.MSIX,
    "PCI_EXT_CAP_ID_ARI": ExtendedId.ARI,
    "PCI_EXT_CAP_ID_SRIOV": ExtendedId.SRIOV,
    "PCI_CAP_MSIX_SIZEOF": tables.MSIX_CAP_SIZE,
    "PCI_MSIX_FLAGS_QSIZE": tables.MSIX_SIZE_MASK,
    "PCI_MSIX_FLAGS_QSIZE + 1": tables.MAX_VECTORS,
    "PCI_MSIX_FLAGS_MASKALL": tables.MSIX_MASK_ALL,
    "PCI_MSIX_FLAGS_ENABLE": tables.MSIX_ENABLE,
    "PCI_MSIX_TABLE_BIR": tables.MSIX_BIR_MASK,
    "PCI_MSIX_ENTRY_SIZE": tables.MSIX_ENTRY_SIZE,
    "PCI_MSIX_ENTRY_CTRL_MASKBIT": tables.MSIX_ENTRY_MASKED,
    "PCI_EXP_DEVCAP_RBER": tables.EXPRESS_ROLE_BASED_ERRORS,
    "PCI_EXP_DEVCAP_FLR": tables.EXPRESS_FLR,
    "PCI_EXP_DEVCTL_BCR_FLR": tables.EXPRESS_START_FLR,
    "PCI_SRIOV_CTRL_VFE": tables.SriovControl.VF_ENABLE,
    "PCI_SRIOV_CTRL_MSE": tables.SriovControl.VF_MEMORY,
    "PCI_SRIOV_CTRL_ARI": tables.SriovControl.ARI,
    "PCI_EXT_CAP_SRIOV_SIZEOF": tables.SRIOV_CAP_SIZE,
    "PCI_SRIOV_NUM_BARS": tables.BARS,
    "VIRTIO_PCI_CAP_COMMON_CFG": tables.Structure.COMMON_CFG,
    "VIRTIO_PCI_CAP_NOTIFY_CFG": tables.Structure.NOTIFY_CFG,
    "VIRTIO_PCI_CAP_ISR_CFG": tables.Structure.ISR_CFG,
    "VIRTIO_PCI_CAP_DEVICE_CFG": tables.Structure.DEVICE_CFG,
    "VIRTIO_PCI_CAP_PCI_CFG": tables.Structure.PCI_CFG,
    "VIRTIO_PCI_CAP_SHARED_MEMORY_CFG": tables.Structure.SHARED_MEMORY_CFG,
    "VIRTIO_PCI_ISR_CONFIG": tables.Isr.CONFIG,
    "VIRTIO_MSI_NO_VECTOR": tables.NO_VECTOR,
    "VIRTIO_ID_NET": tables.NETWORK_DEVICE,
    "sizeof(struct virtio_pci_cap)": tables.CAP_SIZE,
    "sizeof(struct virtio_pci_cap64)": tables.CAP64_SIZE,
    "offsetof(struct virtio_pci_cap64, offset_hi)": tables.CAP64_OFFSET_HI,
    "offsetof(struct virtio_pci_cap64, length_hi)": tables.CAP64_LENGTH_HI,
    "sizeof(struct virtio_pci_notify_cap)": tables.NOTIFY_CAP_SIZE,
    "offsetof(struct virtio_pci_notify_cap, notify_off_multiplier)": tables.NOTIFY_MULTIPLIER,
    "sizeof(struct virtio_pci_cfg_cap)": tables.CFG_CAP_SIZE,
    "offsetof(struct virtio_pci_cfg_cap, pci_cfg_data)": tables.CFG_DATA,
    "sizeof(struct virtio_pci_common_cfg)": tables.COMMON_CFG_LEAST,
}
#: Registers whose name in Linux does not follow from ours.
OFFSETS: dict[str, Register] = {
    "PCI_CLASS_PROG": Header.CLASS_CODE,
    "PCI_CARDBUS_CIS": Header.CARDBUS_CIS,
    **{
        f"PCI_{name}": Header[name]
        for name in Header.__members__
        if name not in ("CLASS_CODE", "CARDBUS_CIS")
    },
    "PCI_MSIX_FLAGS": MsixCap.CONTROL,
    "PCI_MSIX_TABLE": MsixCap.TABLE,
    "PCI_MSIX_PBA": MsixCap.PBA,
    "PCI_MSIX_ENTRY_LOWER_ADDR": MsixEntry.ADDRESS_LO,
    "PCI_MSIX_ENTRY_UPPER_ADDR": MsixEntry.ADDRESS_HI,
    "PCI_MSIX_ENTRY_DATA": MsixEntry.DATA,
    "PCI_MSIX_ENTRY_VECTOR_CTRL": MsixEntry.CONTROL,
    "PCI_EXP_FLAGS": ExpressCap.FLAGS,
    "PCI_EXP_DEVCAP": ExpressCap.DEVICE_CAP,
    "PCI_EXP_DEVCTL": ExpressCap.DEVICE_CONTROL,
    "PCI_EXP_DEVSTA": ExpressCap.DEVICE_STATUS,
    "PCI_EXP_LNKCAP": ExpressCap.LINK_CAP,
    "PCI_EXP_LNKCTL": ExpressCap.LINK_CONTROL,
    "PCI_EXP_LNKSTA": ExpressCap.LINK_STATUS,
    "PCI_EXP_DEVCAP2": ExpressCap.DEVICE_CAP_2,
    "PCI_EXP_DEVCTL2": ExpressCap.DEVICE_CONTROL_2,
    "PCI_EXP_LNKCAP2": ExpressCap.LINK_CAP_2,
    "PCI_EXP_LNKCTL2": ExpressCap.LINK_CONTROL_2,
    "PCI_EXP_LNKSTA2": ExpressCap.LINK_STATUS_2,
    "PCI_ARI_CAP": AriCap.CAP,
    "PCI_ARI_CTRL": AriCap.CONTROL,
    "PCI_SRIOV_CAP": SriovCap.CAP,
    "PCI_SRIOV_CTRL": SriovCap.CONTROL,
    "PCI_SRIOV_STATUS": SriovCap.STATUS,
    "PCI_SRIOV_INITIAL_VF": SriovCap.INITIAL_VFS,
    "PCI_SRIOV_TOTAL_VF": SriovCap.TOTAL_VFS,
    "PCI_SRIOV_NUM_VF": SriovCap.NUM_VFS,
    "PCI_SRIOV_FUNC_LINK": SriovCap.FUNCTION_LINK,
    "PCI_SRIOV_VF_OFFSET": SriovCap.FIRST_VF_OFFSET,
    "PCI_SRIOV_VF_STRIDE": SriovCap.VF_STRIDE,
    "PCI_SRIOV_VF_DID": SriovCap.VF_DEVICE_ID,
    "PCI_SRIOV_SUP_PGSIZE": SriovCap.SUPPORTED_PAGE_SIZES,
    "PCI_SRIOV_SYS_PGSIZE": SriovCap.SYSTEM_PAGE_SIZE,
    **{f"PCI_SRIOV_BAR + {4 * bar}": SriovCap[f"VF_BAR_{bar}"] for bar in range(6)},
    "PCI_SRIOV_VFM": SriovCap.MIGRATION_STATE,
    "VIRTIO_PCI_COMMON_Q_NDATA": CommonCfg.queue_notif_config_data,
    "VIRTIO_PCI_COMMON_Q_RESET": CommonCfg.queue_reset,
}
#: Members of Linux's structures, which say the width as well.
MEMBERS: dict[str, Register] = {
    **{f"struct virtio_pci_cap, {one.name.rstrip('_')}": one for one in VirtioCap},
    "struct virtio_pci_common_cfg, device_feature_select": CommonCfg.device_feature_select,
    "struct virtio_pci_common_cfg, device_feature": CommonCfg.device_feature,
    "struct virtio_pci_common_cfg, guest_feature_select": CommonCfg.driver_feature_select,
    "struct virtio_pci_common_cfg, guest_feature": CommonCfg.driver_feature,
    "struct virtio_pci_common_cfg, msix_config": CommonCfg.config_msix_vector,
    "struct virtio_pci_common_cfg, num_queues": CommonCfg.num_queues,
    "struct virtio_pci_common_cfg, device_status": CommonCfg.device_status,
    "struct virtio_pci_common_cfg, config_generation": CommonCfg.config_generation,
    "struct virtio_pci_common_cfg, queue_select": CommonCfg.queue_select,
    "struct virtio_pci_common_cfg, queue_size": CommonCfg.queue_size,
    "struct virtio_pci_common_cfg, queue_msix_vector": CommonCfg.queue_msix_vector,
    "struct virtio_pci_common_cfg, queue_enable": CommonCfg.queue_enable,
    "struct virtio_pci_common_cfg, queue_notify_off": CommonCfg.queue_notify_off,
    "struct virtio_pci_common_cfg, queue_desc_lo": CommonCfg.queue_desc_lo,
    "struct virtio_pci_common_cfg, queue_desc_hi": CommonCfg.queue_desc_hi,
    "struct virtio_pci_common_cfg, queue_avail_lo": CommonCfg.queue_driver_lo,
    "struct virtio_pci_common_cfg, queue_avail_hi": CommonCfg.queue_driver_hi,
    "struct virtio_pci_common_cfg, queue_used_lo": CommonCfg.queue_device_lo,
    "struct virtio_pci_common_cfg, queue_used_hi": CommonCfg.queue_device_hi,
}

_HEADERS = ("stddef.h", "stdio.h", "linux/pci_regs.h", "linux/virtio_ids.h", "linux/virtio_pci.h")


@pytest.fixture(scope="module")
def in_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What each C expression is worth."""
    assert COMPILER is not None, "this test needs a C compiler (gcc, cc or clang)"
    wanted = [
        *CONSTANTS,
        *OFFSETS,
        *(f"offsetof({name})" for name in MEMBERS),
        *(f"sizeof((({name.replace(', ', ' *)0)->')})" for name in MEMBERS),
    ]
    folder = tmp_path_factory.mktemp("registers")
    lines = "".join(f'printf("%lld\\n", (long long)({expression}));\n' for expression in wanted)
    includes = "".join(f"#include <{name}>\n" for name in _HEADERS)
    (folder / "probe.c").write_text(f"{includes}int main(void) {{\n{lines}return 0; }}\n")
    program = folder / "probe"
    subprocess.run([COMPILER, "-std=gnu11", "-o", program, folder / "probe.c"], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return dict(zip(wanted, map(int, printed.split()), strict=True))


def test_numbers_are_those_of_linux(in_c: dict[str, int]) -> None:
    assert {name: int(value) for name, value in CONSTANTS.items()} == {name: in_c[name] for name in CONSTANTS}


def test_offsets_are_those_of_linux(in_c: dict[str, int]) -> None:
    assert {name: one.offset for name, one in OFFSETS.items()} == {name: in_c[name] for name in OFFSETS}


def test_members_have_the_offsets_and_widths_of_linux(in_c: dict[str, int]) -> None:
    for name, one in MEMBERS.items():
        assert one.offset == in_c[f"offsetof({name})"], name
        assert one.width == in_c[f"sizeof((({name.replace(', ', ' *)0)->')})"], name


def test_every_register_has_a_witness() -> None:
    seen = {*OFFSETS.values(), *MEMBERS.values()}
    headers = {MsixCap.ID, MsixCap.NEXT, ExpressCap.ID, ExpressCap.NEXT, AriCap.HEADER, SriovCap.HEADER}
    by_the_text = {CommonCfg.admin_queue_index, CommonCfg.admin_queue_num}  # not in every Linux's header yet
    kinds = (Header, VirtioCap, CommonCfg, MsixCap, MsixEntry, ExpressCap, AriCap, SriovCap)
    assert {one for kind in kinds for one in kind} - seen == headers | by_the_text


def test_the_common_configuration_is_the_specifications() -> None:
    entry = layout("virtio_pci_common_cfg", "virtio-1.4")
    for one in CommonCfg:
        item = entry.field(one.name.removesuffix("_lo").removesuffix("_hi"))
        assert one.offset == item.offset + 4 * one.name.endswith("_hi"), one
        assert one.width == min(item.size or 0, 4), one
    assert entry.size == tables.COMMON_CFG_SIZE


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (Header, tables.HEADER_SIZE),
        (VirtioCap, tables.CAP_SIZE),
        (CommonCfg, tables.COMMON_CFG_SIZE),
        (MsixCap, tables.MSIX_CAP_SIZE),
        (MsixEntry, tables.MSIX_ENTRY_SIZE),
        (ExpressCap, tables.EXPRESS_CAP_SIZE),
        (AriCap, tables.ARI_CAP_SIZE),
        (SriovCap, tables.SRIOV_CAP_SIZE),
    ],
)
def test_registers_do_not_overlap(kind: type[Register], size: int) -> None:
    ends = 0
    for one in kind:
        assert ends <= one.offset, one
        ends = one.end
    assert ends <= size


def test_a_capability_is_built_and_read() -> None:
    data = bytes.fromhex("09541402 04000000 00300000 00100000 04000000")
    cap = StructureCap(tables.Structure.NOTIFY_CFG, 4, 0x3000, 0x1000, extra=(4).to_bytes(4, "little"))
    assert cap.build(0x54) == data
    assert StructureCap.parse(data + b"behind") == cap
    assert StructureCap.parse(data[:15]) is None
    assert StructureCap.parse(b"\x09\x00\x0f" + data[3:]) is None


def test_the_header_of_an_extended_capability() -> None:
    """As PCI_EXT_CAP_ID, _VER and _NEXT take it apart."""
    header = extended_header(ExtendedId.SRIOV, 1, 0x140)
    assert (header & 0xFFFF, header >> 16 & 0xF, header >> 20 & 0xFFC) == (0x10, 1, 0x140)


def test_a_notification_with_data() -> None:
    """The example of 2.10: index in the low half, then 15 bits of offset and the wrap bit."""
    assert notification(3, 0x7FFF, 1) == 0xFFFF0003
    assert notification(0x1234, 5) == 0x00051234
