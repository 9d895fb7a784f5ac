"""Executable reference of virtio-net inline IPsec (virtio v1.4-cs01 and the January-2025 RFC)."""

__version__ = "0.1.0"
