"""A task that is cancelled in each of its awaits in turn: nothing of it is left, and the link is as good as before."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from kvwire import Closed, Config, Incoming, KvwireError, Link, Node, OfferRefused, PeerAborted
from tests.net import kit
from tests.net.engines import open_things
from tests.net.kit import Caches, Pair, granted, joined, offered, same
from tests.net.proxy import proxied

pytestmark = pytest.mark.usefixtures("nothing_left")

T = TypeVar("T")
EACH = 40  # turns of the loop up to which a task is cancelled after each of them; later, after some


class Cut:
    """Runs a coroutine, and cancels it after some turns of the loop, unless it is over by then; perhaps twice."""

    def __init__(self, turns: int, times: int) -> None:
        self.turns = turns
        self.times = times
        self.cancelled = False

    async def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T | None:
        task = asyncio.create_task(coroutine)
        for _ in range(self.turns):
            if task.done():
                break
            await asyncio.sleep(0)
        self.cancelled = not task.done()
        for _ in range(self.times):
            task.cancel()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            return await task
        assert self.cancelled
        return None


def cuts(times: int = 1) -> Iterator[Cut]:
    """One after the other, later and later, until one comes too late."""
    turns = 0
    while True:
        cut = Cut(turns, times)
        yield cut
        if not cut.cancelled:
            return
        turns += max(1, (turns - EACH) // 4)


async def test_no_cut_is_left_out() -> None:
    """What the others rest on: a cancelled task was in each of its awaits once."""
    seen: list[int] = []

    async def three() -> None:
        for number in range(3):
            seen.append(number)
            await asyncio.sleep(0)

    for cut in cuts():
        await cut(three())
    assert seen == [0, 0, 1, 0, 1, 2, 0, 1, 2]


# --- transfers ------------------------------------------------------------------------------------------------

OFFER = kit.manifest("r", kit.FIVE)
Attempt = Callable[[Pair, Cut], Awaitable[None]]


async def connecting(pair: Pair, cut: Cut) -> None:
    link = await cut(pair.client.connect("127.0.0.1", pair.server.port))
    if link is not None:
        await link.close()
    assert pair.client.links == (pair.link,)
    await kit.eventually(lambda: len(pair.server.links) == 1, lambda: pair.server.links)


async def offering(pair: Pair, cut: Cut) -> None:
    source, target = Caches(OFFER, filled=True), Caches(OFFER)

    async def grant() -> None:
        incoming = await pair.server.accept()
        with contextlib.suppress(Closed):  # withdrawn by then
            await incoming.grant(target.at())

    granting = asyncio.create_task(grant())
    out = await cut(pair.link.offer(OFFER, source.at()))
    if out is not None:
        await out.abort()
    await pair.settled()
    granting.cancel()
    await asyncio.wait((granting,))
    source.check_free()
    target.check_free()


async def accepting(pair: Pair, cut: Cut) -> None:
    task = asyncio.create_task(pair.link.offer(OFFER, Caches(OFFER).at()))
    incoming = await cut(pair.server.accept()) or await pair.server.accept()
    await incoming.refuse()
    with pytest.raises(OfferRefused):
        await task


async def granting(pair: Pair, cut: Cut) -> None:
    target = Caches(OFFER)
    task, incoming = await offered(pair.link, pair.server, OFFER, Caches(OFFER))
    await cut(incoming.grant(target.at()))
    await incoming.abort()
    with contextlib.suppress(PeerAborted):
        await (await task).abort()
    target.check_free()


async def refusing(pair: Pair, cut: Cut) -> None:
    task, incoming = await offered(pair.link, pair.server, OFFER, Caches(OFFER))
    await cut(incoming.refuse())
    await incoming.abort()
    with pytest.raises((OfferRefused, PeerAborted)):
        await task


async def aborting(pair: Pair, cut: Cut) -> None:
    out, incoming = await granted(pair.link, pair.server, OFFER, Caches(OFFER), Caches(OFFER))
    out.ready("full", 0)
    await cut(out.abort())
    await cut(incoming.abort())
    await out.abort()
    for half in (out, incoming):
        with pytest.raises((Closed, PeerAborted)):
            await half.committed()


async def asking(pair: Pair, cut: Cut) -> None:
    out, _ = await granted(pair.link, pair.server, OFFER, Caches(OFFER), Caches(OFFER))
    kit.ready_all(out)
    await out.committed()
    another = asyncio.create_task(pair.link.outcome_of(out))
    assert await cut(pair.link.outcome_of(out)) in (None, "committed")
    assert await another == "committed"
    assert not len(pair.link._questions)


async def layers(incoming: Incoming) -> int:
    return len([layer async for layer in incoming.layers()])


WAITS: dict[str, Callable[[Any, Incoming], Coroutine[Any, Any, object]]] = {
    "the sender's commit": lambda out, _: out.committed(),
    "the receiver's commit": lambda _, incoming: incoming.committed(),
    "a layer": lambda _, incoming: incoming.wait_layer("conv", 7),
    "layers": lambda _, incoming: layers(incoming),
}


def waiting(wait: Callable[[Any, Incoming], Coroutine[Any, Any, object]]) -> Attempt:
    async def attempt(pair: Pair, cut: Cut) -> None:
        source, target = Caches(OFFER, filled=True), Caches(OFFER)
        out, incoming = await granted(pair.link, pair.server, OFFER, source, target)
        kit.ready_all(out)
        await cut(wait(out, incoming))
        await wait(out, incoming)
        await out.committed()
        await incoming.committed()
        same(source, target)

    return attempt


ATTEMPTS: dict[str, Attempt] = {
    "connect": connecting,
    "offer": offering,
    "accept": accepting,
    "grant": granting,
    "refuse": refusing,
    "abort": aborting,
    "outcome_of": asking,
} | {name: waiting(wait) for name, wait in WAITS.items()}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
async def test_a_cancelled_task_leaves_nothing(attempt: Attempt, times: int) -> None:
    async with joined() as pair:
        await kit.still_works(pair)
        tasks, things = len(asyncio.all_tasks()), open_things()
        for cut in cuts(times):
            await attempt(pair, cut)
            await kit.still_works(pair)
            await kit.eventually(lambda: len(asyncio.all_tasks()) <= tasks, asyncio.all_tasks)
            await kit.eventually(lambda: open_things() <= things, open_things)


# --- the ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("end", ["link", "back", "client", "server"])
async def test_a_cancelled_close_closes(end: str, times: int) -> None:
    for cut in cuts(times):
        async with joined() as pair:
            back = pair.back
            ends: dict[str, Link | Node] = {
                "link": pair.link,
                "back": back,
                "client": pair.client,
                "server": pair.server,
            }
            source, target = Caches(OFFER, filled=True), Caches(OFFER)
            out, incoming = await granted(pair.link, pair.server, OFFER, source, target)
            kit.ready_all(out)
            impatient = asyncio.create_task(pair.link.wait_closed())
            await asyncio.sleep(0)
            impatient.cancel()
            await cut(ends[end].close())
            await ends[end].close()
            for half in (out, incoming):
                with contextlib.suppress(KvwireError):
                    await half.committed()
            source.check_free()
            target.check_free()
            for each in (pair.link, back):
                await each.wait_closed()
            if end in ("link", "back"):
                async with await pair.client.connect("127.0.0.1", pair.server.port) as another:
                    await kit.move(another, pair.server, "over another link")


async def test_a_link_that_is_closed_while_it_is_dialled_anew() -> None:
    """However far the new connection has come."""
    config = Config(lanes=2, resume_timeout_s=1.0)
    async with await kit.serve("127.0.0.1", 0, config) as server, await kit.start(config) as client:
        with proxied(server.port) as proxy:
            resumed = 0
            for turns in (*range(40), *range(40, 400, 20), None):
                link = await client.connect("127.0.0.1", proxy.port)
                proxy.reset()
                async with asyncio.timeout(kit.PATIENCE_S):
                    while not link.suspended:
                        await asyncio.sleep(0)  # every turn: it is not suspended for long
                if turns is None:  # on a slow machine no number of turns is enough
                    await kit.eventually(lambda link=link: not link.suspended, lambda: server.links)  # type: ignore[misc]
                for _ in range(turns or 0):
                    await asyncio.sleep(0)
                resumed += not link.suspended
                await link.close()
                assert not client.links
            assert 0 < resumed < 59
            await kit.eventually(lambda: not server.links, lambda: server.links)
