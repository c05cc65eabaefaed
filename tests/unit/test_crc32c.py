"""CRC32C: every implementation that runs here against the bitwise definition."""

import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire._ext.crc32c import crc32c, crc32c_with, implementations, selected

EVERY = pytest.mark.parametrize("name", implementations())
NOISE = random.Random(3720).randbytes(70_000)
ROOT = Path(__file__).parents[2]


def reference(data: bytes, crc: int = 0) -> int:
    """The definition, bit by bit."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@EVERY
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720 appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (
            bytes.fromhex("01c00000000000000000000000000000140000000000040000000014000000182800000000000000")
            + bytes.fromhex("0200000000000000"),
            0xD9963A56,
        ),
    ],
)
def test_known_vectors(name: str, data: bytes, crc: int) -> None:
    assert crc32c_with(name, data) == crc == reference(data)


@EVERY
def test_every_short_length(name: str) -> None:
    expected = 0
    for length in range(301):
        assert crc32c_with(name, NOISE[:length]) == expected
        expected = reference(NOISE[length : length + 1], expected)


@EVERY
@pytest.mark.parametrize("length", [511, 512, 513, 767, 768, 1025, 12_287, 12_288, 13_056, 65_536, 69_999])
def test_long_lengths(name: str, length: int) -> None:
    assert crc32c_with(name, NOISE[:length]) == reference(NOISE[:length])


@EVERY
@pytest.mark.parametrize("length", [200, 1500])
def test_every_alignment(name: str, length: int) -> None:
    view = memoryview(NOISE)
    for start in range(65):
        assert crc32c_with(name, view[start : start + length]) == reference(NOISE[start : start + length])


@EVERY
@given(data=st.binary(max_size=3000), crc=st.integers(0, 2**32 - 1))
def test_agrees_with_reference(name: str, data: bytes, crc: int) -> None:
    assert crc32c_with(name, data, crc) == reference(data, crc)


@EVERY
@given(lengths=st.lists(st.integers(0, 20_000), max_size=4))
def test_incremental_equals_whole(name: str, lengths: list[int]) -> None:
    crc, at = 0, 0
    for length in lengths:
        crc = crc32c_with(name, NOISE[at : at + length], crc)
        at += length
    assert crc == crc32c_with(name, NOISE[:at])


@EVERY
def test_every_single_bit_counts(name: str) -> None:
    data = bytearray(NOISE[:1600])
    seen = {crc32c_with(name, data)}
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        seen.add(crc32c_with(name, data))
        data[at] ^= 1 << at % 8
    assert len(seen) == len(data) + 1


def test_the_best_is_selected() -> None:
    assert selected() == implementations()[0]
    assert implementations()[-1] == "portable"
    assert crc32c(NOISE) == crc32c_with("portable", NOISE)


def test_takes_any_contiguous_buffer() -> None:
    array = np.arange(64, dtype=np.float32).reshape(8, 8)
    assert crc32c(array) == crc32c(array.tobytes())
    with pytest.raises(ValueError, match="not C-contiguous"):
        crc32c(array.T)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"'md5' does not run here; these do: .*portable"):
        crc32c_with("md5", b"")
    with pytest.raises(OverflowError):
        crc32c(b"", 2**32)
    with pytest.raises(TypeError):
        crc32c("text")  # type: ignore[arg-type]


def test_arm_implementations_under_qemu() -> None:
    for tool in ("make", "aarch64-linux-gnu-gcc", "qemu-aarch64-static"):
        if shutil.which(tool) is None:
            pytest.skip(f"ARM CRC32C not run: {tool} is not installed")
    done = subprocess.run(["make", "--no-print-directory", "test-arm"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "armv8-pmull: ok" in done.stdout
