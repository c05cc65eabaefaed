"""Arguments of the wrong kind and calls at the wrong time: a typed error, and the link is as good as before."""

import asyncio
import math
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import Queue
from typing import Any

import numpy as np
import pytest

from kvwire import (
    Closed,
    ConfigError,
    DeadlineExceeded,
    Incoming,
    LinkLost,
    Outgoing,
    PlacementError,
    ReadyError,
    SpecError,
)
from tests.net import kit
from tests.net.kit import Caches, granted, joined, manifest, offered


async def test_a_placement_that_is_none() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        wrong: Any
        for wrong in (None, [], {"full": None}, {1: None}, {"full": target.at()["full"].pages}):
            with pytest.raises(SpecError, match=r"expected (a dict|slots)"):
                await incoming.grant(wrong)
        size: Any = "64K"
        with pytest.raises(PlacementError, match="'64K'"):
            await incoming.grant(target.at(), cell_bytes=size)
        await incoming.grant(target.at())
        await (await task).abort()
        await kit.still_works(pair)


async def test_an_offer_that_is_none() -> None:
    offer = manifest()
    source = Caches(offer, filled=True)
    nothing: Any = None
    async with joined() as pair:
        for arguments in ((nothing, source.at()), (offer, nothing), (offer, {"full": source.at()["full"].pages})):
            with pytest.raises(SpecError, match="expected"):
                await pair.link.offer(*arguments)
        await kit.still_works(pair)


async def test_an_offer_that_the_peer_would_not_understand() -> None:
    """What is almost a manifest is none here: a peer that is sent it ends the link, and all transfers with it."""
    offer = manifest()
    anything: Any = replace
    group = offer.groups[0]
    makes: list[Callable[[], Any]] = [
        lambda: anything(offer, attachment=1),
        lambda: anything(offer, attachment=np.True_),
        lambda: anything(group.spec, window=False),
        lambda: anything(group, blocks=range(0, 4, 2), hashes=(b"h" * 16,) * 2),
    ]
    async with joined() as pair:
        for make in makes:
            with pytest.raises(SpecError, match=r"expected|only a sliding-window"):
                await pair.link.offer(make(), Caches(offer).at())
        await kit.still_works(pair)


async def test_reasons_that_are_no_text() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    nothing: Any = None
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        await incoming.abort(nothing)
        for half in (out, incoming):
            async with asyncio.timeout(kit.PATIENCE_S):
                with pytest.raises(Exception, match="abort"):
                    await half.committed()
        task, refused = await offered(pair.link, pair.server, offer, source)
        await refused.refuse(nothing)
        async with asyncio.timeout(kit.PATIENCE_S):
            with pytest.raises(Exception, match="refused"):
                await task
        with pytest.raises(Closed):
            await refused.grant(target.at())
        await kit.still_works(pair)


async def test_times_and_numbers() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        out, _ = await granted(pair.link, pair.server, offer, source, target)
        wrong: Any
        for wrong in (float("nan"), -1, None, "1"):
            with pytest.raises(SpecError, match="timeout_s"):
                await asyncio.to_thread(out.wait_committed, wrong)
        with pytest.raises(DeadlineExceeded):
            await asyncio.to_thread(out.wait_committed, 0)
        for wrong in (range(2**64), range(2**65, 2**65 + 1), range(-1, 1)):
            with pytest.raises(ReadyError):
                out.ready("full", 0, wrong)
        for wrong in (True, 0, "7"):
            with pytest.raises(ConfigError, match="port"):
                await pair.client.connect("127.0.0.1", wrong)
        await out.abort()
        await kit.still_works(pair)


WEEK_S = 7 * 86400


async def test_deadlines_of_an_offer() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        wrong: Any
        for wrong in (0, -1, math.nan, math.inf, WEEK_S + 1, "1", True):
            # A deadline of 0 or less has passed: tests/net/test_egress.py.
            for name in ("timeout_s",) if wrong in (0, -1) else ("timeout_s", "deadline_s"):
                with pytest.raises(SpecError, match=f"{name} is .* at most a week"):
                    await pair.link.offer(offer, source.at(), **{name: wrong})
        out, incoming = await granted(
            pair.link, pair.server, offer, source, target, timeout_s=WEEK_S, deadline_s=float(WEEK_S)
        )
        kit.ready_all(out)
        await incoming.committed()
        for wrong in (-1, math.nan, "1", True):
            with pytest.raises(SpecError, match="timeout_s"):
                await pair.link.outcome_of(out, timeout_s=wrong)
        with pytest.raises(DeadlineExceeded, match="did not say"):
            await pair.link.outcome_of(out, timeout_s=0)
        await kit.still_works(pair)


async def test_closes_at_the_same_time() -> None:
    async with joined() as pair:
        back = pair.back
        out, _ = await granted(pair.link, pair.server, manifest(), Caches(manifest()), Caches(manifest()))
        out.ready("full", 0)
        ends = (pair.link, pair.link, back, back, pair.client, pair.server, pair.client, pair.server)
        await asyncio.gather(*(end.close() for end in ends))
        with pytest.raises(Closed):
            await out.committed()


async def test_threads_that_go_on_when_the_node_is_closed() -> None:
    """An engine's threads end when they end: until then what they call says that it is over."""
    offer = manifest("threads", kit.FIVE, attachment=True)
    ended: list[str] = []
    begun = threading.Event()

    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))

        def produce() -> None:
            for block in range(13):
                try:
                    out.ready("full", 0, [block])
                    begun.set()
                    time.sleep(0.005)
                except Closed as error:
                    ended.append(str(error))

        thread = threading.Thread(target=produce)
        thread.start()
        await asyncio.to_thread(begun.wait, kit.PATIENCE_S)
    await asyncio.to_thread(thread.join)
    assert ended
    with pytest.raises(Closed):
        await asyncio.to_thread(out.ready, "full", 1)
    with pytest.raises(Closed):
        await asyncio.to_thread(out.attach, 1)
    for half in (out, incoming):
        with pytest.raises((Closed, LinkLost)):
            await asyncio.to_thread(half.wait_committed, 1)
        await asyncio.to_thread(half.abort_nowait, "too late")


def test_threads_that_go_on_when_the_loop_is_closed() -> None:
    offer = manifest(attachment=True)

    async def begin() -> tuple[Outgoing, Incoming]:
        async with joined() as pair:
            return await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))

    out, incoming = asyncio.run(begin())

    def go_on() -> None:
        with pytest.raises(Closed):
            out.ready("full", 1)
        with pytest.raises(Closed):
            out.attach(1)
        for half in (out, incoming):
            with pytest.raises((Closed, LinkLost)):
                half.wait_committed(1)
            half.abort_nowait("too late")

    with ThreadPoolExecutor() as threads:
        threads.submit(go_on).result()
    go_on()  # also in the thread that had the loop


def test_signals_are_heard_in_blocking_waits() -> None:
    """Ctrl-C must not wait for a peer: an engine may wait on its main thread, with the loop on another."""
    offer, halves, seen = manifest(), Queue[tuple[Outgoing, Incoming]](), Queue[bool]()
    heard, over = threading.Event(), threading.Event()
    main = threading.get_ident()

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        heard.set()
        raise Interrupted

    async def serve() -> None:
        async with joined() as pair:
            halves.put(await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer)))
            await asyncio.to_thread(over.wait, 4 * kit.PATIENCE_S)

    def signal_and_see() -> None:
        signal.pthread_kill(main, signal.SIGUSR1)
        seen.put(heard.wait(kit.PATIENCE_S))
        if not heard.is_set():
            incoming.abort_nowait("nobody heard")

    def interrupted(threads: ThreadPoolExecutor, wait: Callable[[], object]) -> None:
        threads.submit(signal_and_see)
        wait()

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with ThreadPoolExecutor() as threads:
            serving = threads.submit(asyncio.run, serve())
            out, incoming = halves.get(timeout=kit.PATIENCE_S)
            try:
                for wait in (
                    lambda: incoming.wait_for_layer("full", 0, math.inf),
                    lambda: incoming.wait_committed(math.inf),
                    lambda: out.wait_committed(10**400),
                ):
                    heard.clear()
                    with pytest.raises(Interrupted):
                        interrupted(threads, wait)
                    assert seen.get(timeout=2 * kit.PATIENCE_S)
            finally:
                over.set()
            serving.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
