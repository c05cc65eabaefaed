"""The libzstd that codecs use: which one is found, and what is said of one that cannot be used, or where there is none.

Each case is a process of its own: what a process has opened stays open in it.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from kvwire._ext import zstdlib

SAY = """
import json
from kvwire._ext import codec, zstdlib
from kvwire.codecs import codecs, find_codec
from kvwire.errors import ConfigError
try:
    found = zstdlib.find()
    said = [found and [found.path, found.version, found.found_as], [c.name for c in codecs() if c.available]]
    shape = codec.Cell(1, 2, [])
    data = bytes(range(250)) * 2 + bytes([1, 60]) * 2000
    zstd = codec.own("zstd", 1)
    payload = zstd.encode(shape, data, codec.Scratch())
    said.append(payload and zstd.decode(shape, payload, len(data), codec.Scratch()) == data)
    said.append(zstd.decode_into(shape, bytes(50), bytearray(50), codec.Scratch()))
    find_codec("zstd")
    print(json.dumps(said))
except ConfigError as error:
    print(json.dumps([*said, str(error)] if "said" in dir() else str(error)))
"""
NO_PACKAGE = "import sys; sys.modules['zstandard'] = None"


def find(before: str = "", **environment: str) -> Any:
    """What a process with this environment says."""
    clean = {name: value for name, value in os.environ.items() if name != zstdlib.ENVIRONMENT}
    command = [sys.executable, "-c", f"{before}\n{SAY}"]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def library(path: Path, source: str) -> str:
    """A shared library made of C source, by the compiler that built the extensions."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC")).split()[0]
    source_file = path.with_suffix(".c")
    source_file.write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(source_file), "-ldl"], check=True)
    return str(path)


def without_literal_mode(path: Path, real: str) -> str:
    """`real`, but for the parameter that says what is done with literals: it is an experimental one."""
    return library(
        path,
        f"""
        #include <dlfcn.h>
        #include <stddef.h>
        static void *of(const char *name) {{
            static void *real;
            if (!real) real = dlopen("{real}", RTLD_NOW);
            return dlsym(real, name);
        }}
        #define A void *
        #define SAME(type, name, takes, gives) type name takes {{ type (*f) takes = of(#name); return f gives; }}
        SAME(unsigned, ZSTD_versionNumber, (void), ())
        SAME(const char *, ZSTD_versionString, (void), ())
        SAME(A, ZSTD_createCCtx, (void), ())
        SAME(A, ZSTD_createDCtx, (void), ())
        SAME(size_t, ZSTD_freeCCtx, (A c), (c))
        SAME(size_t, ZSTD_freeDCtx, (A c), (c))
        SAME(unsigned, ZSTD_isError, (size_t n), (n))
        SAME(size_t, ZSTD_compress2, (A c, A d, size_t r, const A s, size_t n), (c, d, r, s, n))
        SAME(size_t, ZSTD_decompressDCtx, (A c, A d, size_t r, const A s, size_t n), (c, d, r, s, n))
        size_t ZSTD_CCtx_setParameter(A c, int what, int value) {{
            size_t (*f)(A, int, int) = of("ZSTD_CCtx_setParameter");
            return what == 1002 ? (size_t)-40 : f(c, what, value);
        }}
        """,
    )


def old(path: Path) -> str:
    return library(path, "unsigned ZSTD_versionNumber(void) { return 10308; }\n")


def test_the_packages_is_found() -> None:
    found, available, right, garbage = find()
    if found[2] != "zstandard":
        pytest.skip(f"this package zstandard keeps its zstd to itself; found {found[0]} ({found[2]})")
    assert Path(found[0]).parent.name == "zstandard"
    assert tuple(map(int, found[1].split("."))) >= (1, 4, 0)
    assert "zstd" in available
    assert (right, garbage) == (True, False)


def test_the_systems_where_there_is_no_package() -> None:
    found = find(NO_PACKAGE)
    if found[0] is None:
        pytest.skip("this system has no libzstd.so.1")
    assert found[0][2] == "system"
    assert found[2:] == [True, False]


def test_none_at_all(tmp_path: Path) -> None:
    """Codecs that need it say so; the others are there."""
    old(tmp_path / "libzstd.so.1")
    found, available, payload, decoded, error = find(NO_PACKAGE, LD_LIBRARY_PATH=str(tmp_path))
    assert (found, payload, decoded) == (None, None, False)
    assert available == ["bf16", "fp8", "int8", "int4", "int2"]
    assert error == (
        "codec 'zstd' needs a libzstd, and none was found "
        "(install the package zstandard or the system's libzstd.so.1, or set KVWIRE_LIBZSTD)"
    )


def test_a_named_one_comes_first(tmp_path: Path) -> None:
    found = zstdlib.find()
    if found is None:
        pytest.skip("no libzstd on this machine")
    assert find(KVWIRE_LIBZSTD=found.path)[0] == [found.path, found.version, "KVWIRE_LIBZSTD"]
    assert find(KVWIRE_LIBZSTD="")[0][2] != "KVWIRE_LIBZSTD"


def test_one_that_does_not_know_the_mode_of_literals(tmp_path: Path) -> None:
    found = zstdlib.find()
    if found is None:
        pytest.skip("no libzstd on this machine")
    named = without_literal_mode(tmp_path / "mine.so", found.path)
    assert find(KVWIRE_LIBZSTD=named)[2:] == [True, False]


def test_a_named_one_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    cases = {
        str(tmp_path / "missing.so"): "No such file",
        library(tmp_path / "other.so", "int answer = 42;\n"): "it has no ZSTD_versionNumber",
        library(tmp_path / "some.so", "unsigned ZSTD_versionNumber(void) { return 10507; }\n"): "it has no ZSTD_create",
        old(tmp_path / "old.so"): "it is zstd 1.3.8, older than 1.4.0",
    }
    for named, why in cases.items():
        said = find(KVWIRE_LIBZSTD=named)
        assert isinstance(said, str), named
        assert said.startswith(f"KVWIRE_LIBZSTD is {named!r}, which cannot be used: ")
        assert why in said
        assert said.endswith("(name a libzstd, 1.4.0 or newer, or unset it)")


def test_what_was_found_is_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="find"):
        zstdlib.Zstd()
