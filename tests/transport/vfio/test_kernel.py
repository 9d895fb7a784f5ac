"""Numbers of VFIO's interface against ``<linux/vfio.h>``, as a C compiler sees them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from virtio_ipsec.transport.vfio import kernel
from virtio_ipsec.transport.vfio.kernel import Iommu, Request
from virtio_ipsec.transport.vfio_user.payloads import SetFlag
from virtio_ipsec.transport.virtio_pci.access import IrqIndex
from virtio_ipsec.transport.virtio_pci.tables import Region

COMPILER = next((path for path in map(shutil.which, ("gcc", "cc", "clang")) if path), None)
_NAMES = {"TYPE1V2": "VFIO_TYPE1v2_IOMMU", "NOIOMMU": "VFIO_NOIOMMU_IOMMU"}

#: C expression -> what we say.
CONSTANTS: dict[str, int] = {
    **{f"VFIO_{request.name}": request for request in Request},
    **{_NAMES[kind.name]: kind for kind in Iommu},
    **{f"VFIO_PCI_{region.name}_REGION_INDEX": region for region in Region},
    **{f"VFIO_PCI_{irq.name}_IRQ_INDEX": irq for irq in IrqIndex},
    **{f"VFIO_IRQ_SET_{flag.name}": flag for flag in SetFlag},
    "VFIO_API_VERSION": kernel.API_VERSION,
    "VFIO_GROUP_FLAGS_VIABLE": kernel.GROUP_VIABLE,
    "VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE": kernel.DMA_READ_WRITE,
    "sizeof(struct vfio_group_status)": kernel._STATUS.size,
    "sizeof(struct vfio_iommu_type1_dma_map)": kernel._MAP.size,
    "offsetof(struct vfio_iommu_type1_dma_map, vaddr)": 8,
    "offsetof(struct vfio_iommu_type1_dma_map, iova)": 16,
    "sizeof(struct vfio_iommu_type1_dma_unmap)": kernel._UNMAP.size,
    "offsetof(struct vfio_iommu_type1_dma_unmap, iova)": 8,
    "sizeof(struct vfio_irq_set)": 20,
}


@pytest.mark.needs("compiler")
def test_numbers_are_those_of_linux(tmp_path: Path) -> None:
    assert COMPILER is not None, "this test needs a C compiler (gcc, cc or clang)"
    lines = "".join(f'printf("%lld\\n", (long long)({expression}));\n' for expression in CONSTANTS)
    includes = "".join(f"#include <{name}>\n" for name in ("stddef.h", "stdio.h", "linux/vfio.h"))
    (tmp_path / "probe.c").write_text(f"{includes}int main(void) {{\n{lines}return 0; }}\n")
    program = tmp_path / "probe"
    subprocess.run([COMPILER, "-std=gnu11", "-o", program, tmp_path / "probe.c"], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert {name: int(value) for name, value in CONSTANTS.items()} == dict(
        zip(CONSTANTS, map(int, printed.split()), strict=True)
    )
