"""A virtio-pci function: what both sides read in the specification, the device's side, the driver's side."""
