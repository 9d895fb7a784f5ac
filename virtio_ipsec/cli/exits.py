"""Exit codes that every verb keeps to."""

DONE = 0
FINDING = 1
USAGE = 2
UNREACHABLE = 3
