"""The processes of a loopback bench: a sender, a receiver, and processes that only keep a core busy.

Each answers calls that come over a pipe, one at a time; KV goes over TCP only. What is timed is timed by the engine,
so neither the pipe nor the GIL is in a figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import kvwire
from kvwire.cli import compression
from kvwire.cli.compression import Coding
from kvwire.cli.content import NOISE
from kvwire.cli.failure import Failure
from kvwire.cli.memory import KvMemory, steps

T = TypeVar("T")

HOST = "127.0.0.1"
CALL_TIMEOUT_S = 120.0
END_TIMEOUT_S = 3.0

_count = 0
"""Rounds of this process's busy loop."""


def _spin() -> None:
    global _count
    while True:
        _count += 1


@dataclass(frozen=True, slots=True)
class Mark:
    """A process at one moment: CLOCK_MONOTONIC, its CPU seconds, rounds of its busy loop, entries into the engine."""

    at_s: float
    cpu_s: float
    rounds: int
    gil_entries: int


@dataclass(frozen=True, slots=True)
class Sent:
    """One transfer as the sender saw it, in engine time, between two marks."""

    nbytes: int
    elapsed_s: float
    tail_s: float
    before: Mark
    after: Mark
    coding: Coding


class Process:
    """What runs in a process of a bench; every public method can be called over the pipe."""

    node: kvwire.Node | None = None
    spinner: threading.Thread | None = None

    def mark(self) -> Mark:
        entries = self.node.gil_entries() if self.node else 0
        return Mark(time.monotonic(), time.process_time(), _count, entries)

    def spin(self, on: bool) -> None:
        """Starts or ends a thread that is as unfair to all others as pure Python can be."""
        if on and self.spinner is None:
            self.spinner = threading.Thread(target=_spin, daemon=True)
            self.spinner.start()
        elif not on and self.spinner is not None:
            # The loop asks nobody whether to go on, as a serving engine's code does not.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self.spinner.ident or 0), ctypes.py_object(SystemExit)
            )
            self.spinner.join()
            self.spinner = None

    def end(self) -> None:
        self.spin(False)


def identity_in(keys: Path | None) -> kvwire.Identity | None:
    return None if keys is None else kvwire.Identity.load(keys)


class Side(Process):
    """One end of the link: a node whose loop has a thread of its own, as in an engine, and the KV memory."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(CALL_TIMEOUT_S)

    def allocate(
        self, specs: Sequence[kvwire.GroupSpec], tokens: int, scatter_seed: int | None, content: str = NOISE
    ) -> None:
        # The old memory goes before the new one comes: a model's KV may be half of what the host has.
        self.memory: KvMemory | None = None
        gc.collect()
        self.memory = KvMemory(specs, tokens, scatter_seed, content)

    def end(self) -> None:
        super().end()
        if self.node is not None:
            self.call(self.node.close())


class Receiver(Side):
    """The decode side."""

    def listen(self, config: kvwire.Config, keys: Path | None) -> int:
        """Serves; says at which port. `keys`: the directory of its identity; None: it is plain."""
        self.node = self.call(kvwire.Node.serve(HOST, 0, config, identity=identity_in(keys)))
        return self.node.port

    def accept(self, count_layers: bool = False) -> None:
        """Clears the memory, takes the next offer and grants all of it. `count_layers`: for `landed`."""
        assert self.memory is not None
        self.memory.poison()
        self.layers = 0
        self.incoming = self.call(self._accept(self.memory))
        if count_layers:
            asyncio.run_coroutine_threadsafe(self._count_layers(self.incoming), self.loop)

    async def _accept(self, memory: KvMemory) -> kvwire.Incoming:
        assert self.node is not None
        incoming = await self.node.accept()
        await incoming.grant(memory.placement())
        return incoming

    async def _count_layers(self, incoming: kvwire.Incoming) -> None:
        async for _ in incoming.layers():
            self.layers += 1

    def landed(self) -> int:
        """How many layers of the groups are complete and verified, of those that `accept` was to count."""
        return self.layers

    def committed(self) -> Mark:
        self.incoming.wait_committed(CALL_TIMEOUT_S)
        return self.mark()

    def damage(self, transfer: int, compression: str) -> list[str]:
        assert self.memory is not None
        return self.memory.damage(transfer, compression)


class Sender(Side):
    """The prefill side."""

    def connect(self, port: int, config: kvwire.Config, keys: Path | None) -> str:
        """Dials; says which congestion control the lanes got."""
        self.node = self.call(kvwire.Node.start(config, identity=identity_in(keys)))
        self.link = self.call(self.node.connect(HOST, port))
        return ", ".join(sorted(set(self.link.lane_congestion.values())))

    def offer(self, transfer: int, model: str) -> None:
        """Fills the memory with what belongs to transfer number `transfer`; returns when that is granted."""
        assert self.memory is not None
        self.memory.fill(transfer)
        tag = kvwire.ModelTag(model, layout=kvwire.layout_digest(self.memory.specs))
        manifest = kvwire.Manifest.of(f"{model}-{transfer}", tag, self.memory.tokens, self.memory.specs)
        self.outgoing = self.call(self.link.offer(manifest, self.memory.placement()))

    def automatic(self) -> dict[str, Any]:
        """What the link's automatic codecs have decided by now."""
        return compression.automatic(self.link)

    def send(self, prefill_s: float) -> Sent:
        """Layers become ready evenly over `prefill_s`, all at once if that is 0; returns with the receipt."""
        assert self.memory is not None
        layers = steps(self.memory.specs)
        before = self.mark()
        for index, step in enumerate(layers, 1):
            if prefill_s:
                time.sleep(max(0.0, before.at_s + prefill_s * index / len(layers) - time.monotonic()))
            for group, layer in step:
                self.outgoing.ready(group, layer)
        receipt = self.outgoing.wait_committed(CALL_TIMEOUT_S)
        assert receipt.tail_s is not None
        return Sent(receipt.bytes, receipt.elapsed_s, receipt.tail_s, before, self.mark(), Coding.of(receipt))


def _end_with_parent() -> None:
    """A bench that was killed leaves nothing: in a call nobody sees that the pipe has ended, for minutes perhaps."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _serve(pipe: Connection, role: type[Process]) -> None:
    """A child's main: answers calls until the pipe ends, or the process that makes them."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    process = role()
    try:
        while (call := pipe.recv()) is not None:
            name, arguments = call
            try:
                pipe.send((True, getattr(process, name)(*arguments)))
            except (kvwire.KvwireError, ValueError, OSError, TimeoutError) as error:
                pipe.send((False, f"{type(error).__name__}: {error}"))
            except MemoryError:
                pipe.send((False, "there is not enough memory; ask for fewer tokens or bytes"))
    except (EOFError, BrokenPipeError):
        return
    process.end()


class Peer:
    """A process of the bench, as its parent sees it."""

    def __init__(self, role: type[Process]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, role), name=role.__name__.lower(), daemon=True)
        # Ctrl-C is the parent's to act on; a child inherits the mask before it runs its first line. The tracker comes
        # first because starting it takes SIGINT out of the mask.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def start(self, name: str, *arguments: Any) -> None:
        """Begins a call; `result` ends it."""
        try:
            self._pipe.send((name, arguments))
        except OSError:
            raise self._ended() from None

    def done(self, within_s: float) -> bool:
        """Whether `result` will not have to wait; waits for that, but no longer than `within_s`."""
        return self._pipe.poll(within_s)

    def result(self, within_s: float = CALL_TIMEOUT_S) -> Any:
        """What the call returned. `Failure` where it failed, its process ended, or it took too long."""
        try:
            if not self._pipe.poll(within_s + END_TIMEOUT_S):
                raise Failure(f"the {self._process.name} did not answer in {within_s:.0f} s")
            good, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if not good:
            raise Failure(f"the {self._process.name} failed: {value}")
        return value

    def call(self, name: str, *arguments: Any) -> Any:
        self.start(name, *arguments)
        return self.result()

    def _ended(self) -> Failure:
        self._process.join(END_TIMEOUT_S)
        return Failure(f"the {self._process.name} ended with status {self._process.exitcode}")

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()

    def hang_up(self) -> None:
        """Asks the process to end."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)

    def close(self) -> None:
        """Ends the process, kindly first; never raises, never waits long."""
        self.hang_up()
        self._process.join(END_TIMEOUT_S)
        if self._process.is_alive():
            self.kill()
            self._process.join(END_TIMEOUT_S)
        self._pipe.close()
