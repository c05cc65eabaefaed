"""Sealed lanes over real TCP: every byte arrives, nothing else is taken, and no nonce comes twice."""

import random
import socket
from pathlib import Path

import pytest

from kvwire._ext import cipher
from kvwire._ext.cipher import Cipher
from kvwire._ext.lanes import FAULTS
from kvwire._ext.nonces import RECORD_BYTES, NonceRecorder
from tests.net.engines import (
    CELL,
    Memory,
    Pair,
    all_ready,
    closures,
    commit,
    until,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

BOTH = pytest.mark.parametrize("provider", [cipher.find, cipher.of_package], ids=["native", "package"])
FULL = bytes(range(256)) * (CELL // 256)


def narrow_pair() -> tuple[socket.socket, socket.socket]:
    """A connection whose kernel buffers are so small that it refuses most of what it is given."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        dialled = socket.socket()
        dialled.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        dialled.connect(listener.getsockname())
        accepted, _ = listener.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for s in (dialled, accepted):
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return dialled, accepted


@BOTH
def test_no_nonce_comes_twice(provider: type[Cipher], tmp_path: Path) -> None:
    """Many transfers, buffers that refuse often, a new key every few frames, lanes that are lost in the middle."""
    rng = random.Random(5)
    path = tmp_path / "nonces"
    shapes = [(4, 50_000), (3, 70_000), (16, 900)]
    sources = [Memory(shapes, pages=1 + i % 3, filled=True, seed=i) for i in range(12)]
    targets = [Memory(shapes, seed=50 + i) for i in range(12)]
    lost = 0
    with path.open("ab", buffering=0) as file:
        recorder = NonceRecorder(provider(), file.fileno())
        with Pair(0, cipher=recorder, rekey=(1 << 30, 5, 3600.0), max_cell_bytes=16384) as pair:
            incarnation = [0] * 4
            for lane in range(4):
                pair.join(*narrow_pair(), lane, 0)
            moving = []
            for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
                out, inc = pair.transfer(source, target, id=2 * i, cell=rng.choice([999, CELL, 16384]), attachment=True)
                moving.append((out, inc))
                all_ready(out, source)
                out.attach(bytes([i]) * 60_000)
                until(lambda inc=inc: inc.cells[0], "the first cell")  # type: ignore[misc]
                lane = rng.randrange(4)
                rng.choice([pair.sender, pair.receiver]).close_lane(lane)
                closed = closures(pair.sender) + closures(pair.receiver)
                assert not FAULTS & {code for _, _, code, _, _ in closed}, closed
                lost += 1
                incarnation[lane] += 1
                pair.join(*narrow_pair(), lane, incarnation[lane])
            for i, (out, inc) in enumerate(moving):
                commit(out, inc)
                assert inc.attachment == bytes([i]) * 60_000
            stats = pair.sender.lane_stats() + pair.receiver.lane_stats()
            assert pair.sender.take_closed() == pair.receiver.take_closed() == []
        assert sum(out.resent_cells for out, _ in moving) > 0
    for source, target in zip(sources, targets, strict=True):
        assert target.content() == source.content()
        assert target.poisoned_outside()
    written = path.read_bytes()
    records = [written[at : at + RECORD_BYTES] for at in range(0, len(written), RECORD_BYTES)]
    assert len(set(records)) == len(records)
    keys = {record[:16] for record in records}
    assert len(records) / 5 <= len(keys)
    assert max(lane["sent_epoch"] for lane in stats) > 10
