"""The Python face of csrc/: the same verdicts as ipsec/, or it refuses the SA."""
