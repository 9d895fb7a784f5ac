"""Bytes to frozen dataclasses and back; constants as enums; two dialects as data; no behaviour."""
