"""The driver shim, sans-IO: session, admin, SAs, flows, packets. Meets the device only in bytes."""
