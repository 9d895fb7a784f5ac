"""A PCI function through VFIO, against ioctls that are written out by hand; and what is said where it cannot be had."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from handmade_function import NOTIFY
from vfio_kernel import ADDRESS, SHIFT, Kernel

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.vfio.function import VfioFunction
from virtio_ipsec.transport.vfio.group import full_address
from virtio_ipsec.transport.vfio.huge import HUGE_PAGE, HugeMemory, physical_address, take_pages
from virtio_ipsec.transport.virtio_pci.access import AccessRefused, FunctionAccess

Make = Callable[..., tuple[VfioFunction, Kernel]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[tuple[VfioFunction, Kernel]] = []
    kernels: list[Kernel] = []

    def made_of(**options: object) -> tuple[VfioFunction, Kernel]:
        kernel = Kernel(tmp_path / str(len(kernels)), **options)  # type: ignore[arg-type]
        kernels.append(kernel)
        made.append((VfioFunction("00:04.0", kernel.root, kernel.ioctl), kernel))
        return made[-1]

    yield made_of
    for function, _ in made:
        function.close()
    for kernel in kernels:
        os.close(kernel.device)


def open_fds() -> int:
    gc.collect()  # what other tests have left
    return len(os.listdir("/proc/self/fd"))


# Taking a function.


def test_a_function_is_taken_and_given_back(make: Make) -> None:
    before = open_fds()
    function, kernel = make()
    access: FunctionAccess = function
    assert access.name == f"vfio:{ADDRESS}"
    assert function.has_iommu
    assert kernel.calls == [0, 3, 4, 2, 6, 7]
    assert kernel.mode == 3
    assert access.filenos() == ()
    access.serve()
    access.reset()
    assert kernel.calls[-1] == 11
    with pytest.raises(TransportError, match="has stopped answering"):
        access.reconnect()
    access.close()
    access.close()
    assert open_fds() == before + 1  # the kernel's own


def test_without_an_iommu_the_container_is_told_so(make: Make) -> None:
    function, kernel = make(has_iommu=False)
    assert not function.has_iommu
    assert kernel.mode == 8
    with pytest.raises(AccessRefused, match="memory is reached where it is"):
        function.map_dma(kernel.device, 0, 4096, 0)
    function.unmap_dma(0, 4096)
    assert 13 not in kernel.calls


WAY = f"/sys/bus/pci/devices/{ADDRESS}"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"driver": "virtio-pci"},
            f"{ADDRESS} is bound to virtio-pci, not to vfio-pci; try: modprobe vfio-pci; "
            f"echo vfio-pci > {WAY}/driver_override; echo {ADDRESS} > {WAY}/driver/unbind; "
            f"echo {ADDRESS} > /sys/bus/pci/drivers_probe",
        ),
        (
            {"driver": None},
            f"{ADDRESS} is bound to no driver, not to vfio-pci; try: modprobe vfio-pci; "
            f"echo vfio-pci > {WAY}/driver_override; echo {ADDRESS} > /sys/bus/pci/drivers_probe",
        ),
        (
            {"has_group": False},
            f"{ADDRESS} has no IOMMU group; to do without an IOMMU, try: "
            "echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode, then bind it anew",
        ),
        (
            {"viable": False},
            f"{ADDRESS} shares its IOMMU group with functions that have other drivers: "
            f"bind all of {WAY}/iommu_group/devices to vfio-pci",
        ),
        ({"version": 1}, "this kernel's VFIO speaks another version of its interface"),
        ({"fail": {4: 22}}, "VFIO GROUP_SET_CONTAINER: Invalid argument"),
        ({"fail": {7: 19}}, "VFIO DEVICE_GET_INFO: No such device"),
    ],
)
def test_what_is_missing_is_said_in_one_line(make: Make, options: dict[str, object], complaint: str) -> None:
    before = open_fds()
    with pytest.raises(TransportError) as caught:
        make(**options)
    assert str(caught.value) == complaint
    assert open_fds() == before + 1


def test_files_that_are_not_there(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    (tmp_path / "dev/vfio/7").unlink()
    with pytest.raises(AccessRefused, match="dev/vfio/7: No such file"):
        VfioFunction(ADDRESS, tmp_path, kernel.ioctl)
    with pytest.raises(TransportError, match=r"no PCI function 0000:00:05\.0"):
        VfioFunction("0000:00:05.0", tmp_path, kernel.ioctl)
    os.close(kernel.device)


def test_addresses_of_functions() -> None:
    assert full_address("3B:1F.7") == "0000:3b:1f.7"
    assert full_address("0001:02:03.4") == "0001:02:03.4"
    assert full_address("10000:02:03.4") == "10000:02:03.4"
    for text in ("", "eth0", "0000:00:04", "0000:00:04.8", "0000:00:24.0", "../00:04.0"):
        with pytest.raises(ConfigError, match="no PCI address"):
            full_address(text)


# Regions.


def test_regions_are_read_and_written_where_they_lie(make: Make) -> None:
    function, kernel = make()
    os.pwrite(kernel.device, b"\xf4\x1a\x41\x10", 7 << SHIFT)
    assert function.read(7, 0, 4) == b"\xf4\x1a\x41\x10"
    function.write(4, 0x14, b"\x0f")
    assert os.pread(kernel.device, 1, (4 << SHIFT) + 0x14) == b"\x0f"
    assert [function.region_info(each).size for each in (0, 1, 4, 7, 9, -1)] == [
        0x2000,
        0,
        0x4000,
        4096,
        0,
        0,
    ]
    assert function.region_info(0).mappable == ((NOTIFY, 0x1000),)
    assert function.region_info(4).mappable == ((0, 0x4000),)
    assert function.region_info(7).mappable == ()
    for region, offset, length in ((7, 4095, 2), (7, -1, 2), (1, 0, 1), (77, 0, 1)):
        with pytest.raises(AccessRefused, match=f"no {length} bytes at"):
            function.read(region, offset, length)
        with pytest.raises(AccessRefused, match=f"no {length} bytes at"):
            function.write(region, offset, bytes(length))


def test_a_device_that_fails_in_an_access(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    function, kernel = make()
    function.region_info(7)
    function.region_info(0)
    os.ftruncate(kernel.device, 8)
    with pytest.raises(AccessRefused, match="reads 0 of 4 bytes at 0x0 of region 7"):
        function.read(7, 0, 4)
    monkeypatch.setattr(os, "pwrite", lambda *_: 1)
    with pytest.raises(AccessRefused, match="writes 1 of 4 bytes at 0x0 of region 7"):
        function.write(7, 0, bytes(4))

    def fails(*_: object) -> int:
        raise OSError(5, "as told")

    monkeypatch.setattr(os, "pwrite", fails)
    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(AccessRefused, match="write at 0x0 of region 7: Input/output error"):
        function.write(7, 0, bytes(4))
    with pytest.raises(AccessRefused, match="read at 0x0 of region 7: Input/output error"):
        function.read(7, 0, 4)


def test_a_doorbell_is_stored_to_in_the_mapped_region(make: Make) -> None:
    function, kernel = make()
    view = function.map_region(0, NOTIFY + 0x12, 2)
    again = function.map_region(0, NOTIFY + 0x14, 2)
    assert view is not None
    assert again is not None
    view.cast("H")[0] = 0x1234
    again.cast("H")[0] = 0x5678
    assert os.pread(kernel.device, 4, NOTIFY + 0x12) == b"\x34\x12\x78\x56"
    assert function.map_region(0, NOTIFY - 2, 4) is None
    assert function.map_region(7, 0, 2) is None
    assert function.doorbell(0, NOTIFY, 2, 0) is None


def test_a_region_that_the_kernel_does_not_map_after_all(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    function, _ = make()

    def fails(*_: object, **__: object) -> mmap.mmap:
        raise OSError(1, "as told")

    monkeypatch.setattr(mmap, "mmap", fails)
    assert function.map_region(4, 0, 2) is None


# Memory.


def test_with_an_iommu_memory_gets_addresses_of_our_choice(make: Make) -> None:
    function, kernel = make()
    memory = function.new_memory(0x3000)
    assert memory.memory.regions == ((0x10000000, 0x3000),)
    assert kernel.mapped == {0x10000000: (bytes(4), 0x3000)}
    file = os.memfd_create("more")
    os.write(file, bytes(4096) + b"more")
    os.ftruncate(file, 8192)
    function.map_dma(file, 4096, 4096, 0x40000000)
    assert kernel.mapped[0x40000000] == (b"more", 4096)
    function.unmap_dma(0x40000000, 4096)
    memory.close()
    assert kernel.mapped == {}
    os.close(file)


@pytest.mark.parametrize(("size", "spare", "tried"), [(HUGE_PAGE, True, [True]), (HUGE_PAGE, False, [True, False]),
                                                    (HUGE_PAGE + 4096, True, [False])])  # fmt: skip
def test_with_an_iommu_memory_is_in_huge_pages_if_there_are_any(
    make: Make, monkeypatch: pytest.MonkeyPatch, size: int, *, spare: bool, tried: list[bool]
) -> None:
    """An IOMMU has an entry for each page."""
    seen: list[bool] = []
    memfd_create = os.memfd_create

    def create(name: str, flags: int) -> int:
        seen.append(bool(flags & os.MFD_HUGETLB))
        if seen[-1] and not spare:
            raise OSError(errno.ENOMEM, "none to spare")
        return memfd_create(name, flags & ~(os.MFD_HUGETLB | os.MFD_HUGE_2MB))

    function, kernel = make()
    monkeypatch.setattr(os, "memfd_create", create)
    memory = function.new_memory(size)
    assert seen == tried
    assert memory.memory.regions == ((0x10000000, size),)
    assert kernel.mapped == {0x10000000: (bytes(4), size)}
    memory.close()


def test_huge_pages_are_reached_where_they_are() -> None:
    frames = [0x3 * HUGE_PAGE, 0x1 * HUGE_PAGE, 0x2 * HUGE_PAGE]
    mapped = mmap.mmap(-1, 3 * HUGE_PAGE)
    asked: list[int] = []

    def physical(address: int) -> int:
        asked.append(address)
        return frames[len(asked) - 1]

    memory = HugeMemory(2 * HUGE_PAGE + 1, physical, lambda pages: mapped)
    assert [address - asked[0] for address in asked] == [0, HUGE_PAGE, 2 * HUGE_PAGE]
    memory.memory.write(0x3 * HUGE_PAGE + 5, b"first page")
    assert mapped[5:15] == b"first page"
    places = [memory.allocator.alloc(HUGE_PAGE // 2 - 64, 64) for _ in range(6)]
    assert sorted(place // HUGE_PAGE for place in places) == [1, 1, 2, 2, 3, 3]
    for place in places:
        memory.allocator.free(place)
    with pytest.raises(Exception, match="no free range"):
        memory.allocator.alloc(HUGE_PAGE, 64)
    assert memory.allocator.alloc(HUGE_PAGE - 64, 64) == HUGE_PAGE
    memory.close()


def test_too_few_huge_pages(make: Make) -> None:
    function, _ = make(has_iommu=False)
    pages = 1 << 24  # 32 TiB: nobody has them
    with pytest.raises(
        TransportError, match=f"try: echo {pages} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_"
    ):
        function.new_memory(pages * HUGE_PAGE)
    with pytest.raises(TransportError, match="16777216 huge pages of 2 MiB: Cannot allocate memory"):
        take_pages(pages)


def test_physical_addresses_come_from_the_page_map(tmp_path: Path) -> None:
    pagemap = tmp_path / "pagemap"
    present = 1 << 63
    pagemap.write_bytes(struct.pack("=4Q", 0, present | 0x1234, present, 0x55))
    physical = physical_address(pagemap)
    assert physical(4096 + 0x10) == 0x1234010
    for address in (0, 2 * 4096, 3 * 4096, 4 * 4096):
        with pytest.raises(TransportError, match="CAP_SYS_ADMIN"):
            physical(address)
    with pytest.raises(TransportError, match="CAP_SYS_ADMIN"):
        physical_address(tmp_path / "none")(0)


# Interrupts.


def test_interrupts(make: Make) -> None:
    function, kernel = make()
    assert [function.irq_count(each) for each in (0, 1, 2, 5, -1)] == [1, 0, 5, 0, 0]
    function.set_irqs(2, 0, [10, None, 12])
    function.set_irqs(2, 0, [])
    function.unmask_irq(0)
    assert kernel.irqs == [
        (0x24, 2, 0, 3, (10, -1, 12)),
        (0x21, 2, 0, 0, ()),
        (0x11, 0, 0, 1, ()),
    ]
    kernel.fail[10] = 22
    with pytest.raises(AccessRefused, match="VFIO DEVICE_SET_IRQS: Invalid argument"):
        function.set_irqs(2, 0, [10])


def test_an_answer_that_grows_without_end_is_given_up(make: Make) -> None:
    function, kernel = make()

    def grows(data: bytearray) -> int:
        struct.pack_into("=I", data, 0, len(data) + 8)
        return 0

    kernel.region = grows  # type: ignore[method-assign]
    with pytest.raises(TransportError, match="does not say how long its answer is"):
        function.region_info(0)
