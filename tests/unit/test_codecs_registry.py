"""Codecs by name, an application's own in Python and in C, and what is said of one that cannot be."""

import ctypes
import lzma
import os
import re
import subprocess
import sysconfig
import threading
from pathlib import Path
from typing import Any

import pytest

from kvwire._ext.codec import Cell, Native, Scratch
from kvwire.codecs import Codec, cell, codecs, find_codec, register_codec, registry
from kvwire.errors import ConfigError, ProtocolError, WrongThread
from kvwire.types import DType, GroupKind, GroupSpec, Part

pytestmark = pytest.mark.usefixtures("codecs_forgotten")

SPEC = GroupSpec.attention("g", (0, 3, 5), DType.BF16, block_tokens=16, heads=2, head_dim=8)
PAGE = Path(__file__).parents[2] / "docs" / "compression.md"
EXT = Path(registry.__file__).parents[1] / "_ext"


def encode(shape: Cell, data: memoryview) -> bytes | None:
    return lzma.compress(data)


def decode(shape: Cell, payload: memoryview, n: int) -> bytes:
    return lzma.decompress(payload)


def test_a_codec_in_python_is_a_few_lines() -> None:
    made = register_codec("lzma", 200, encode, decode, lossless=True, dtypes=[DType.BF16])
    assert find_codec("lzma") is made
    assert made in codecs()
    assert (made.native.id, made.native.nogil, made.available) == (200, False, True)
    assert made.takes(SPEC)
    assert not made.takes(GroupSpec.state("s", GroupKind.CONV, (0,), DType.FP32, (5,)))
    payload = made.native.encode(cell(SPEC), bytes(4096), Scratch())
    assert payload is not None
    assert len(payload) < 200
    assert made.native.decode(cell(SPEC), payload, 4096, Scratch()) == bytes(4096)


def test_the_one_in_the_documentation() -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (snippet,) = [snippet for snippet in snippets if "register_codec" in snippet]
    exec(snippet, {})
    native = find_codec("lzma").native
    payload = native.encode(cell(SPEC), bytes(4096), Scratch())
    assert payload is not None
    assert native.decode(cell(SPEC), payload, 4096, Scratch()) == bytes(4096)


def test_what_it_is_told_of_a_cell() -> None:
    told = []

    def look(shape: Cell, data: memoryview) -> None:
        told.append((shape.element, shape.itemsize, shape.parts, shape.offset, shape.layer, shape.layers, bytes(data)))

    made = register_codec("look", 201, look, decode, lossless=False)
    assert made.native.encode(cell(SPEC, 2, SPEC.block_bytes * 3 + 100), b"abc", Scratch()) is None
    assert told == [(1, 2, ((1, 16, 16, True), (1, 16, 16, False)), 100, 2, 3, b"abc")]


@pytest.mark.parametrize("answer", [b"", b"12345678", b"123456789", "text", 7, ValueError("no"), KeyboardInterrupt()])
def test_an_answer_that_is_no_payload_sends_the_cell_as_it_is(answer: Any) -> None:
    def bad(*_: Any) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer if answer != 7 else object()

    native = register_codec("bad", 202, bad, bad, lossless=False).native
    assert native.encode(cell(SPEC), b"12345678", Scratch()) is None
    if answer != b"123456789":
        with pytest.raises(ProtocolError, match="3 bytes are no payload of codec bad for a cell of 9 bytes"):
            native.decode(cell(SPEC), b"abc", 9, Scratch())


WRONG: list[tuple[Any, str]] = [
    (RuntimeError("out of luck"), "out of luck"),
    (SystemExit("out of luck"), "out of luck"),
    ("text", "bytes-like object is required, not 'str'"),
    (5, "bytes-like object is required, not 'int'"),
]


@pytest.mark.parametrize("where", ["encode", "decode"])
@pytest.mark.parametrize(("answer", "words"), WRONG, ids=lambda it: type(it).__name__)
def test_its_first_error_is_logged(answer: Any, words: str, where: str, caplog: pytest.LogCaptureFixture) -> None:
    def bad(*_: Any) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    native = register_codec("unlucky", 203, bad, bad, lossless=False).native
    for _ in range(3):
        if where == "encode":
            assert native.encode(cell(SPEC), b"12345678", Scratch()) is None
        else:
            assert not native.decode_into(cell(SPEC), b"abc", bytearray(9), Scratch())
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"codec 'unlucky', {where}" in record.getMessage()
    assert record.exc_info is not None
    assert words in str(record.exc_info[1])


def test_what_waits_is_refused_in_its_functions_only() -> None:
    """In this thread, for as long as they run, and after one that calls another one."""
    inner = register_codec("inner", 204, lambda shape, data: refused("inner"), decode, lossless=False).native

    def outer(shape: Cell, data: memoryview) -> bytes:
        assert inner.encode(shape, b"12345678", Scratch()) == b"1"
        return refused("outer")

    def refused(name: str) -> bytes:
        with pytest.raises(WrongThread, match=f"codec '{name}', encode"):
            registry.check_outside_codecs()
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
        return b"1"

    def elsewhere() -> None:
        registry.check_outside_codecs()
        free.append(True)

    free: list[bool] = []
    native = register_codec("outer", 205, outer, decode, lossless=False).native
    assert native.encode(cell(SPEC), b"12345678", Scratch()) == b"1"
    registry.check_outside_codecs()
    assert len(free) == 2


def test_data_that_is_kept_stays_readable() -> None:
    kept = []

    def keep(shape: Cell, data: memoryview) -> None:
        kept.append(data)

    register_codec("keep", 203, keep, decode, lossless=False).native.encode(cell(SPEC), bytes(5000), Scratch())
    assert bytes(kept[0]) == bytes(5000)


XOR = """
#include "codec_impl.h"
long long encode(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t n, uint8_t *dst,
                 size_t capacity, kvwire_scratch_t *scratch) {
    if (n < 2 || n > scratch->cell_bytes || capacity < n / 2 || cell->parts[0].inner != 16)
        return -1;
    for (size_t i = 0; i < n / 2; i++)
        dst[i] = src[2 * i] ^ *(const uint8_t *)c->provider;
    return (long long)(n / 2);
}
int decode(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t length, uint8_t *dst,
           size_t n, kvwire_scratch_t *scratch) {
    (void)cell;
    (void)scratch;
    if (length != n / 2)
        return 0;
    for (size_t i = 0; i < n; i++)
        dst[i] = src[i / 2] ^ *(const uint8_t *)c->provider;
    return 1;
}
"""


def test_a_codec_in_c(tmp_path: Path) -> None:
    """Compiled with the header alone, given by its addresses."""
    (tmp_path / "xor.c").write_text(XOR)
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC")).split()[0]
    made = tmp_path / "xor.so"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{EXT}", "-o", made, tmp_path / "xor.c"]
    subprocess.run(command, check=True)
    library, key = ctypes.CDLL(str(made)), ctypes.c_uint8(0x5A)
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in (library.encode, library.decode)]
    codec = register_codec(
        "xor", 255, *addresses, lossless=False, provider=ctypes.addressof(key), keep=(library, key)
    )  # fmt: skip
    assert codec.native.nogil
    payload = codec.native.encode(cell(SPEC), b"aabbcc", Scratch())
    assert payload == bytes(byte ^ 0x5A for byte in b"abc")
    assert codec.native.decode(cell(SPEC), payload, 6, Scratch()) == b"aabbcc"
    assert codec.native.encode(cell(SPEC), bytes(4098), Scratch(4096)) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "zstd"}, "codec 'zstd', id 200: there is 'zstd', id 1, already"),
        ({"name": "auto"}, "cannot be called 'auto'"),
        ({"name": "off"}, "cannot be called 'off'"),
        ({"name": "Upper"}, "'Upper' is no name of a codec"),
        ({"name": ""}, "'' is no name"),
        ({"name": None}, "None is no name"),
        ({"kinds": 3}, "kinds are of GroupKind"),
        ({"wire_id": 127}, "applications have 128 to 255"),
        ({"wire_id": 256}, "applications have 128 to 255"),
        ({"wire_id": "200"}, "applications have 128 to 255"),
        ({"wire_id": True}, "applications have 128 to 255"),
        ({"wire_id": 210}, "codec 'mine', id 210: there is 'first', id 210, already"),
        ({"name": "first"}, "there is 'first'"),
        ({"encode": None}, "neither two functions nor two addresses"),
        ({"decode": 4096}, "neither two functions nor two addresses"),
        ({"encode": 0, "decode": 0}, "neither two functions nor two addresses"),
        ({"kinds": []}, "kinds are of GroupKind"),
        ({"dtypes": ["bf16"]}, "dtypes of DType"),
    ],
)
def test_one_that_cannot_be(change: dict[str, Any], why: str) -> None:
    register_codec("first", 210, encode, decode, lossless=True)
    before = codecs()
    arguments: dict[str, Any] = {"name": "mine", "wire_id": 200, "encode": encode, "decode": decode, "lossless": True}
    with pytest.raises(ConfigError) as error:
        register_codec(**arguments | change)
    assert why in str(error.value)
    assert codecs() == before


@pytest.mark.parametrize("name", ["zst", "", "x" * 500, None, 5])
def test_a_name_that_nobody_has(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"there is no codec .*known: zstd, bf16, fp8, int8, int4, int2, delta"):
        find_codec(name)


def test_a_codec_says_what_it_is_for() -> None:
    def takes(codec: Codec) -> tuple[bool, bool, bool]:
        state, integers = (
            GroupSpec.state("s", GroupKind.RECURRENT, (0,), dtype, (5,)) for dtype in (DType.FP32, DType.INT64)
        )
        return codec.takes(SPEC), codec.takes(state), codec.takes(integers)

    assert takes(find_codec("zstd")) == (True, True, True)
    assert takes(find_codec("bf16")) == (False, True, False)
    for name in ("fp8", "int8", "int4", "int2", "delta"):
        assert takes(find_codec(name)) == (True, False, False)
    with pytest.raises(AttributeError):
        find_codec("zstd").name = "other"  # type: ignore[misc]


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_the_shape_of_a_cell() -> None:
    parts = (Part("k", (2, 16, 8), 1), Part("v", (16, 2, 8), 0), Part("scale", (7,)))
    spec = GroupSpec("g", GroupKind.FULL, (4,), DType.FP32, parts, 16)
    assert cell(spec).parts == ((2, 16, 8, True), (1, 16, 16, False), (1, 1, 7, False))
    for index, dtype in enumerate((DType.BF16, DType.FP16, DType.FP32, DType.FP64), 1):
        assert cell(GroupSpec.state("s", GroupKind.CONV, (0,), dtype, (2,))).element == index
    for dtype in (DType.INT8, DType.FP8_E4M3, DType.INT32, DType.BOOL):
        state = cell(GroupSpec.state("s", GroupKind.CONV, (0,), dtype, (2,)))
        assert (state.element, state.itemsize) == (0, dtype.itemsize)


@pytest.mark.parametrize(
    "wrong",
    [
        (1, 3, []),
        (5, 2, []),
        (-1, 2, []),
        (1, 2, [(1, 1, 1, False)] * 17),
        (1, 2, [(1, 0, 1, False)]),
        (1, 2, [(1 << 20, 1 << 20, 1, False)]),
    ],
)
def test_a_shape_that_cannot_be(wrong: tuple[int, int, list[tuple[int, int, int, bool]]]) -> None:
    with pytest.raises(ValueError, match="part"):
        Cell(*wrong)


def test_a_scratch_is_bounded() -> None:
    assert Scratch(0) is not None
    with pytest.raises(ValueError, match="262144 at most"):
        Scratch(262145)
    with pytest.raises(TypeError, match="own"):
        Native()
