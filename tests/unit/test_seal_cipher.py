"""Which cipher a process gets, and what it is told where that is not OpenSSL's."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvwire._ext import cipher, libcrypto
from kvwire._ext.cipher import Cipher
from kvwire._ext.engine import Engine
from kvwire._ext.nonces import RECORD_BYTES, NonceRecorder
from kvwire._ext.seal import MOST, Opener, Sealer
from kvwire.errors import ConfigError
from tests.unit.sealing import nonce

SECRET = bytes(32)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next `find` looks again."""
    monkeypatch.setattr(cipher, "_found", None)


def test_the_libcrypto_that_is_found(forgotten: None) -> None:
    library = libcrypto.find()
    if library is None:
        pytest.skip("no libcrypto 3 on this machine")
    found = cipher.find()
    assert found.native
    assert found.name == f"OpenSSL {library.version} ({library.found_as})"
    assert repr(found) == f"<AES-256-GCM by {found.name}>"
    assert cipher.find() is found


def test_the_package_where_there_is_no_libcrypto(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Python with OpenSSL inside itself, on a system without one."""
    monkeypatch.setattr(libcrypto, "find", lambda: None)
    with pytest.warns(RuntimeWarning, match="no libcrypto was found: cryptography .* takes the GIL"):
        found = cipher.find()
    assert not found.native
    assert found.name.startswith("cryptography ")
    assert cipher.find() is found  # without another warning
    frame = Sealer(found, SECRET).seal("data", 1, 2, 3, b"payload")
    assert Opener(found, SECRET).open(frame, 100)[-1] == b"payload"


def test_a_libcrypto_that_cannot_seal(forgotten: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "little.c"
    source.write_text(
        'const char *OpenSSL_version(int type) { (void)type; return "3.9.9"; }\n'
        "unsigned long OpenSSL_version_num(void) { return 0x30900090; }\n"
    )
    library = tmp_path / "little.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setenv(libcrypto.ENVIRONMENT, str(library))
    with pytest.raises(ConfigError, match=r"cannot seal: .*little\.so has no EVP_CIPHER_CTX_new"):
        cipher.find()
    with pytest.raises(OSError, match="has no EVP_CIPHER_CTX_new"):
        cipher.of_libcrypto(libcrypto.load(str(library)))


def test_one_that_is_named_and_cannot_be_used(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(libcrypto.ENVIRONMENT, "/nowhere.so")
    with pytest.raises(ConfigError, match="cannot be used"):
        cipher.find()


@pytest.mark.parametrize("rekey", [(0, 1, 1.0), (1, MOST[1] + 1, 1.0), (1, 1, -1.0), (1, 1), "all", 7])
def test_an_engine_checks_the_limits_of_keys(rekey: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Engine(rekey=rekey, cipher=cipher.find())


@pytest.mark.parametrize("inner", [cipher.find(), cipher.of_package()], ids=["native", "package"])
def test_a_recorder_writes_down_what_it_seals_with(inner: Cipher, tmp_path: Path) -> None:
    with (tmp_path / "nonces").open("w+b", buffering=0) as file:
        recorder = NonceRecorder(inner, file.fileno())
        assert (recorder.name, recorder.native) == (inner.name, inner.native)
        sealer, opener = Sealer(recorder, SECRET, (MOST[0], 2, MOST[2])), Opener(recorder, SECRET)
        for n in range(5):
            assert opener.open(sealer.seal("data", 0, 0, 0, bytes([n])), 100)[-1] == bytes([n])
        Sealer(recorder, SECRET).seal("data", 0, 0, 0, b"the first nonce, once more")
        file.seek(0)
        written = file.read()
    records = [written[at : at + RECORD_BYTES] for at in range(0, len(written), RECORD_BYTES)]
    assert [record[-12:] for record in records] == [nonce(SECRET, 1 + n // 2, n) for n in range(5)] + [
        nonce(SECRET, 1, 0)
    ]
    assert [len({record[:16] for record in records[n : n + 2]}) for n in (0, 2)] == [1, 1]
    assert len({record[:16] for record in records}) == 3
    assert len(set(records)) == 5
    assert records[0] == records[5]


def test_a_nonce_that_cannot_be_written_down_is_not_used(tmp_path: Path) -> None:
    with (tmp_path / "nonces").open("wb", buffering=0) as file:
        sealer = Sealer(NonceRecorder(cipher.find(), file.fileno()), SECRET)
    with pytest.raises(Exception, match="could not be sealed"):
        sealer.seal("data", 0, 0, 0, b"")


EXIT = """
import numpy as np
from kvwire._ext import cipher
from tests.net.engines import Memory, Pair, all_ready, until
pair = Pair(2, cipher=cipher.{provider}())
source, target = Memory([(16, 1 << 20)], filled=True), Memory([(16, 1 << 20)])
out, inc = pair.transfer(source, target)
all_ready(out, source)
until(lambda: inc.cells[0], "the first cell")
print("moving", flush=True)
"""


@pytest.mark.parametrize("provider", ["find", "of_package"])
def test_a_process_that_ends_with_lanes_at_work(provider: str) -> None:
    """Workers are joined while Python still runs: afterwards nobody could take the GIL."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", EXIT.format(provider=provider)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "moving\n", "")
