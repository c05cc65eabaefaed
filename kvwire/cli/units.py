"""Sizes as people write them, and numbers as people read them."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
GB = 1e9
"""Goodput is in GB/s of 10^9 bytes, as link rates are; memory in KiB, MiB, GiB."""

_FACTORS = {"": 1, "k": KIB, "m": MIB, "g": GIB}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes in "65536", "16KiB", "1.5G". K, M and G are powers of 1024, as iperf3's are. ValueError otherwise."""
    match = _SIZE.fullmatch(text.strip())
    size = float(match[1]) * _FACTORS[match[2].lower()] if match else 0.0
    if size < 1 or size != int(size):
        raise ValueError(f"{text!r} is no size; expected a number of bytes such as 65536, 16KiB, 512MiB or 2G")
    return int(size)


def show_size(size: float) -> str:
    """Bytes as "1 MiB", "190.5 MiB"."""
    for factor, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size:.0f} B"
