"""Arguments of the wrong kind: a typed error at once, and the link is as good as before."""

import asyncio
from typing import Any

import pytest

from kvwire import Closed, ConfigError, DeadlineExceeded, PlacementError, ReadyError, SpecError
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
