"""The vfio-user protocol: its messages, the socket that carries them, and both ends of it."""
