"""A receiver that knows what it expects takes nothing else: other prompts, revisions, adapters, layouts."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from kvwire import (
    Config,
    ContentMismatch,
    Incoming,
    ModelMismatch,
    ModelTag,
    OfferRefused,
    Outgoing,
    SpecError,
    block_hashes,
    layout_digest,
)
from tests.net import kit
from tests.net.kit import FULL, RECURRENT, WINDOW, Caches, Pair

TOKENS = list(range(200))
SPECS = (FULL, WINDOW, RECURRENT)
REVISION = b"test-model r1"


def hashes_of(tokens: Sequence[int], seed: bytes = REVISION) -> dict[str, tuple[bytes, ...]]:
    """By group, of every block of the prompt."""
    blocks = block_hashes(tokens, 16, seed=seed)
    return {"full": blocks, "window": blocks, "recurrent": blocks[-1:]}


async def offered(
    pair: Pair, hashes: dict[str, tuple[bytes, ...]]
) -> tuple[Caches, Caches, tuple[asyncio.Task[Outgoing], Incoming]]:
    known = {
        spec.name: hashes[spec.name][blocks.start : blocks.stop]
        for spec in SPECS
        if (blocks := spec.blocks_for(len(TOKENS))) and spec.name in hashes
    }
    offer = kit.manifest("r", SPECS, hashes=known)
    source, target = Caches(offer, filled=True), Caches(offer)
    return source, target, await kit.offered(pair.link, pair.server, offer, source)


async def test_what_is_expected_is_taken() -> None:
    async with kit.joined() as pair:
        source, target, (task, incoming) = await offered(pair, hashes_of(TOKENS))
        await incoming.grant(target.at(), expect=hashes_of(TOKENS))
        out = await task
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        kit.same(source, target)


@pytest.mark.parametrize(
    ("tokens", "seed", "words"),
    [
        (
            [*TOKENS[:50], 7, *TOKENS[51:]],
            REVISION,
            "other content than expected for block 3",
        ),
        (TOKENS, b"test-model r2", "other content than expected for block 0"),
        ([*TOKENS[:-1], 7], REVISION, "other content than expected for block 12"),
    ],
)
async def test_what_is_not_expected_is_refused(tokens: list[int], seed: bytes, words: str) -> None:
    async with kit.joined() as pair:
        source, target, (task, incoming) = await offered(pair, hashes_of(tokens, seed))
        with pytest.raises(ContentMismatch, match=words):
            await incoming.grant(target.at(), expect=hashes_of(TOKENS))
        with pytest.raises(OfferRefused, match="other content"):
            await task
        assert target.untouched()
        target.check_free()
        source.check_free()
        await kit.still_works(pair)


async def test_only_blocks_that_are_wanted_count() -> None:
    """A receiver that holds the first blocks already asks for the others, which hash the whole prefix."""
    async with kit.joined() as pair:
        source, target, (task, incoming) = await offered(pair, hashes_of([*TOKENS[:-1], 7]))
        some = {"full": range(4, 12)}
        await incoming.grant(target.at(some), expect=hashes_of(TOKENS))
        out = await task
        kit.ready_all(out)
        await out.committed()
        kit.same(source, target, some)


async def test_an_offer_that_names_nothing_is_not_what_was_expected() -> None:
    async with kit.joined() as pair:
        _, target, (task, incoming) = await offered(pair, {})
        with pytest.raises(ContentMismatch, match="names no content for block 0"):
            await incoming.grant(target.at(), expect=hashes_of(TOKENS))
        with pytest.raises(OfferRefused):
            await task


async def test_expectations_that_are_none() -> None:
    """The caller's mistake: nothing is refused, and the offer can still be granted."""
    async with kit.joined() as pair:
        _, target, (task, incoming) = await offered(pair, hashes_of(TOKENS))
        wrong: tuple[Any, ...] = ({}, {"full": ()}, {"full": b"x" * 100}, {"full": hashes_of(TOKENS)["full"][:5]})
        for expect in wrong:
            with pytest.raises(SpecError, match="no hash of block 12 of group full"):
                await incoming.grant(target.at(), expect=expect)
            target.check_free()
        others: tuple[Any, ...] = (hashes_of(TOKENS)["full"], "full", {"full": 13}, {"full": iter([b"x" * 16])})
        for expect in others:
            with pytest.raises(SpecError, match="expect"):
                await incoming.grant(target.at(), expect=expect)
            target.check_free()
        await incoming.grant(target.at(), expect=hashes_of(TOKENS))
        await task


@pytest.mark.parametrize(
    "tag",
    [
        ModelTag("test-model", "r2", layout_digest(SPECS)),
        ModelTag("test-model", "r1", layout_digest(SPECS[:2])),
        ModelTag("test-model", "r1", "x" * 64),
        ModelTag("other", "r1", layout_digest(SPECS)),
    ],
)
async def test_another_revision_or_layout(tag: ModelTag) -> None:
    """Refused before anybody at the receiver is asked."""
    expected = ModelTag("test-model", "r1", layout_digest(SPECS))
    async with kit.joined(Config(models=(expected,))) as pair:
        offer = kit.manifest("r", SPECS, model=tag)
        with pytest.raises(ModelMismatch):
            await pair.link.offer(offer, Caches(offer, filled=True).at())
        assert not pair.server._offers


async def test_a_layout_that_its_tag_does_not_name() -> None:
    """The tag is the one that is expected, the groups are not those that it names."""
    expected = ModelTag("test-model", "r1", layout_digest(SPECS))
    async with kit.joined(Config(models=(expected,))) as pair:
        offer = kit.manifest("r", (FULL,), model=expected)
        with pytest.raises(ModelMismatch, match="do not have the layout"):
            await pair.link.offer(offer, Caches(offer, filled=True).at())
