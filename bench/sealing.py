"""What sealing costs: frames on one core, and transfers over loopback, for each cipher there is, beside plain CRC32C.

    python bench/sealing.py [--libcrypto PATH ...] [--runs N] [--lanes N]

`--libcrypto` names further ones beside the one that kvwire finds; a libcrypto 3.5 lies in the wheel of
psycopg2-binary. All ways take turns in one run; every figure is the median of `--runs`, with its ratio to plain.
Once the process does nothing else ("idle"), once a pure-Python loop runs in it ("busy"). The last line is JSON.

One core: frames are made from and checked in buffers that stay in its caches, without the GIL, as the engine's workers
do; `encrypt_into` and `decrypt_into` of the `cryptography` package are called from Python for comparison. Loopback: two
engines in one process, whose workers have a core each; goodput of 256 MiB from the first byte that is ready to the
receipt; every byte is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kvwire._ext import cipher, libcrypto
from kvwire._ext.cipher import Cipher
from kvwire._ext.engine import Engine
from kvwire._ext.incoming import InTransfer
from kvwire._ext.lanes import EngineLink
from kvwire._ext.layout import Segment
from kvwire._ext.outgoing import OutTransfer
from kvwire._ext.timing import time_frames
from kvwire.cli import machine
from kvwire.cli.units import KIB, MIB, show_size

BATCH, BATCHES = 8, 40
CELL = 64 * KIB
POOL = 256 * MIB
PATIENCE_S = 60.0

Rates = dict[str, list[tuple[float, ...]]]
"""What each way was seen to do, GB/s, a tuple for each turn."""


@contextmanager
def busy_python() -> Iterator[None]:
    """A thread that holds the GIL whenever it gets it."""
    stop = False

    def spin() -> None:
        while not stop:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join()


# --- one core ---------------------------------------------------------------------------------------------------------


def frames_of(way: Cipher | None, length: int) -> tuple[float, ...]:
    """GB/s of making and of checking frames."""
    return tuple(length * BATCH * BATCHES / ns for ns in time_frames(way, length, BATCH, BATCHES))


def into(length: int) -> tuple[float, ...]:
    """GB/s of the package's `encrypt_into` and `decrypt_into`, called from Python."""
    key = AESGCM(bytes(32))
    header, payload = bytes(48), bytearray(length)
    sealed = [bytearray(length + 16) for _ in range(BATCH)]
    sealing = opening = 0
    for batch in range(BATCHES):
        nonces = [(batch * BATCH + i).to_bytes(12, "big") for i in range(BATCH)]
        start = time.perf_counter_ns()
        for i in range(BATCH):
            key.encrypt_into(nonces[i], payload, header, sealed[i])
        between = time.perf_counter_ns()
        for i in range(BATCH):
            key.decrypt_into(nonces[i], sealed[i], header, payload)
        sealing += between - start
        opening += time.perf_counter_ns() - between
    return length * BATCH * BATCHES / sealing, length * BATCH * BATCHES / opening


# --- loopback ---------------------------------------------------------------------------------------------------------


class Memory:
    """Where a transfer comes from and goes to: pages in random order on both sides."""

    def __init__(self, page_bytes: int) -> None:
        rng = np.random.default_rng(1)
        self.pages = POOL // page_bytes
        self.sent = rng.integers(0, 1 << 63, POOL // 8, np.uint64).reshape(self.pages, -1)
        self.received = np.zeros_like(self.sent)
        self.order, self.places = rng.permutation(self.pages), rng.permutation(self.pages)
        table = np.array([[0, page_bytes, 0, 0, 1, page_bytes, page_bytes]], np.int64)
        self.source = Segment(self.sent.ctypes.data, self.order * page_bytes, 1, table, page_bytes)
        self.target = Segment(self.received.ctypes.data, self.places * page_bytes, 1, table, page_bytes)

    def clear(self) -> None:
        self.received[:] = 0

    def arrived(self) -> bool:
        return all(
            np.array_equal(self.received[place], self.sent[page])
            for page, place in zip(self.order, self.places, strict=True)
        )


class Loopback:
    """Two engines of one worker each, with lanes between them, and the memory that is moved."""

    def __init__(self, way: Cipher | None, lanes: int, congestion: str) -> None:
        self.engines = tuple(self.engine(way, core) for core in sorted(os.sched_getaffinity(0))[:2])
        self.sender, self.receiver = (EngineLink(engine) for engine in self.engines)
        self.id = 0
        for lane in range(lanes):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                ours = socket.create_connection(listener.getsockname())
                theirs, _ = listener.accept()
            for end in (ours, theirs):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
            secrets = (os.urandom(32), os.urandom(32)) if way else None
            self.sender.add_lane(ours.detach(), lane, 0, secrets)
            self.receiver.add_lane(theirs.detach(), lane, 0, secrets and secrets[::-1])

    @staticmethod
    def engine(way: Cipher | None, core: int) -> Engine:
        """Its worker stays on `core`: else the scheduler now and then puts both sides on one, and figures double."""
        before = set(os.listdir("/proc/self/task"))
        made = Engine(1, cipher=way)
        (worker,) = set(os.listdir("/proc/self/task")) - before
        os.sched_setaffinity(int(worker), {core})
        return made

    def move(self, memory: Memory) -> tuple[float, ...]:
        """GB/s of one transfer."""
        memory.clear()
        self.id += 2
        incoming = InTransfer(self.receiver, self.id, [memory.target], CELL, False)
        outgoing = OutTransfer(self.sender, self.id, [memory.source], CELL, False)
        outgoing.ready(0, 0, memory.pages)
        assert outgoing.wait(PATIENCE_S) == "committed", outgoing.state
        assert incoming.wait(PATIENCE_S) == "committed", incoming.state
        assert memory.arrived()
        first, _, receipt = outgoing.times_ns
        return (POOL / (receipt - first),)

    def close(self) -> None:
        for link in (self.sender, self.receiver):
            link.close()
        for engine in self.engines:
            engine.close()


# --- turns ------------------------------------------------------------------------------------------------------------


def take_turns(ways: Mapping[str, Callable[[], tuple[float, ...]]], runs: int) -> Rates:
    """Every way `runs` times, one after the other; a first turn is not counted."""
    seen: Rates = {name: [] for name in ways}
    for turn in range(runs + 1):
        for name, once in ways.items():
            rates = once()
            if turn:
                seen[name].append(rates)
    return seen


def report(what: str, columns: tuple[str, ...], seen: Rates) -> list[dict[str, object]]:
    """Print medians and ratios to plain, which comes first."""
    medians = {name: [statistics.median(column) for column in zip(*rates, strict=True)] for name, rates in seen.items()}
    base = next(iter(medians.values()))
    results = []
    for name, figures in medians.items():
        ratios = [mine / plain for mine, plain in zip(figures, base, strict=True)]
        listed = (f"{c} {f:6.2f} GB/s ({r:.2f})" for c, f, r in zip(columns, figures, ratios, strict=True))
        print(f"{what}, {name:28} {', '.join(listed)}", flush=True)
        for column, figure, ratio in zip(columns, figures, ratios, strict=True):
            results.append({"what": what, "way": name, "rate": column, "GBps": figure, "ratio": round(ratio, 3)})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libcrypto", nargs="+", default=[], metavar="PATH")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--lanes", type=int, default=2)
    options = parser.parse_args()
    found = [cipher.find(), *(cipher.of_libcrypto(libcrypto.load(path, "named")) for path in options.libcrypto)]
    ways: dict[str, Cipher | None] = {"plain, CRC32C": None}
    ways |= {way.name: way for way in [*found, cipher.of_package()]}
    control = machine.congestion(None)
    results = []
    for host in ("idle", "busy"):
        with busy_python() if host == "busy" else nullcontext():
            for length in (64 * KIB, 16 * KIB):
                turns: dict[str, Callable[[], tuple[float, ...]]]
                turns = {name: partial(frames_of, way, length) for name, way in ways.items()}
                turns["cryptography's encrypt_into"] = partial(into, length)
                what = f"{host}, one core, cells of {show_size(length)}"
                results += report(what, ("seal", "open"), take_turns(turns, options.runs))
            for page in (MIB, 16 * KIB):
                memory = Memory(page)
                with ExitStack() as stack:
                    pairs = {name: Loopback(way, options.lanes, control) for name, way in ways.items()}
                    for pair in pairs.values():
                        stack.callback(pair.close)
                    moves = {name: partial(pair.move, memory) for name, pair in pairs.items()}
                    what = f"{host}, loopback, pages of {show_size(page)}"
                    results += report(what, ("goodput",), take_turns(moves, options.runs))
    print(json.dumps({"runs": options.runs, "lanes": options.lanes, "congestion": control, "results": results}))


if __name__ == "__main__":
    main()
