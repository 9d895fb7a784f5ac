"""Bounds-checked guest memory; split and packed virtqueues, device side and driver side."""
