"""kvwire, sealed, beside other transports in the clear: ZeroMQ, Arrow Flight, NIXL and Mooncake, whichever are here.

    python bench/peers.py [--size BYTES] [--page BYTES] [--runs N] [--plain]

`pip install pyzmq pyarrow nixl-cu12 mooncake-transfer-engine-non-cuda` (and a CPU build of torch, for NIXL) makes all
of them be here. Two processes and TCP on 127.0.0.1 for each, which are there for its turn only, as some never rest.
Pages go into memory that is there before, in random order; all ways take turns, and every byte is compared after every
run. The clock runs from before the first page is handed over until all are in place. The last line is JSON; exit status
1 where a byte was wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvwire
from kvwire.cli import machine
from kvwire.cli.arguments import parsed, within
from kvwire.cli.failure import Failure
from kvwire.cli.jobs import Job, synthetic
from kvwire.cli.loopback.pair import Pair
from kvwire.cli.loopback.peer import HOST, Peer, Process
from kvwire.cli.units import GB, KIB, MIB, parse_size, show_size

MOONCAKE_BATCH = 512
"""Pages of one call; it refuses more than a few thousand."""
POLL_S = 50e-6
"""Between looks at a NIXL transfer: what its own benchmark does as long as nothing has landed costs a core."""
PATIENCE_S = 60.0


class Side(Process, ABC):
    """One end: `pages` [number, bytes], and `order`, the destination's page for each of the source's."""

    def allocate(self, pages: int, page_bytes: int) -> None:
        self.pages: NDArray[np.uint8] = np.zeros((pages, page_bytes), np.uint8)
        self.order = np.random.default_rng(1).permutation(pages)

    def _addresses(self, order: NDArray[np.int64]) -> list[int]:
        base, size = self.pages.ctypes.data, self.pages.shape[1]
        return [base + int(page) * size for page in order]


class Source(Side):
    """Sends all pages; says when it began, and when it knew that they were on their way or there."""

    def allocate(self, pages: int, page_bytes: int) -> None:
        super().allocate(pages, page_bytes)
        np.copyto(self.pages, _content(pages, page_bytes))

    @abstractmethod
    def connect(self, address: Any) -> None:
        """To what the target's `listen` has returned."""

    def send(self) -> tuple[float, float]:
        begun = time.monotonic()
        self._send()
        return begun, time.monotonic()

    @abstractmethod
    def _send(self) -> None: ...


class Target(Side):
    """Takes all pages; says when they were there, as far as it can know."""

    @abstractmethod
    def listen(self) -> Any: ...

    def clear(self) -> None:
        self.pages.fill(0)

    def wait(self) -> float:
        self._wait()
        return time.monotonic()

    @abstractmethod
    def _wait(self) -> None: ...

    def wrong_pages(self) -> int:
        """How many pages are not what they should be."""
        return int((self.pages[self.order] != _content(*self.pages.shape)).any(axis=1).sum())


def _content(pages: int, page_bytes: int) -> NDArray[np.uint8]:
    return np.random.default_rng(42).integers(0, 256, (pages, page_bytes), np.uint8)


# --- ZeroMQ: PUSH and PULL, a message a page, without copies where its API has them -----------------------------------


class ZmqTarget(Target):
    def listen(self) -> str:
        import zmq

        self.socket = zmq.Context().socket(zmq.PULL)
        self.socket.RCVTIMEO = int(PATIENCE_S * 1000)
        return f"tcp://{HOST}:{self.socket.bind_to_random_port(f'tcp://{HOST}')}"

    def _wait(self) -> None:
        for _ in self.order:
            number = int.from_bytes(self.socket.recv(), "little")
            self.socket.recv_into(self.pages[self.order[number]])


class ZmqSource(Source):
    def connect(self, address: str) -> None:
        import zmq

        self.more = zmq.SNDMORE
        self.socket = zmq.Context().socket(zmq.PUSH)
        self.socket.connect(address)

    def _send(self) -> None:
        for number, page in enumerate(self.pages):
            self.socket.send(number.to_bytes(8, "little"), self.more)
            self.socket.send(page, copy=False)


# --- Arrow Flight: DoPut, a record batch a page -----------------------------------------------------------------------


class FlightTarget(Target):
    def listen(self) -> str:
        from pyarrow import flight

        target, self.complete = self, threading.Event()

        class Server(flight.FlightServerBase):  # type: ignore[misc]
            def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
                for _ in target.order:
                    chunk = reader.read_chunk()
                    number = int.from_bytes(chunk.app_metadata.to_pybytes(), "little")
                    column = chunk.data.column(0)
                    target.pages[target.order[number]] = np.frombuffer(
                        column.buffers()[1], np.uint8, len(column), column.offset
                    )
                target.complete.set()

        server = Server(f"grpc://{HOST}:0")
        threading.Thread(target=server.serve, daemon=True).start()
        return f"grpc://{HOST}:{server.port}"

    def _wait(self) -> None:
        if not self.complete.wait(PATIENCE_S):
            raise TimeoutError("Arrow Flight did not deliver")
        self.complete.clear()


class FlightSource(Source):
    def connect(self, address: str) -> None:
        import pyarrow
        from pyarrow import flight

        self.client, self.path = flight.connect(address), flight.FlightDescriptor.for_path("kv")
        self.schema = pyarrow.schema([("page", pyarrow.uint8())])
        buffer, (pages, size) = pyarrow.py_buffer(self.pages), self.pages.shape
        arrays = [
            pyarrow.Array.from_buffers(pyarrow.uint8(), size, [None, buffer.slice(number * size, size)])
            for number in range(pages)
        ]
        self.batches = [pyarrow.record_batch([array], schema=self.schema) for array in arrays]

    def _send(self) -> None:
        writer, _ = self.client.do_put(self.path, self.schema)
        for number, batch in enumerate(self.batches):
            writer.write_with_metadata(batch, number.to_bytes(8, "little"))
        writer.close()


# --- NIXL: UCX over TCP, one WRITE with a descriptor a page -----------------------------------------------------------


def _nixl(name: str) -> Any:
    os.environ |= {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo", "NIXL_LOG_LEVEL": "ERROR", "UCX_LOG_LEVEL": "error"}
    from nixl_cu12._api import nixl_agent, nixl_agent_config

    return nixl_agent(name, nixl_agent_config(backends=["UCX"]))


class NixlTarget(Target):
    def listen(self) -> tuple[bytes, bytes]:
        self.agent, size = _nixl("target"), self.pages.shape[1]
        self.agent.register_memory([(self.pages.ctypes.data, self.pages.nbytes, 0, "pages")], "DRAM")
        places = self.agent.get_xfer_descs([(place, size, 0) for place in self._addresses(self.order)], "DRAM")
        return self.agent.get_agent_metadata(), self.agent.get_serialized_descs(places)

    def _wait(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while not any(self.agent.get_new_notifs().values()):
            if time.monotonic() > until:
                raise TimeoutError("NIXL did not deliver")
            time.sleep(POLL_S)


class NixlSource(Source):
    def connect(self, address: tuple[bytes, bytes]) -> None:
        self.agent, (pages, size) = _nixl("source"), self.pages.shape
        self.agent.register_memory([(self.pages.ctypes.data, self.pages.nbytes, 0, "pages")], "DRAM")
        peer = self.agent.add_remote_agent(address[0])
        own = [(place, size, 0) for place in self._addresses(np.arange(pages))]
        self.handle = self.agent.initialize_xfer(
            "WRITE", self.agent.get_xfer_descs(own, "DRAM"), self.agent.deserialize_descs(address[1]), peer, b"done"
        )

    def _send(self) -> None:
        state = self.agent.transfer(self.handle)
        while state == "PROC":
            time.sleep(POLL_S)
            state = self.agent.check_xfer_state(self.handle)
        if state != "DONE":
            raise OSError(f"NIXL: {state}")


# --- Mooncake: TCP, batches of writes; only the source knows when they are there --------------------------------------


def _mooncake(pages: NDArray[np.uint8]) -> Any:
    os.environ |= {"GLOG_minloglevel": "2", "MC_TCP_BIND_ADDRESS": HOST}
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    if engine.initialize(HOST, "P2PHANDSHAKE", "tcp", ""):
        raise OSError("Mooncake does not start")
    if engine.register_memory(pages.ctypes.data, pages.nbytes):
        raise OSError("Mooncake does not take the memory")
    return engine


class MooncakeTarget(Target):
    def listen(self) -> tuple[str, list[int]]:
        self.engine = _mooncake(self.pages)
        return f"{HOST}:{self.engine.get_rpc_port()}", self._addresses(self.order)

    def _wait(self) -> None:
        """It is not told; the source knows when its writes are done."""


class MooncakeSource(Source):
    def connect(self, address: tuple[str, list[int]]) -> None:
        self.engine = _mooncake(self.pages)
        self.target, self.places = address
        self.own = self._addresses(np.arange(len(self.pages)))

    def _send(self) -> None:
        for first in range(0, len(self.own), MOONCAKE_BATCH):
            part = slice(first, first + MOONCAKE_BATCH)
            sizes = [self.pages.shape[1]] * len(self.own[part])
            if self.engine.batch_transfer_sync_write(self.target, self.own[part], self.places[part], sizes):
                raise OSError("Mooncake: a write failed")


# --- all of them ------------------------------------------------------------------------------------------------------

PEERS: dict[str, tuple[str, type[Target], type[Source]]] = {
    "ZeroMQ": ("zmq", ZmqTarget, ZmqSource),
    "Arrow Flight": ("pyarrow", FlightTarget, FlightSource),
    "NIXL": ("nixl_cu12", NixlTarget, NixlSource),
    "Mooncake": ("mooncake", MooncakeTarget, MooncakeSource),
}
"""Its module, and its two ends."""


@dataclass
class Seen:
    """Of one transport: GB/s and CPU seconds of both ends per GB, run by run."""

    GBps: list[float] = field(default_factory=list)
    cpu_s_per_GB: list[float] = field(default_factory=list)
    wrong: int = 0


@contextmanager
def joined(target: type[Target], source: type[Source], pages: int, page_bytes: int) -> Iterator[tuple[Peer, Peer]]:
    """Both ends, connected."""
    ends = Peer(target), Peer(source)
    try:
        for end in ends:
            end.call("allocate", pages, page_bytes)
        ends[1].call("connect", ends[0].call("listen"))
        yield ends
    finally:
        for end in ends:
            end.kill()  # some of them hang in their destructors
            end.close()


def move(target: Peer, source: Peer, seen: Seen, nbytes: int, *, counts: bool) -> None:
    """All pages once, checked."""
    target.call("clear")
    before = target.call("mark"), source.call("mark")
    source.start("send")
    there = target.call("wait")
    begun, sent = source.result()
    after = target.call("mark"), source.call("mark")
    seen.wrong += target.call("wrong_pages")
    if counts:
        seen.GBps.append(nbytes / (max(there, sent) - begun) / GB)
        cpu_s = sum(then.cpu_s - now.cpu_s for now, then in zip(before, after, strict=True))
        seen.cpu_s_per_GB.append(cpu_s / nbytes * GB)


def turn_of_kvwire(config: kvwire.Config, job: Job, seen: Seen) -> None:
    """A run to warm up, and one that counts."""
    with Pair(config) as pair:
        pair.allocate(job.specs, job.tokens, scatter=True)
        for counts in (False, True):
            run = pair.run(1)
            seen.wrong += len(run.damage)
            if counts:
                seen.GBps.append(run.goodput_GBps)
                seen.cpu_s_per_GB.append(run.cpu_s_per_GB)


def measure(options: argparse.Namespace) -> dict[str, Seen]:
    """Round by round, kvwire first; what does not run here is left out, with a word."""
    pages = options.size // options.page
    here = [name for name, (module, _, _) in PEERS.items() if importlib.util.find_spec(module)]
    found = {name: Seen() for name in ("kvwire", *here)}
    job = synthetic(pages * options.page, options.page, options.size)
    config = kvwire.Config(congestion=machine.congestion(None), plain=options.plain)
    for _ in range(options.runs):
        turn_of_kvwire(config, job, found["kvwire"])
        for name in [name for name in found if name != "kvwire"]:
            try:
                with joined(*PEERS[name][1:], pages, options.page) as ends:
                    for counts in (False, True):
                        move(*ends, found[name], pages * options.page, counts=counts)
            except Failure as failure:
                print(f"{name} is left out: {failure}", file=sys.stderr)
                del found[name]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parsed(parse_size), default=256 * MIB, metavar="BYTES")
    parser.add_argument("--page", type=parsed(parse_size), default=16 * KIB, metavar="BYTES")
    parser.add_argument("--runs", type=within(1, 1000, int), default=5, metavar="N")
    parser.add_argument("--plain", action="store_true", help="kvwire in the clear, too")
    options = parser.parse_args()
    found = measure(options)
    medians = {name: statistics.median(seen.GBps) for name, seen in found.items()}
    mode = "plain" if options.plain else f"sealed by {machine.cipher()}"
    print(f"{show_size(options.size)} in pages of {show_size(options.page)}, scattered; kvwire: {mode}")
    for name, seen in found.items():
        cpu, share = statistics.median(seen.cpu_s_per_GB), medians[name] / medians["kvwire"]
        print(f"{name:>14}  {medians[name]:.2f} GB/s, {share:.2f} of kvwire's, {cpu:.2f} CPU s/GB")
    wrong = sum(seen.wrong for seen in found.values())
    result = {"page_bytes": options.page, "bytes": options.size, "mode": mode, "verified": not wrong}
    result |= {f"ratio_vs_{name}": medians["kvwire"] / of for name, of in medians.items() if name != "kvwire"}
    print(json.dumps(result | {"GBps": {name: seen.GBps for name, seen in found.items()}}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
