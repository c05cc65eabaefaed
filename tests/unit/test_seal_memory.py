"""Keys and chains that are done with are wiped: looked for in the memory of a process that had them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvwire._ext import cipher
from tests.unit.sealing import chains, expand, key, sealed

pytestmark = pytest.mark.skipif(not cipher.find().native, reason="the package's keys are Python's")

EPOCHS = 6
CHILD = """
import sys
from kvwire._ext import cipher
from kvwire._ext.seal import MOST, Opener, Sealer
native = cipher.find()
read = sys.stdin.buffer.read
kept = []
def seal():
    kept.append(Sealer(native, read(32), (MOST[0], 1, MOST[2])))
    for _ in range({epochs}):
        kept[0].seal("data", 0, 0, 0, bytes(64))
def open():
    kept.append(Opener(native, read(32)))
    for _ in range({epochs}):
        assert kept[0].open(read(48 + 64 + 16), 64)[0] == "ok"
def close():
    open()
    kept.clear()
{do}()
print("ready", flush=True)
read(1)
"""


def memory_of(pid: int) -> list[bytes]:
    """What lies in the writable memory of a process."""
    areas = []
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found and "[v" not in line:
                start, end = (int(edge, 16) for edge in found.groups())
                memory.seek(start)
                areas.append(memory.read(end - start))
    return areas


@pytest.mark.parametrize("do", ["seal", "open", "close"])
def test_spent_keys_are_nowhere_in_memory(do: str) -> None:
    """The secret itself is Python's and stays out of this; what is derived from it nobody but the sealer has had."""
    secret = bytes(range(100, 132))
    command = [sys.executable, "-c", CHILD.format(do=do, epochs=EPOCHS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(secret)
        if do != "seal":
            child.stdin.write(b"".join(sealed(secret, 1 + n, n, bytes(64)) for n in range(EPOCHS)))
        child.stdin.flush()
        assert child.stdout.readline() == b"ready\n"
        areas = memory_of(child.pid)
        child.stdin.write(b"x")

    def found(what: bytes) -> bool:
        return any(what in area for area in areas)

    for epoch in range(1, EPOCHS):
        chain = chains(secret, epoch)
        assert not found(key(secret, epoch)), f"key {epoch}"
        assert not found(expand(chain, b"kvwire iv", 12)), f"iv {epoch}"
        assert epoch == 1 or not found(chain), f"chain {epoch}"
    in_use = do != "close"
    assert not found(chains(secret, EPOCHS)), "the chain that the last key came from"
    assert found(chains(secret, EPOCHS + 1)) is in_use, "the chain of the next key"
    assert found(key(secret, EPOCHS)) is in_use, "the last key"
