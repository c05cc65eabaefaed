"""What users rely on: the names, the versions, what `kvwire --version` says, and that the documents say the same."""

import importlib
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kvwire
from kvwire._ext import build_info, libcrypto
from kvwire.cli import bench, main, sealing
from kvwire.wire import preamble, session

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLASSIFIED = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
BUILD_OPENSSL = ROOT / ".ci" / "build_openssl.sh"


# --- names ------------------------------------------------------------------------------------------------------------


def test_all_names_everything_public_and_nothing_else() -> None:
    public = {
        name
        for name, value in vars(kvwire).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)  # submodules are not public
    }
    assert set(kvwire.__all__) == public | {"__version__"}
    assert len(kvwire.__all__) == len(set(kvwire.__all__))


def test_all_is_sorted() -> None:
    constants_first = sorted(kvwire.__all__, key=lambda name: (not name.isupper(), name))
    assert kvwire.__all__ == constants_first


def test_the_commands_are_there() -> None:
    scripts = PYPROJECT["project"]["scripts"]
    assert {"kvwire", "kvwire-bench"} <= scripts.keys()
    for script in scripts.values():
        module, _, function = script.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


# --- versions ---------------------------------------------------------------------------------------------------------


def test_one_version_everywhere() -> None:
    assert version("kvwire") == kvwire.__version__
    assert f"kvwire/{kvwire.__version__}" == session.SOFTWARE
    assert f"pip install kvwire-{kvwire.__version__}.tar.gz" in (ROOT / "docs/installing.md").read_text()


def test_the_wire_version_is_what_the_page_says() -> None:
    assert preamble.WIRE_VERSION == kvwire.WIRE_VERSION
    page = (ROOT / "docs/versioning.md").read_text()
    release = ".".join(kvwire.__version__.split(".")[:2])
    assert f"This is kvwire {release}. It speaks wire version {kvwire.WIRE_VERSION} and" in page


def test_supported_pythons_are_the_same_everywhere() -> None:
    built = {re.sub(r"cp3(\d+)-.*", r"3.\1", pattern) for pattern in PYPROJECT["tool"]["cibuildwheel"]["build"]}
    assert built == set(CLASSIFIED)
    assert PYPROJECT["project"]["requires-python"] == f">={CLASSIFIED[0]}"
    named = f"{', '.join(CLASSIFIED[:-1])} and {CLASSIFIED[-1]}"
    assert f"Python {named}" in (ROOT / "docs/versioning.md").read_text()
    assert f"Python {named.replace(' and', ' or')}." in (ROOT / "docs/installing.md").read_text()


def test_the_tests_that_hold_the_page_exist() -> None:
    page = (ROOT / "docs/versioning.md").read_text()
    tests = "".join((ROOT / path).read_text() for path in re.findall(r"`(tests/\S+\.py)`", page))
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 4
    assert [name for name in named if f"def {name}(" not in tests] == []


# --- kvwire --version -------------------------------------------------------------------------------------------------


def test_version_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == f"kvwire {kvwire.__version__}"
    labels = [row.split("  ")[-2].strip() for row in rows]
    assert labels == ["wire version", "Python", "built by", "built for", "flags", "CRC32C", "libcrypto", "cipher"]
    page = (ROOT / "docs/installing.md").read_text()
    assert all(f"{label:>14}  " in page for label in labels)


def test_version_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert facts == main.describe()
    assert (facts["kvwire"], facts["wire_version"]) == (kvwire.__version__, kvwire.WIRE_VERSION)
    assert facts["crc32c"]["selected"] in facts["crc32c"]["runs_here"]


def test_build_facts() -> None:
    facts = build_info.facts()
    assert re.fullmatch(r"(GCC|.*[Cc]lang) \d+\.\d+.*", facts["compiler"])
    assert re.fullmatch(r"3\.\d+\.\d+", facts["cython"])
    assert re.fullmatch(r"glibc 2\.\d+", facts["libc"])
    assert "-O3" in facts["flags"].split()
    assert facts["architecture"] == os.uname().machine


def test_unoptimised_code_is_called_that() -> None:
    facts = main.describe()
    assert "NOT OPTIMISED" not in main.show(facts | {"build": facts["build"] | {"optimised": True}})
    assert "NOT OPTIMISED" in main.show(facts | {"build": facts["build"] | {"optimised": False}})


def test_a_host_without_libcrypto_and_one_named_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without = main.show(main.describe() | {"libcrypto": {}, "cipher": "cryptography 50.0.2, which takes the GIL"})
    assert without.splitlines()[-2].endswith("libcrypto  none found")
    assert without.endswith("cipher  AES-256-GCM by cryptography 50.0.2, which takes the GIL")
    monkeypatch.setenv(libcrypto.ENVIRONMENT, str(tmp_path / "missing.so"))
    assert "missing.so" in main.describe()["libcrypto"]["error"]
    assert "missing.so" in main.show(main.describe()).splitlines()[-2]
    assert main.show(main.describe() | {"cipher": ""}).endswith("cipher  none")


@pytest.mark.parametrize("command", [bench.main, main.main])
def test_both_commands_say_the_version_first_and_what_seals_last(
    command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: int | str | None = command(["--version"])
    except SystemExit as end:
        status = end.code
    assert status == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"kvwire {kvwire.__version__}"
    assert f"AES-256-GCM by {sealing.cipher_name()}" in last


def test_without_arguments_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    assert "kvwire-bench" in capsys.readouterr().out


def test_json_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["--json"])
    assert end.value.code == 2
    assert "--json goes with --version" in capsys.readouterr().err


# --- the libcrypto of a wheel -----------------------------------------------------------------------------------------


def test_a_tarball_that_is_not_openssls_is_refused(tmp_path: Path) -> None:
    tarball, lib = tmp_path / "openssl.tar.gz", tmp_path / "lib"
    tarball.write_bytes(b"not what OpenSSL has released")
    environment = os.environ | {"OPENSSL_SOURCE": str(tarball), "LC_ALL": "C"}
    done = subprocess.run([BUILD_OPENSSL, lib], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "checksum" in done.stderr
    assert list(lib.iterdir()) == []


def test_the_bundled_openssl_is_the_one_the_page_names() -> None:
    match = re.search(r"^version=(\d+)\.(\d+)\.(\d+)$", BUILD_OPENSSL.read_text(), re.MULTILINE)
    assert match is not None
    assert (int(match[1]), int(match[2])) >= (3, 5)
    assert f"OpenSSL {'.'.join(match.groups())} |" in (ROOT / "docs/installing.md").read_text()
