"""Judges a driver by the trace of what it does at a device's edge: one judge for each clause."""
