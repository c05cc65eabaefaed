"""What a network can do to a connection, on each connection, each way, sealed and plain: a transfer that it meets is
committed and byte-exact, or ends by name and in time; and nothing of it is left.

All of it with `KVWIRE_STORM_S`, as in `make faults`; the suite has every fifth.
"""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from kvwire import (
    AuthenticationFailed,
    Closed,
    CommitUnknown,
    Config,
    DeadlineExceeded,
    DType,
    GroupKind,
    GroupSpec,
    Incoming,
    IntegrityError,
    KvwireError,
    LinkLost,
    Outgoing,
    PeerAborted,
    ProtocolError,
    Receipt,
)
from tests.net import kit
from tests.net.kit import POISON, Caches
from tests.net.proxy import Kind, Proxy, Way, proxied
from tests.net.sealed import Log, logged

pytestmark = pytest.mark.usefixtures("nothing_left")

LANES = 3
DEADLINE_S = 1.5
"""Of a transfer that cannot be committed."""
SPECS = (*kit.FIVE, GroupSpec.state("big", GroupKind.RECURRENT, range(4), DType.UINT8, (256 * 1024,)))
THROTTLE_BPS, SLICE_BYTES = 500e3, 211
EVER = float("inf")

Name = Literal["reset", "stall", "throttle", "slice", "corrupt", "black hole", "half-close"]
Where = Literal["one lane", "all lanes", "control", "everything"]
End = Literal["committed", "late", "link ends", "any"]

WHERE: tuple[Where, ...] = ("one lane", "all lanes", "control", "everything")
ENDS: dict[Name, tuple[End, End, End, End]] = {
    # Lanes are replaced and links resumed, and what had landed is not sent again.
    "reset": ("committed",) * 4,
    "half-close": ("committed",) * 4,
    # Slow is not lost.
    "throttle": ("committed",) * 4,
    "slice": ("committed",) * 4,
    # A lane that makes no progress is hedged and replaced; a transfer that is granted needs no control connection.
    "stall": ("committed", "late", "committed", "late"),
    "black hole": ("committed", "late", "committed", "late"),
    # Three lanes in a minute, and the path is not to be trusted. "any": see `expected`.
    "corrupt": ("committed", "link ends", "any", "any"),
}
TYPED = (IntegrityError, LinkLost, PeerAborted, ProtocolError, AuthenticationFailed, DeadlineExceeded)


@dataclass(frozen=True)
class Case:
    name: Name
    where: Where
    way: Way
    plain: bool

    def __str__(self) -> str:
        return f"{self.name}, {self.where}, {self.way}, {'plain' if self.plain else 'sealed'}"

    @property
    def end(self) -> End:
        """How the transfer has to end. A bit of a plain control connection nobody checks: it may mean anything."""
        if self.name == "corrupt" and self.where == "control" and not self.plain:
            return "committed"
        return ENDS[self.name][WHERE.index(self.where)]

    def strike(self, proxy: Proxy) -> None:
        kinds: dict[Where, Kind | None] = {"control": "control", "everything": None}
        kind, one = kinds.get(self.where, "lane"), self.where == "one lane"
        count = 1 if one else None
        match self.name:
            case "reset":
                assert proxy.reset(kind, count, self.way)
            case "half-close":
                assert proxy.half_close(self.way, kind, count)
            case "corrupt":
                once = self.where in ("one lane", "control")
                proxy.fault("flip", kind, self.way, one=one, amount=1 if once else EVER)
            case "stall":
                proxy.fault("stall", kind, self.way, one=one)
            case "black hole":
                proxy.fault("swallow", kind, self.way, one=one)
            case "throttle":
                proxy.fault("throttle", kind, self.way, one=one, amount=THROTTLE_BPS)
            case "slice":
                proxy.fault("slice", kind, self.way, one=one, amount=SLICE_BYTES)


WAYS: tuple[Way, Way] = ("up", "down")
CASES = [Case(*case) for case in itertools.product(ENDS, WHERE, WAYS, (False, True))]


@dataclass
class Scene(kit.Pair):
    proxy: Proxy
    logs: tuple[Log, Log]
    """The server's and the client's."""


@asynccontextmanager
async def scene(plain: bool, path: Path) -> AsyncIterator[Scene]:
    config = Config(lanes=LANES, plain=plain, resume_timeout_s=5.0)
    with logged(path / "server") as there, logged(path / "client") as here:
        async with (
            await kit.serve("127.0.0.1", 0, config, audit=there.audit) as server,
            await kit.start(config, audit=here.audit) as client,
        ):
            with proxied(server.port) as proxy:
                link = await client.connect("127.0.0.1", proxy.port)
                yield Scene(server, client, link, proxy, (there, here))


async def ended(transfer: Outgoing | Incoming) -> Receipt | KvwireError:
    try:
        return await asyncio.wait_for(transfer.committed(), kit.PATIENCE_S)
    except KvwireError as error:
        return error


def nothing_wrong(source: Caches, target: Caches) -> None:
    """Whatever has landed is what was sent, and nothing else was written."""
    assert target.untouched(target.slot_of)
    for name, layer in source.manifest.segments():
        sent, landed = source.rows(name, layer), target.rows(name, layer)
        assert np.all((landed == sent) | (landed == POISON)), (name, layer)


@pytest.mark.parametrize("case", CASES if "KVWIRE_STORM_S" in os.environ else CASES[::5], ids=str)
async def test_a_fault(case: Case, tmp_path: Path) -> None:
    async with scene(case.plain, tmp_path) as there:
        offer = kit.manifest("met", SPECS)
        source, target = Caches(offer, filled=True), Caches(offer)
        deadline_s = DEADLINE_S if case.end == "late" else kit.PATIENCE_S
        out, incoming = await kit.granted(there.link, there.server, offer, source, target, deadline_s=deadline_s)
        first = offer.segments()[0]
        out.ready(*first)
        await incoming.wait_layer(*first)
        begun = time.monotonic()
        await asyncio.to_thread(case.strike, there.proxy)
        with contextlib.suppress(Closed):  # the link has ended already
            for name, layer in offer.segments()[1:]:
                out.ready(name, layer)
        sent, received = await asyncio.gather(ended(out), ended(incoming))
        print(f"{case}: {sent!r}, {received!r} after {time.monotonic() - begun:.1f} s")
        check_end(case, sent, received)
        if isinstance(received, Receipt):
            kit.same(source, target)
        else:
            assert any(incoming.failed_blocks().values())
            nothing_wrong(source, target)
        source.check_free()
        target.check_free()
        await check_after(case, there)


ON_CONTROL = [case for case in CASES if case.where == "control"]


@pytest.mark.parametrize("case", ON_CONTROL if "KVWIRE_STORM_S" in os.environ else ON_CONTROL[1::5], ids=str)
async def test_a_fault_before_an_offer(case: Case, tmp_path: Path) -> None:
    """What offers and grants need is the control connection: where that says nothing, the offer ends in time."""
    silent = case.name in ("stall", "black hole")
    async with scene(case.plain, tmp_path) as there:
        offer = kit.manifest("met", kit.FIVE)
        source, target = Caches(offer, filled=True), Caches(offer)
        await asyncio.to_thread(case.strike, there.proxy)
        begun, patience_s = time.monotonic(), DEADLINE_S if silent or case.end == "any" else kit.PATIENCE_S
        offering = asyncio.create_task(
            there.link.offer(offer, source.at(), timeout_s=patience_s, deadline_s=patience_s)
        )
        accepting = asyncio.create_task(there.server.accept())
        await asyncio.wait((offering, accepting), return_when=asyncio.FIRST_COMPLETED)
        incoming = await grant(accepting, target)
        try:
            out = await offering
        except KvwireError as error:
            sent: Receipt | KvwireError = error
        else:
            with contextlib.suppress(Closed):
                kit.ready_all(out)
            sent = await ended(out)
        received = await ended(incoming) if incoming is not None else sent
        print(f"{case}: {sent!r}, {received!r} after {time.monotonic() - begun:.1f} s")
        if silent:
            assert isinstance(sent, DeadlineExceeded)
            assert isinstance(received, DeadlineExceeded | PeerAborted)
        else:
            check_end(case, sent, received)
        if isinstance(received, Receipt):
            kit.same(source, target)
        else:
            nothing_wrong(source, target)
        source.check_free()
        target.check_free()
        if case.name == "stall" and incoming is None:
            there.proxy.heal()  # the offer comes after all, and that it was given up
            await kit.eventually(lambda: there.logs[0].events("abort"), "the late offer to end")
        await check_after(case, there)


async def grant(accepting: "asyncio.Task[Incoming]", target: Caches) -> Incoming | None:
    """Take what was offered, if it was."""
    if not accepting.done():
        accepting.cancel()
        await asyncio.wait((accepting,))
        return None
    incoming = accepting.result()
    await incoming.grant(target.at())
    return incoming


def check_end(case: Case, sent: Receipt | KvwireError, received: Receipt | KvwireError) -> None:
    whole = isinstance(sent, Receipt) and isinstance(received, Receipt)
    if isinstance(sent, Receipt):
        assert whole, "no receipt without a commit"
    if case.end == "committed":
        assert whole
    elif case.end == "late":
        assert isinstance(sent, DeadlineExceeded)
        assert isinstance(received, Receipt | DeadlineExceeded | PeerAborted)
    elif case.end == "link ends":
        assert isinstance(sent, IntegrityError | LinkLost | ProtocolError)
        assert isinstance(received, Receipt | IntegrityError | LinkLost | ProtocolError)
    else:
        assert whole or isinstance(sent, TYPED)
        assert isinstance(received, (Receipt, *TYPED))


async def check_after(case: Case, there: Scene) -> None:
    """The network is well again: the link goes on, or another one does; the log has what it promises."""
    there.proxy.heal()
    if case.end == "link ends":
        await kit.eventually(lambda: there.link.closed and not there.server.links, lambda: there.link)
        tried = there.logs[WAYS.index(case.way)]
        event = "lane_fault" if case.plain else "tag_failure"
        assert len(tried.events(event)) == 3
        assert [down["error"] for down in tried.events("link_down")] == ["IntegrityError"]
    elif case.name == "corrupt" and case.where == "one lane":
        event = "lane_fault" if case.plain else "tag_failure"
        assert sum(len(log.events(event)) for log in there.logs) <= 1
    if case.end == "any":
        await asyncio.wait((asyncio.ensure_future(there.link.wait_closed()),), timeout=0.1)
    if there.link.closed:
        await kit.eventually(lambda: not there.server.links, "the other end to be gone, too")
        there.link = await there.client.connect("127.0.0.1", there.proxy.port)
    await kit.eventually(lambda: not there.link.suspended and there.link.lanes == LANES, lambda: there.link)
    await kit.eventually(lambda: there.back.lanes == LANES, lambda: there.back)
    await kit.still_works(there)


def test_every_fault_that_the_suite_leaves_out_is_in_the_long_form() -> None:
    """A fifth of the table still has each fault, place, way and mode."""
    short = CASES[::5]
    for values in (ENDS, WHERE, WAYS, (False, True)):
        assert all(any(value in vars(case).values() for case in short) for value in values)


async def test_a_receipt_that_is_lost_with_its_link(tmp_path: Path) -> None:
    """CommitUnknown names the one case in which the sender cannot know."""
    async with scene(False, tmp_path) as there:
        out, incoming, source, target = await kit.half_sent(there, kit.manifest("r", kit.FIVE))
        there.proxy.fault("swallow", "lane", "down")
        kit.ready_rest(out)
        assert isinstance(await ended(incoming), Receipt)
        there.proxy.cut()
        assert isinstance(await ended(out), CommitUnknown)
        kit.same(source, target)
        source.check_free()
        target.check_free()
