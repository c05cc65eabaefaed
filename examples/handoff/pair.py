"""The prefill process and the decode process, as the parent that started them sees them."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from jobs import HandoffError, Job, Received, Sent

JOB_TIMEOUT_S = 600.0
"""Longest time one hand-off may take, building both models included."""

DECODE, PREFILL = 0, 1
"""Positions of the children."""


def _prefill(pipe: Connection, *arguments: Any) -> None:
    import prefill  # here, so that only the children load torch

    prefill.main(pipe, *arguments)


def _decode(pipe: Connection, *arguments: Any) -> None:
    import decode

    decode.main(pipe, *arguments)


class Pair:
    """Two processes joined by kvwire over TCP on loopback, and to this one by a pipe each.

    They share no memory: the KV cache goes over TCP, jobs and results over the pipes. The link is sealed, with keys
    that are there for as long as the pair is, unless `plain`. Only who sends says what goes through which codec.
    """

    def __init__(self, lanes: int, plain: bool, compression: str | dict[str, str]) -> None:
        import keys  # here, so that the command can say that there is no kvwire

        self._keys = tempfile.TemporaryDirectory(prefix="handoff-keys-")
        where = None if plain else Path(self._keys.name)
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        try:
            if where is not None:
                keys.make(where)
            self._start(_decode, lanes, where)
            self._start(_prefill, lanes, where, compression)
            _, port = self._receive({DECODE})
            self._pipes[PREFILL].send(port)
        except BaseException:
            self.kill()
            raise

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=target, args=(theirs, *arguments), name=target.__name__, daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)
        self._pipes.append(ours)

    def _receive(self, indices: set[int]) -> tuple[int, Any]:
        """The next message of one of the children, and which. `HandoffError` if one fails or all are silent."""
        ready = wait([self._pipes[index] for index in indices], JOB_TIMEOUT_S)
        if not ready:
            raise HandoffError(f"no result within {JOB_TIMEOUT_S:.0f} s")
        index = next(index for index in indices if self._pipes[index] is ready[0])
        try:
            message = self._pipes[index].recv()
        except (EOFError, ConnectionError):
            process = self._processes[index]
            process.join(10)
            side = process.name.strip("_")
            raise HandoffError(f"the {side} process ended with status {process.exitcode}") from None
        if isinstance(message, HandoffError):
            raise message
        return index, message

    def run(self, job: Job) -> tuple[Sent, Received]:
        """Does one job on both sides. After a `HandoffError` the pair is dead: start another."""
        results: dict[int, Any] = {}
        try:
            for pipe in self._pipes:
                pipe.send(job)
            while waiting := {DECODE, PREFILL} - results.keys():
                index, message = self._receive(waiting)
                results[index] = message
        except BaseException:
            self.kill()
            raise
        return results[PREFILL], results[DECODE]

    def close(self) -> None:
        """Lets both children finish and joins them."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
        self.kill()

    def kill(self) -> None:
        """Ends both children at once, for example when one waits for the other in vain."""
        for process in reversed(self._processes):  # who dials first, so that nobody complains of the other's death
            process.terminate()
        for process in self._processes:
            process.join()
        self._processes.clear()
        self._keys.cleanup()
