"""Operator policy, sans-IO: the TOML description of SAs and flows, and what protects which packet."""
