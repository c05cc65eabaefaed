"""Sealed lanes over real TCP: every byte arrives, and no nonce comes twice."""

import gc
import os
import random
import select
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kvwire._ext import cipher, libcrypto
from kvwire._ext.cipher import Cipher
from kvwire._ext.engine import Engine
from kvwire._ext.incoming import InTransfer
from kvwire._ext.lanes import FAULTS, EngineLink
from kvwire._ext.nonces import RECORD_BYTES, NonceRecorder
from kvwire._ext.seal import MOST
from kvwire.errors import Closed, LocalError
from tests.net.engines import CELL, Memory, Pair, all_ready, closures, commit, lane_secrets, tcp_pair, until

pytestmark = pytest.mark.usefixtures("nothing_left")

either = pytest.mark.parametrize("provider", [cipher.find, cipher.of_package], ids=["native", "package"])
Provider = Callable[[], Cipher]
EVERY_5_FRAMES = (MOST[0], 5, MOST[2])


def landed(inc: InTransfer) -> bool:
    return inc.cells[0] > 0


def check(source: Memory, target: Memory) -> None:
    assert target.content() == source.content()
    assert target.poisoned_outside()


@either
def test_no_nonce_comes_twice(provider: Provider, tmp_path: Path) -> None:
    """Many transfers, a kernel that refuses often, a new key every few frames, lanes that are lost in the middle."""
    rng = random.Random(5)
    shapes = [(4, 50_000), (3, 70_000), (16, 900)]
    sources = [Memory(shapes, pages=1 + i % 3, filled=True, seed=i) for i in range(12)]
    targets = [Memory(shapes, seed=50 + i) for i in range(12)]
    path = tmp_path / "nonces"
    with path.open("ab", buffering=0) as file:
        recorder = NonceRecorder(provider(), file.fileno())
        with Pair(0, cipher=recorder, rekey=EVERY_5_FRAMES) as pair:
            incarnation = [0] * 4
            for lane in range(4):
                pair.join(*tcp_pair(narrow=True), lane, 0)
            moving = []
            for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
                cell = rng.choice([999, CELL, 16384])
                out, inc = pair.transfer(source, target, id=2 * i, cell=cell, attachment=True)
                moving.append((out, inc))
                all_ready(out, source)
                out.attach(bytes([i]) * 60_000)
                until(partial(landed, inc), "the first cell")
                lane = rng.randrange(4)
                rng.choice([pair.sender, pair.receiver]).close_lane(lane)
                closed = closures(pair.sender) + closures(pair.receiver)
                assert not FAULTS & {code for _, _, code, _, _ in closed}, closed
                incarnation[lane] += 1
                pair.join(*tcp_pair(narrow=True), lane, incarnation[lane])
            for i, (out, inc) in enumerate(moving):
                commit(out, inc)
                assert inc.attachment == bytes([i]) * 60_000
            stats = pair.sender.lane_stats() + pair.receiver.lane_stats()
            assert pair.sender.take_closed() == pair.receiver.take_closed() == []
    for source, target in zip(sources, targets, strict=True):
        check(source, target)
    assert sum(out.resent_cells for out, _ in moving) > 0
    assert max(lane["sent_epoch"] for lane in stats) > 10
    written = path.read_bytes()
    records = [written[at : at + RECORD_BYTES] for at in range(0, len(written), RECORD_BYTES)]
    assert len(set(records)) == len(records) > 1000
    assert len({record[:16] for record in records}) >= len(records) / 5


@either
def test_suspended_and_joined_again(provider: Provider, tmp_path: Path) -> None:
    """As after a lost control connection: other secrets, the same transfers, and numbers from 0 again."""
    source, target = Memory([(64, 1 << 16)], filled=True), Memory([(64, 1 << 16)], seed=2)
    path = tmp_path / "nonces"
    with (
        path.open("ab", buffering=0) as file,
        Pair(0, cipher=NonceRecorder(provider(), file.fileno()), rekey=EVERY_5_FRAMES) as pair,
    ):
        out, inc = pair.transfer(source, target)
        all_ready(out, source)
        for incarnation in range(4):
            before = inc.cells[0]  # before there are lanes: on a busy machine much lands before this thread goes on
            for lane in range(2):
                pair.join(*tcp_pair(narrow=True), lane, incarnation)
            until(lambda before=before: inc.cells[0] > before, "a cell")  # type: ignore[misc]
            if incarnation < 3:
                pair.sender.suspend()
                pair.receiver.suspend()
                out.resume(inc.landed())
        commit(out, inc)
    check(source, target)
    written = path.read_bytes()
    records = [written[at : at + RECORD_BYTES] for at in range(0, len(written), RECORD_BYTES)]
    assert len(set(records)) == len(records) > 256


@either
@pytest.mark.parametrize("what", ["sender", "receiver", "engine", "abort"])
def test_an_end_with_everything_in_flight(provider: Provider, what: str) -> None:
    """Whoever waits for a worker has let go of the GIL, which the package's workers need."""
    source, target = Memory([(8, 1 << 18)] * 2, filled=True), Memory([(8, 1 << 18)] * 2, seed=2)
    for _ in range(5):
        with Pair(3, cipher=provider()) as pair:
            out, inc = pair.transfer(source, target)
            all_ready(out, source)
            until(partial(landed, inc), "the first cell")
            started = time.monotonic()
            match what:
                case "abort":
                    out.abort()
                    inc.abort()
                case "engine":
                    pair.engines[0].close()
                case _:
                    getattr(pair, what).close()
            pair.close()
            assert time.monotonic() - started < 10


def test_attachments_are_longer_than_cells() -> None:
    """What a lane claims at once is counted in the bytes of each frame: it has to find room in the scratch."""
    count = 40
    values = [random.Random(i).randbytes(65536) for i in range(count)]
    with Pair(0, cipher=cipher.find(), max_cell_bytes=CELL, stream_bytes=8192) as pair:
        moving = [pair.transfer(Memory([]), Memory([]), id=2 * i, cell=1, attachment=True) for i in range(count)]
        for (out, _), value in zip(moving, values, strict=True):
            out.attach(value)
        pair.add_lane(0)
        for (out, inc), value in zip(moving, values, strict=True):
            commit(out, inc)
            assert inc.attachment == value


def test_a_new_key_is_told() -> None:
    """Of either direction: the link is among the handles that changed, and the lane says which epoch it is in."""
    source, target = Memory([(2, 5 * CELL)], filled=True), Memory([(2, 5 * CELL)], seed=2)
    with Pair(1, cipher=cipher.find(), rekey=(MOST[0], 8, MOST[2])) as pair:
        sender, receiver = pair.engines
        assert [pair.sender.lane_stats()[0][key] for key in ("sent_epoch", "received_epoch")] == [1, 1]
        out, inc = pair.transfer(source, target)
        out.ready(0, 0, 1)
        until(lambda: inc.cells[0] == 5, "the first cells")
        assert pair.sender.lane_stats()[0]["sent_epoch"] == 1
        for engine, link in ((sender, pair.sender), (receiver, pair.receiver)):
            assert link not in engine.drain()
        out.ready(0, 1, 1)
        commit(out, inc)
        for engine, link in ((sender, pair.sender), (receiver, pair.receiver)):
            assert select.select([engine.fileno()], [], [], 0)[0]
            assert link in engine.drain()
        assert pair.sender.lane_stats()[0]["sent_epoch"] == pair.receiver.lane_stats()[0]["received_epoch"] == 2


def test_a_plain_lane_has_no_epoch() -> None:
    with Pair(1) as pair:
        (stats,) = pair.sender.lane_stats()
        assert (stats["sent_epoch"], stats["received_epoch"]) == (0, 0)


def test_a_key_gets_old() -> None:
    """Frames of one turn of a worker are sealed at one time, and nobody knows how long a turn is: there are many. One
    for each cell, and those that acknowledge the receipt."""
    source, target = Memory([(50, CELL)], filled=True), Memory([(50, CELL)], seed=2)
    with Pair(1, cipher=cipher.find(), rekey=(MOST[0], MOST[1], 1e-9)) as pair:
        out, inc = pair.transfer(source, target)
        for block in range(50):
            out.ready(0, block, 1)
            until(lambda block=block: inc.cells[0] == block + 1, "the cell")  # type: ignore[misc]
        commit(out, inc)
        assert 2 < pair.sender.lane_stats()[0]["sent_epoch"] <= 52
    check(source, target)


@pytest.mark.parametrize(
    ("secrets", "error", "match"),
    [
        ((bytes(32), bytes(31)), ValueError, "32 bytes, not 31"),
        ((bytes(33), bytes(32)), ValueError, "32 bytes, not 33"),
        ((bytes(32),), ValueError, "unpack"),
        ((bytes(32), None), TypeError, "None"),
        (7, TypeError, "iterable"),
    ],
)
def test_secrets_that_are_none(secrets: tuple[bytes, bytes], error: type[Exception], match: str) -> None:
    engine = Engine(cipher=cipher.find())
    link = EngineLink(engine)
    ours, theirs = tcp_pair()
    with theirs:
        descriptor = ours.detach()
        with pytest.raises(error, match=match):
            link.add_lane(descriptor, 0, 0, secrets)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)
        assert theirs.recv(1) == b""
        assert link.lanes_open == 0
    link.close()
    engine.close()


def test_secrets_without_a_cipher_and_after_the_end() -> None:
    secrets = bytes(32), bytes(32)
    engine = Engine()
    link = EngineLink(engine)
    sealing = Engine(cipher=cipher.find())
    closed = EngineLink(sealing)
    closed.close()
    for wrong, error, match in ((link, LocalError, "no cipher"), (closed, Closed, "closed")):
        ours, theirs = tcp_pair()
        with theirs:
            with pytest.raises(error, match=match):
                wrong.add_lane(ours.detach(), 0, 0, secrets)
            assert theirs.recv(1) == b""
    link.close()
    engine.close()
    sealing.close()


class Holder:
    me: object
    held: object


@pytest.mark.parametrize("recorded", [False, True], ids=["own", "recorded"])
def test_a_cipher_outlives_the_lanes_that_the_collector_takes_apart(recorded: bool, tmp_path: Path) -> None:
    """The collector clears the oldest first: cipher and engine before the link whose lanes free their keys by them.

    `make test-asan` sees that nothing is read which was freed.
    """
    library = libcrypto.find()
    if library is None:
        pytest.skip("no libcrypto 3 on this machine")
    with (tmp_path / "record").open("wb", buffering=0) as record:
        own = cipher.of_libcrypto(library)
        link = EngineLink(Engine(cipher=NonceRecorder(own, record.fileno()) if recorded else own))
        ours, theirs = tcp_pair()
        link.add_lane(ours.detach(), 0, 0, lane_secrets())
        holder = Holder()
        holder.me, holder.held = holder, link
        del own, link, holder
        gc.collect()
        theirs.close()
