"""Sizes as people write them, and numbers as people read them."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
GB = 1e9
"""Goodput is in GB/s of 10^9 bytes, as link rates are; memory in KiB, MiB, GiB."""

_FACTORS = {"": 1, "k": KIB, "m": MIB, "g": GIB}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)


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


_RATE_FACTORS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_RATE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmgt])(?:bit/s|bps|bit)?", re.IGNORECASE)


def parse_rate(text: str) -> float:
    """Bits per second in "10G", "2.5 Gbit/s", "400M". Powers of 1000, as link rates are. ValueError otherwise."""
    match = _RATE.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"{text!r} is no rate; expected bits per second such as 400M, 10G or 2.5Gbit/s")
    return float(match[1]) * _RATE_FACTORS[match[2].lower()]


def show_rate(bps: float) -> str:
    """Bits per second as "10 Gbit/s", "42.6 Mbit/s"."""
    return _decimal(bps, "bit/s")


_TIME_FACTORS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(us|ms|s)")


def parse_time(text: str) -> float:
    """Seconds in "40ms", "1.5s", "500 us". ValueError otherwise."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no time; expected one with its unit, such as 40ms, 1.5s or 500us")
    return float(match[1]) * _TIME_FACTORS[match[2]]


_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s*%")


def parse_share(text: str) -> float:
    """0.0 to 1.0 of "0.1%", "0". A number without % could be meant either way: ValueError, as for any other text."""
    match = _SHARE.fullmatch(text.strip())
    share = float(match[1]) / 100 if match else 0.0 if text.strip() == "0" else -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r} is no share; expected a percentage such as 0.1%")
    return share


def show_share(share: float) -> str:
    """ "0.1 %"."""
    return f"{share * 100:.4g} %"


def show_time(seconds: float) -> str:
    """Seconds as "40 ms", "1.5 s", "12 us", "12346 s"."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def show_bytes(nbytes: float) -> str:
    """Bytes that went over a wire, in powers of 1000 as link rates are: "49.1 GB"."""
    return _decimal(nbytes, "B")


def _decimal(value: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}"
