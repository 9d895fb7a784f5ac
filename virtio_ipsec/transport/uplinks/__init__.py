"""The kinds of uplink, one file each."""
