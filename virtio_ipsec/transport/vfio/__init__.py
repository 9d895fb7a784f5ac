"""VFIO: PCI functions that Linux has given to programs, behind an IOMMU or, in no-IOMMU mode, without one."""
