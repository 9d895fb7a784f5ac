"""Algorithm registry (ids, RFCs, sizes, capability bits) and the reference engine over `cryptography`."""
