"""A sender or a receiver in a process of its own that kills itself, with SIGKILL, at a point that is named.

`python -m tests.net.killed_process receive POINT [rest]` serves, prints its port, and takes every offer, one after the
other, or of each what a receiver wants that has the first half of the prompt already;
`... send POINT PORT [DEADLINE_S]` dials, offers, and makes everything ready that is wanted, the last layer once a line
comes in. POINT is one of `POINTS`, or "never". Either says "granted", and in the end "committed" with the digest of
what it has, or with how much came or was sent, or "ended" with the type of the error. `AUDIT` may name an audit log.
Nothing in kvwire knows of these points: they are methods that are wrapped here, and progress that is looked at.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from kvwire import AuditLog, Closed, Config, Incoming, KvwireError, Outgoing, wire
from kvwire.control import Stream
from kvwire.link import Link
from tests.net import kit
from tests.net.kit import Caches

AUDIT = "KVWIRE_TEST_AUDIT"
"""Environment variable."""
RESUME_S = 2.0
CONFIG = Config(lanes=2, resume_timeout_s=RESUME_S)
EVENTS: dict[str, type[wire.Event]] = {
    "hello": wire.HelloDone,
    "an offer came": wire.Offered,
    "a grant came": wire.Granted,
    "the connection is lost": wire.Suspended,
    "resumed": wire.Resumed,
    "asked for a ledger": wire.LedgerWanted,
    "a ledger came": wire.LedgerCame,
}
"""The link has just dealt with it."""
SAID = {"offered": "offer", "granted": "grant", "said what has landed": "ledger"}
"""The session has been told to say it, and it has just been written."""
PROGRESS: dict[str, Callable[[Outgoing | Incoming], bool]] = {
    "a cell has landed": lambda it: it.progress[0] > 0,
    "half has landed": lambda it: 2 * it.progress[0] >= it.progress[1],
    "all is sent": lambda it: isinstance(it, Outgoing) and it._handle.last_claim_ns > 0 and not left(it),
    "committed": lambda it: it.state == "committed",
}
"""As the transfer's half in this process sees it."""
POINTS = (*EVENTS, *SAID, *PROGRESS)


def left(out: Outgoing) -> int:
    """Bytes that no lane has taken, or whose lane still has some of them."""
    link = out.link.engine_link
    return 1 - int(out._handle.all_ready) + sum(link.link_stats()["queued_bytes"])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: type, name: str, then: Callable[..., None]) -> None:
    """`then` is called with what the method was called with, once that has returned."""
    method = getattr(owner, name)

    def wrapped(*arguments: Any, **more: Any) -> Any:
        result = method(*arguments, **more)
        then(*arguments)
        return result

    setattr(owner, name, wrapped)


def arm(point: str) -> None:
    """The points that are calls."""
    if point in EVENTS:

        def happened(_: Link, event: wire.Event) -> None:
            if isinstance(event, EVENTS[point]):
                die()

        after(Link, "_on_event", happened)
    elif point in SAID:
        told: list[object] = []
        after(wire.Session, SAID[point], lambda *_: told.append(None))
        write = Stream.write

        async def then_die(self: Stream, data: bytes) -> None:
            await write(self, data)
            if told:
                die()

        Stream.write = then_die  # type: ignore[method-assign]


def watch(point: str, transfer: Outgoing | Incoming) -> None:
    """The points that are progress: looked at by a thread, as the loop may be busy."""
    if point not in PROGRESS:
        return

    def look() -> None:
        while not PROGRESS[point](transfer):
            time.sleep(0.0002)
        die()

    threading.Thread(target=look, daemon=True).start()


def rest(target: Caches) -> dict[str, list[int]]:
    """Of groups that may be had in part, the second half."""
    found = {name: list(blocks) for name, blocks in target.slot_of.items()}
    return found | {name: found[name][len(found[name]) // 2 :] for name in ("full", "mla")}


async def receive(point: str, *much: str) -> None:
    audit = AuditLog(os.environ[AUDIT]) if AUDIT in os.environ else None
    async with await kit.serve("127.0.0.1", 0, CONFIG, audit=audit) as node:
        print(node.port, flush=True)
        while True:
            incoming = await node.accept()
            target = Caches(incoming.manifest)
            wanted = rest(target) if much else None
            await incoming.grant(target.at(wanted))
            watch(point, incoming)
            print("granted", flush=True)
            try:
                receipt = await incoming.committed()
            except KvwireError as error:
                print("ended", type(error).__name__, flush=True)
            else:
                if wanted is not None:
                    kit.same(offer()[1], target, wanted)
                print("committed", kit.digest(target) if wanted is None else receipt.bytes, flush=True)
            target.check_free()


def offer() -> tuple[Any, Caches]:
    """What every life of a sender sends."""
    found = kit.manifest("from a process", kit.FIVE)
    return found, Caches(found, filled=True)


async def send(point: str, port: int, deadline_s: float) -> None:
    async with await kit.start(CONFIG) as node:
        link = await node.connect("127.0.0.1", port)
        manifest, source = offer()
        out = await link.offer(manifest, source.at(), deadline_s=deadline_s)
        watch(point, out)
        print("granted", flush=True)
        *most, last = [(name, layer) for name, layer in manifest.segments() if out.granted[name]]
        for name, layer in most if point in ("never", "all is sent") else most[: len(most) // 2 + 1]:
            out.ready(name, layer)
        if point != "all is sent":
            await asyncio.to_thread(sys.stdin.readline)
        with contextlib.suppress(Closed):  # over by now, as `committed` says
            out.ready(*last)
        try:
            receipt = await out.committed()
        except KvwireError as error:
            print("ended", type(error).__name__, flush=True)
        else:
            print("committed", receipt.bytes, flush=True)
        source.check_free()
        await link.wait_closed()


if __name__ == "__main__":
    arm(sys.argv[2])
    if sys.argv[1] == "receive":
        asyncio.run(receive(*sys.argv[2:]))
    else:
        asyncio.run(send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]) if sys.argv[4:] else 60.0))
