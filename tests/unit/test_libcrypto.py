"""The libcrypto that sealed mode will use: which one is found, and what is said of one that cannot be used.

Each case is a process of its own: what a process has opened stays open in it.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from kvwire._ext import libcrypto

SAY = """
import json
from kvwire.errors import ConfigError
try:
    found = libcrypto.find()
    print(json.dumps(found and [found.path, found.version, found.number, found.found_as]))
except ConfigError as error:
    print(json.dumps(str(error)))
"""
NO_SSL = f"""
import sys, types
package = sys.modules["kvwire"] = types.ModuleType("kvwire")  # all of kvwire would bring OpenSSL into the process
package.__path__ = [{str(Path(libcrypto.__file__).parents[1])!r}]
sys.modules["_ssl"] = None
from kvwire._ext import libcrypto
"""
"""As in a Python with OpenSSL inside itself: there is no file that could be opened."""


def find(before: str = "from kvwire._ext import libcrypto", **environment: str) -> Any:
    """What `find` says in a process with this environment."""
    clean = {name: value for name, value in os.environ.items() if name != libcrypto.ENVIRONMENT}
    command = [sys.executable, "-c", f"{before}\n{SAY}"]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def without_ssl(**environment: str) -> Any:
    return find(NO_SSL, **environment)


@pytest.fixture(scope="module")
def here() -> str:
    """The file of a libcrypto that this machine has."""
    found = find()
    if found is None:
        pytest.skip("no libcrypto 3 on this machine")
    return str(found[0])


def library(path: Path, source: str) -> str:
    """A shared library made of C source, by the compiler that built the extensions."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC")).split()[0]
    source_file = path.with_suffix(".c")
    source_file.write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(source_file)], check=True)
    return str(path)


def stand_in(path: Path, version: str, number: int) -> str:
    """A library that says it is the libcrypto of that version."""
    return library(
        path,
        f'const char *OpenSSL_version(int type) {{ return type == 7 ? "{version}" : "OpenSSL {version}"; }}\n'
        f"unsigned long OpenSSL_version_num(void) {{ return {number:#x}; }}\n",
    )


def test_pythons_own_is_found(here: str) -> None:
    import ssl

    path, version, number, found_as = find()
    if found_as != "python":
        pytest.skip(f"this Python has OpenSSL inside itself; found {path} ({found_as})")
    assert Path(path).exists()
    assert number == ssl.OPENSSL_VERSION_NUMBER
    assert f"OpenSSL {version}" in ssl.OPENSSL_VERSION


def test_the_systems_where_python_has_none(here: str) -> None:
    found = without_ssl()
    if found is None:
        pytest.skip("this system has no libcrypto.so.3")
    assert found[3] == "system"
    assert found[2] >= 0x30000000


def test_the_wheels_own_comes_before_pythons(here: str, tmp_path: Path) -> None:
    # The module looks beside itself, so a copy of it in another folder finds what lies there.
    extension = Path(libcrypto.__file__)
    shutil.copy(extension, tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libcrypto.so.3").symlink_to(here)
    found = find(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import libcrypto")
    assert found[3] == "bundled"


def test_a_named_one_comes_first(here: str, tmp_path: Path) -> None:
    named = stand_in(tmp_path / "mine.so", "3.5.1", 0x30500010)
    assert find(KVWIRE_LIBCRYPTO=named) == [named, "3.5.1", 0x30500010, "KVWIRE_LIBCRYPTO"]
    assert find(KVWIRE_LIBCRYPTO=here)[3] == "KVWIRE_LIBCRYPTO"
    assert find(KVWIRE_LIBCRYPTO="")[3] != "KVWIRE_LIBCRYPTO"


def test_a_named_one_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.so"
    garbage.write_bytes(b"\x7fELF" + bytes(5000))
    cases = {
        str(tmp_path / "missing.so"): "No such file",
        str(garbage): "ELF",
        library(tmp_path / "other.so", "int answer = 42;\n"): "no libcrypto: it has no OpenSSL_version_num",
        stand_in(tmp_path / "old.so", "1.1.1w", 0x1010117F): "OpenSSL 1.1.1w, number 0x1010117f, older than 3.0",
    }
    for named, why in cases.items():
        said = find(KVWIRE_LIBCRYPTO=named)
        assert isinstance(said, str), named
        assert said.startswith(f"KVWIRE_LIBCRYPTO is {named!r}, which cannot be used: ")
        assert why in said
        assert said.endswith("(name an OpenSSL libcrypto, 3.0 or newer, or unset it)")


def test_none_that_can_be_used(tmp_path: Path) -> None:
    stand_in(tmp_path / "libcrypto.so.3", "1.1.1w", 0x1010117F)
    assert without_ssl(LD_LIBRARY_PATH=str(tmp_path)) is None


def test_what_was_found_is_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="find"):
        libcrypto.Libcrypto()
