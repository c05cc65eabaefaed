"""Two engines joined by real TCP on loopback, and memory to move between them."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import numpy as np

from kvwire._ext.cipher import Cipher, find
from kvwire._ext.coding import Coding
from kvwire._ext.engine import Engine
from kvwire._ext.frame import check
from kvwire._ext.incoming import InTransfer
from kvwire._ext.lanes import EngineLink
from kvwire._ext.layout import Segment
from kvwire._ext.outgoing import OutTransfer
from kvwire._ext.seal import MOST

POISON = 0xA5
CELL = 4096
PATIENCE_S = 20.0

Closure = tuple[int, int, int, str, int]
Rekey = tuple[int, int, float]


class Memory:
    """Segments of `shapes` (blocks, bytes of a block), each in an array of its own with poison around its pages.

    A block lies in `pages` pieces, a piece in rows of `row_bytes` where given; slots are in random order.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        *,
        pages: int = 1,
        row_bytes: int = 0,
        filled: bool = False,
        seed: int = 1,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.arrays, self.indexes, self.segments = [], [], []
        for blocks, block_bytes in shapes:
            page_bytes = -(-block_bytes // pages)
            pattern, where = [], []
            for start in range(0, block_bytes, page_bytes):
                n = min(page_bytes, block_bytes - start)
                row = row_bytes if row_bytes and n % row_bytes == 0 else n
                pattern.append((start, n, start // page_bytes, 3, n // row, row, row + 5))
                at = np.arange(n)
                where.append((start // page_bytes, 3 + at // row * (row + 5) + at % row))
            slot_bytes = max(int(at[-1]) for _, at in where) + 8
            offsets = rng.permutation(blocks * pages + 2)[: blocks * pages].astype(np.int64) * slot_bytes
            array = np.full((blocks * pages + 2) * slot_bytes, POISON, np.uint8)
            index = np.concatenate([offsets[b * pages + p] + at for b in range(blocks) for p, at in where])
            if filled:
                array[index] = rng.integers(0, 256, len(index), np.uint8)
            table = np.array(pattern, np.int64)
            self.arrays.append(array)
            self.indexes.append(index)
            self.segments.append(Segment(array.ctypes.data, offsets, pages, table, block_bytes))
        self.blocks = [blocks for blocks, _ in shapes]

    def content(self) -> list[bytes]:
        return [array[index].tobytes() for array, index in zip(self.arrays, self.indexes, strict=True)]

    def poisoned_outside(self) -> bool:
        """Whether no byte outside the segments was written."""
        for array, index in zip(self.arrays, self.indexes, strict=True):
            outside = np.ones(len(array), bool)
            outside[index] = False
            if not (array[outside] == POISON).all():
                return False
        return True

    def untouched(self) -> bool:
        return all(bool((array == POISON).all()) for array in self.arrays)

    def snapshot(self) -> list[bytes]:
        return [array.tobytes() for array in self.arrays]


def tcp_pair(*, narrow: bool = False) -> tuple[socket.socket, socket.socket]:
    """`narrow`: with buffers so small that the kernel refuses most of what it is given."""
    with socket.socket() as listener:
        if narrow:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        dialled = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    for s in (dialled, accepted):
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if narrow:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return dialled, accepted


def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}"
        time.sleep(0.0005)


def closures(link: EngineLink, count: int = 1) -> list[Closure]:
    """Wait for lanes to end."""
    ended: list[Closure] = []

    def enough() -> bool:
        ended.extend(link.take_closed())
        return len(ended) >= count

    until(enough, f"{count} lanes to end")
    return ended


def frames(peer: socket.socket, count: int) -> Iterator[bytes]:
    """The next frames that the engine sends, header and payload, checked."""
    data = b""
    for sequence in range(count):
        while (found := check(data, sequence, 1 << 18))[0] == "incomplete":
            more = peer.recv(1 << 16)
            assert more, "the engine closed the lane"
            data += more
        assert found[0] == "ok"
        yield data[: found[1]]
        data = data[found[1] :]


def frame_type(frame: bytes) -> int:
    return frame[5]


def lane_secrets() -> tuple[bytes, bytes]:
    """Of one lane and incarnation, as the side has them that dials: of sending and of receiving."""
    return os.urandom(32), os.urandom(32)


class Pair:
    """A sending and a receiving engine with `lanes` lanes between them.

    Lanes are sealed where there is a cipher: `cipher`, or else the class's (the fixture `sealing`).
    """

    cipher: Cipher | None = None

    def __init__(self, lanes: int = 2, *, cipher: Cipher | None = None, rekey: Rekey = MOST, **config: int) -> None:
        self.cipher = cipher or self.cipher
        self.engines = (
            Engine(**config, rekey=rekey, cipher=self.cipher),
            Engine(**config, rekey=rekey, cipher=self.cipher),
        )
        self.sender, self.receiver = (EngineLink(engine) for engine in self.engines)
        self.memory: list[Memory] = []
        for lane in range(lanes):
            self.add_lane(lane)

    def add_lane(self, lane: int, incarnation: int = 0) -> None:
        self.join(*tcp_pair(), lane, incarnation)

    def join(self, out: socket.socket, inc: socket.socket, lane: int, incarnation: int) -> None:
        """Make a lane of two sockets, which need not be ends of one connection."""
        secrets = lane_secrets() if self.cipher else None
        with out, inc:
            self.receiver.add_lane(inc.detach(), lane, incarnation, secrets and secrets[::-1])
            self.sender.add_lane(out.detach(), lane, incarnation, secrets)

    def transfer(
        self,
        source: Memory,
        target: Memory,
        *,
        id: int = 2,
        cell: int = CELL,
        attachment: bool = False,
        codings: list[Coding | None] | None = None,
    ) -> tuple[OutTransfer, InTransfer]:
        self.memory += [source, target]  # segments do not own it
        inc = InTransfer(self.receiver, id, target.segments, cell, attachment, codings)
        return OutTransfer(self.sender, id, source.segments, cell, attachment, codings=codings), inc

    def close(self) -> None:
        for link in (self.sender, self.receiver):
            link.close()
        for engine in self.engines:
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def all_ready(out: OutTransfer, source: Memory) -> None:
    for segment, blocks in enumerate(source.blocks):
        out.ready(segment, 0, blocks)


def commit(out: OutTransfer, inc: InTransfer) -> None:
    assert out.wait(PATIENCE_S) == "committed"
    assert inc.wait(PATIENCE_S) == "committed"


def open_things() -> tuple[int, int]:
    """File descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


@contextmanager
def raw_peer(
    secrets: tuple[bytes, bytes] | None = None, *, rekey: Rekey = MOST, narrow: bool = False
) -> Iterator[tuple[EngineLink, socket.socket]]:
    """A link whose only lane, number 0, ends in a socket in the test's hands. `secrets`: the engine's own, of sending
    and of receiving; then the lane is sealed."""
    engine = Engine(rekey=rekey, cipher=find() if secrets else None)
    link = EngineLink(engine)
    ours, theirs = tcp_pair(narrow=narrow)
    link.add_lane(ours.detach(), 0, 0, secrets)
    theirs.settimeout(PATIENCE_S)
    try:
        with theirs:
            yield link, theirs
    finally:
        link.close()
        engine.close()


def in_child(work: Callable[[], None]) -> int:
    """Exit status of a forked child that does `work`; fails when it hangs."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(10)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
