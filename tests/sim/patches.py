"""What kvwire's modules see instead of the operating system and the native engine, for as long as a scenario runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import kvwire
import kvwire.cores
import kvwire.link
import kvwire.sockets
from kvwire._ext import engine, incoming, lanes, outgoing
from kvwire.wire import states
from tests.sim import sockets
from tests.sim.engine import SimEngine, SimEngineLink
from tests.sim.links import SimLink
from tests.sim.transfers import SimInTransfer, SimOutTransfer

ON_LOOP, ELSEWHERE = 1, 2
OF_OS = ("strerror", "devnull", "O_RDONLY", "getpid")


def _now_s() -> float:
    """The monotonic clock of the host whose Python runs."""
    return sockets.here().time()


def _thread() -> int:
    """Steps of a loop are one thread; what the clock calls by itself is another."""
    return ON_LOOP if asyncio._get_running_loop() is not None else ELSEWHERE


def _open(path: str, flags: int) -> int:
    """A node keeps a descriptor in reserve, which no simulated host needs."""
    return -1


def _close(fd: int) -> None:
    """As `_open`."""


class IdleCores:
    """Of a host that does nothing else. What this one does must not show in a scenario."""

    def __init__(self, now: float) -> None:
        del now

    def idle(self, now: float) -> float:
        del now
        return 2.0


class CountingTable(dict[Any, Any]):
    """A table of states that counts which of its rows were used."""

    def __init__(self, name: str, rows: dict[Any, Any], counts: Counter[str]) -> None:
        super().__init__(rows)
        self._name = name
        self._counts = counts

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        self._counts[row_name(self._name, key)] += 1
        return value


def row_name(table: str, key: tuple[Any, str]) -> str:
    """What a row of a state table is called in the coverage report."""
    return f"{table}: {key[0].value}, {key[1]}"


TABLES: dict[str, dict[Any, Any]] = {
    "session": states.SESSION,
    "outgoing": states.OUTGOING,
    "incoming": states.INCOMING,
}


AS_THEY_ARE = ("kvwire._ext", "kvwire.cli", "kvwire.security")
"""Certificates are files, and count at times of the calendar."""


def _modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "kvwire" and not name.startswith(AS_THEY_ARE):
            yield module


@contextlib.contextmanager
def simulated(rng: random.Random, counts: Counter[str]) -> Iterator[None]:
    """Every module of kvwire above the engine gets the simulated clock, chance, sockets and engine; and back."""
    stand_ins: list[tuple[object, object]] = [
        (time, SimpleNamespace(time=_now_s, monotonic=_now_s, monotonic_ns=lambda: int(_now_s() * 1e9))),
        (secrets, SimpleNamespace(token_bytes=rng.randbytes)),
        (threading, SimpleNamespace(Lock=threading.Lock, get_ident=_thread)),
        (socket, sockets.module()),
        (os, SimpleNamespace(open=_open, close=_close, **{name: getattr(os, name) for name in OF_OS})),
        (engine.Engine, SimEngine),
        (lanes.EngineLink, SimEngineLink),
        (outgoing.OutTransfer, SimOutTransfer),
        (incoming.InTransfer, SimInTransfer),
        (kvwire.link.Link, SimLink),
        (kvwire.cores.Cores, IdleCores),
    ]
    with contextlib.ExitStack() as stack:
        for module in _modules():
            for name, value in list(vars(module).items()):
                for real, stand_in in stand_ins:
                    if value is real:
                        stack.enter_context(mock.patch.object(module, name, stand_in))
        known = mock.patch.object(kvwire.sockets, "_available_congestion_controls", return_value=("cubic", "reno"))
        stack.enter_context(known)
        for name, rows in TABLES.items():
            stack.enter_context(mock.patch.object(states, name.upper(), CountingTable(name, rows, counts)))
        yield
