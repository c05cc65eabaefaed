"""What a caller may get wrong: a typed error at once that names it, and nothing is left half done."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvwire import (
    BlockRange,
    Closed,
    Config,
    ConfigError,
    DType,
    DuplicateTransfer,
    GroupSpec,
    LimitExceeded,
    ModelMismatch,
    ModelTag,
    Node,
    OfferRefused,
    Pages,
    PlacementError,
    ReadyError,
    SpecError,
    layout_digest,
)
from tests.net import kit
from tests.net.kit import CONV, FIVE, FULL, MLA, Caches, granted, joined, manifest, offered, same

pytestmark = pytest.mark.usefixtures("nothing_left")

PLAIN = Config(plain=True)


def shaped(shape: tuple[int, ...], dtype: str = "uint16") -> tuple[Any, Any]:
    return np.zeros(shape, dtype), np.zeros(shape, dtype)


MEMORY: list[tuple[str, Callable[[], Any], str]] = [
    ("dtype", lambda: shaped((4, 16, 2, 32), "float32"), "float32; expected bfloat16"),
    ("item size", lambda: shaped((4, 16, 2, 32), "uint8"), "uint8; expected bfloat16"),
    ("heads", lambda: shaped((4, 16, 3, 32)), r"\[4, 16, 3, 32\].*expected.*16, 2, 32"),
    ("page too small", lambda: shaped((4, 8, 2, 32)), r"\[4, 8, 2, 32\].*expected.*16, 2, 32"),
    ("flat page too small", lambda: np.zeros((4, 4000), np.uint8), "4000.*expected.*4096"),
    ("axes", lambda: shaped((4, 16, 64)), "expected"),
    ("no blocks", lambda: shaped((0, 16, 2, 32)), "expected blocks along axis 0"),
    ("backwards", lambda: tuple(a[:, ::-1] for a in shaped((4, 16, 2, 32))), "run backwards; expected none below zero"),
    ("one part of two", lambda: shaped((4, 16, 2, 32))[:1], "expected"),
    ("slots differ", lambda: (np.zeros((4, 16, 2, 32), "u2"), np.zeros((5, 16, 2, 32), "u2")), "expected"),
    ("no array", lambda: ("k", "v"), "expected a buffer"),
]


@pytest.mark.parametrize(("make", "says"), [case[1:] for case in MEMORY], ids=[case[0] for case in MEMORY])
def test_memory_that_does_not_fit_the_spec(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(SpecError, match=f"(?s)full.*{says}"):
        Pages(FULL, [make(), make()])


def test_slots_outside_or_twice() -> None:
    pages = Pages.empty(FULL, 4)
    with pytest.raises(PlacementError, match="slot 4 does not exist; there are 4"):
        pages.at([0, 4])
    with pytest.raises(PlacementError, match="slot -1 does not exist"):
        pages.at([-1])
    with pytest.raises(PlacementError, match="slot 2 is named twice"):
        pages.at([2, 1, 2])
    with pytest.raises(PlacementError, match="1 slots for 2 blocks; expected 2"):
        pages.at([1], [0, 1])


async def test_an_offer_whose_source_does_not_fit() -> None:
    offer = manifest("r1", (FULL, MLA))
    caches = Caches(offer, filled=True)
    other = replace(FULL, dtype=DType.FP16)
    async with joined() as pair:
        for change, error, says in (
            ({"mla": None}, SpecError, "'mla'.*one entry for each group"),
            ({"more": caches.at()["mla"]}, SpecError, "'more'"),
            ({"full": Pages.empty(other, 13).at(range(13))}, SpecError, "group full"),
            ({"full": caches.at({"full": range(12)})["full"]}, PlacementError, "13 blocks on offer.*12"),
            ({"full": Pages.empty(FULL, 20).at(range(13), range(1, 14))}, PlacementError, "block 13 is not on offer"),
            ({"full": Pages.empty(FULL, 20).at(range(12))}, PlacementError, "12 slots for 13 blocks; expected 13"),
        ):
            source = {name: slots for name, slots in (caches.at() | change).items() if slots is not None}
            with pytest.raises(error, match=says):
                await pair.link.offer(offer, source)
        for more, says in (
            ({"timeout_s": 0}, "timeout_s is 0; expected seconds, above 0"),
            ({"deadline_s": float("nan")}, "deadline_s is nan; expected"),
            ({"klass": 3}, "klass is 3; expected 0"),
        ):
            with pytest.raises(SpecError, match=says):
                await pair.link.offer(offer, caches.at(), **more)
        await kit.still_works(pair)


async def test_a_source_that_was_closed() -> None:
    offer = manifest()
    source, target = Caches(offer), Caches(offer)
    slots = source.at()
    async with joined() as pair:
        source.pages["full"].close()
        with pytest.raises(Closed, match="pages of group full are closed"):
            await pair.link.offer(offer, slots)
        source = Caches(offer)
        task, incoming = await offered(pair.link, pair.server, offer, source)
        source.pages["full"].close()  # between the offer and its grant
        await incoming.grant(target.at())
        with pytest.raises(Closed, match="pages of group full are closed"):
            await task
        with pytest.raises(Exception, match="pages of group full are closed"):
            await incoming.committed()
        target.check_free()
        await kit.still_works(pair)


async def test_a_source_that_its_caller_uses_again() -> None:
    """What was offered is sent, whatever becomes of the dict that said where it lies."""
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    slots = source.at()
    async with joined() as pair:
        offering = asyncio.create_task(pair.link.offer(offer, slots))
        incoming = await pair.server.accept()
        slots["full"] = source.pages["full"].at(range(13))  # of the next request
        await incoming.grant(target.at())
        out = await offering
        slots.clear()
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        same(source, target)


# --- grants ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def refused(error: type[Exception], says: str, target: Caches) -> Iterator[None]:
    """The grant is refused, and no lease of it stays."""
    with pytest.raises(error, match=says):
        yield
    target.check_free()


async def test_grants_that_do_not_fit_the_offer() -> None:
    offer = manifest("r1", FIVE)
    source, target = Caches(offer, filled=True), Caches(offer, seed=2, spare=8)
    full, window, conv = (target.pages[name] for name in ("full", "window", "conv"))
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        with refused(PlacementError, "block 13 is not on offer; blocks 0 to 13 ", target):
            await incoming.grant({"full": full.at(range(2), [12, 13])})
        with refused(PlacementError, "12 slots for 13 blocks; expected 13", target):
            await incoming.grant({"full": full.at(range(12))})
        with refused(PlacementError, "not ascending: 1 follows 2", target):
            await incoming.grant({"full": full.at(range(2), [2, 1])})
        with refused(PlacementError, "window is window: all of its 3 blocks or none, not 2", target):
            await incoming.grant({"window": window.at(range(2), [11, 12])})
        with refused(PlacementError, "block 9 is not on offer; blocks 10 to 13", target):
            await incoming.grant({"window": window.at(range(4), range(9, 13))})
        with refused(PlacementError, "block 1 is not on offer; blocks 0 to 1 ", target):
            await incoming.grant({"conv": conv.at([0], [1])})
        with refused(PlacementError, "no group is called 'cnov'", target):
            await incoming.grant({"cnov": conv.at([0])})
        with refused(SpecError, "group full", target):
            await incoming.grant({"full": conv.at([0])})
        with refused(PlacementError, "cells of 5000 bytes; expected a multiple of 4096", target):
            await incoming.grant(target.at(), cell_bytes=5000)
        one = Pages.empty(FULL, 13)
        shared = Pages(replace(MLA, name="mla"), [np.zeros((16, MLA.block_bytes), np.uint8)] * 2)
        with refused(SpecError, "overlaps", target):  # two layers in the same bytes
            await incoming.grant({"full": one.at(range(13)), "mla": shared.at(range(13))})
        frozen = np.zeros((13, FULL.block_bytes), np.uint8)
        frozen.flags.writeable = False
        with refused(SpecError, "read-only; expected memory that can be written", target):
            await incoming.grant({"full": Pages(FULL, [frozen, frozen.copy()]).at(range(13))})
        one.check_free(range(13))
        await incoming.grant(target.at())
        out = await task
        kit.ready_all(out)
        assert len([layer async for layer in incoming.layers()]) == 10  # what failed before is not counted in
        await out.committed()
        same(source, target)
        await kit.still_works(pair)


async def test_two_groups_in_the_same_slots() -> None:
    twin = replace(FULL, name="twin")
    offer = manifest("r1", (FULL, twin))
    memory = [np.zeros((20, FULL.block_bytes), np.uint8) for _ in range(2)]
    pages, other = Pages(FULL, memory), Pages(twin, memory)
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, Caches(offer))
        with pytest.raises(PlacementError, match="overlap"):
            await incoming.grant({"full": pages.at(range(13)), "twin": other.at(range(7, 20))})
        pages.check_free(range(20))
        other.check_free(range(20))
        await incoming.grant({"full": pages.at(range(6), range(6)), "twin": other.at(range(7, 20))})
        kit.ready_all(await task)
        await incoming.committed()
        await kit.still_works(pair)


async def test_slots_in_use_by_another_transfer() -> None:
    offers = [manifest(f"r{i}") for i in range(2)]
    source, target = Caches(offers[0], filled=True), Caches(offers[0])
    async with joined() as pair:
        out, first = await granted(pair.link, pair.server, offers[0], source, target)
        task, second = await offered(pair.link, pair.server, offers[1], source)
        with pytest.raises(PlacementError, match=r"slot .* is still being written by transfer 1"):
            await second.grant(target.at())
        kit.ready_all(out)
        await first.committed()
        await second.grant(target.at())
        kit.ready_all(await task)
        await second.committed()
        await kit.still_works(pair)


async def test_a_grant_too_scattered_for_one_message() -> None:
    tiny = GroupSpec.mla("tiny", (0,), DType.UINT8, block_tokens=1, latent=1)
    offer = manifest("r1", (tiny,), 60000)
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined(client=Config(lanes=1, max_message_bytes=65536)) as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        with refused(LimitExceeded, "the grant takes .* bytes.*longer runs", target):
            await incoming.grant(target.at({"tiny": range(0, 60000, 2)}))
        await incoming.grant(target.at())
        kit.ready_all(await task)
        await incoming.committed()
        same(source, target)
        await kit.still_works(pair)


async def test_grant_twice_and_refuse_after_grant() -> None:
    offer = manifest()
    source, target = Caches(offer), Caches(offer)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        with pytest.raises(Closed, match="'r1' active> cannot be granted now"):
            await incoming.grant(target.at())
        with pytest.raises(Closed, match="'r1' active> cannot be refused now"):
            await incoming.refuse("too late")
        kit.ready_all(out)
        await incoming.committed()
        with pytest.raises(Closed, match="committed> cannot be granted now"):
            await incoming.grant(target.at())
        await kit.still_works(pair)


# --- ready ----------------------------------------------------------------------------------------------------


async def test_ready_for_what_was_not_granted_or_twice() -> None:
    offer = manifest("r1", FIVE)
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    only = {"full": [1, 2, 5, 6, 9], "window": [10, 11, 12]}
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        await incoming.grant(target.at(only))
        out = await task
        for blocks, says in (
            ([0], r"block 0 of group full was not granted \(1..2, 5..6, 9..9 were"),
            (range(1, 4), "block 3 of group full was not granted"),
            (BlockRange(9, 11), "block 10 of group full was not granted"),
            ([1, 2, 13], "block 13 of group full was not granted"),
            ([-1], "block -1 of group full was not granted"),
            ([1, 1], "named twice in one call"),
        ):
            with pytest.raises(ReadyError, match=says):
                out.ready("full", 0, blocks)
        with pytest.raises(ReadyError, match=r"block 0 of group conv was not granted \(none were"):
            out.ready("conv", 6, [0])
        with pytest.raises(SpecError, match="no group is called 'fall'; this manifest has full, window"):
            out.ready("fall", 0)
        with pytest.raises(SpecError, match=r"group full has no layer 2; it has \(0, 1\)"):
            out.ready("full", 2)
        out.ready("full", 0, [5])
        for again in ([5], [1, 5], [1, 2, 5, 6, 9], None):
            with pytest.raises(ReadyError, match="was ready before"):
                out.ready("full", 0, again)
        out.ready("full", 0, [1, 2, 6, 9])  # so the calls that failed made none of these ready
        out.ready("full", 1)
        for layer in (2, 3):
            out.ready("window", layer)
        await out.committed()
        same(source, target, only)
        await kit.still_works(pair)


async def test_blocks_that_are_no_numbers() -> None:
    offer = manifest()
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))
        for blocks in (["a"], [1.5], [None], 3, [2**70], np.array([[1]])):
            with pytest.raises(ReadyError, match=r"full.*expected"):
                out.ready("full", 0, blocks)  # type: ignore[arg-type]
        out.ready("full", 0, np.arange(13))
        out.ready("full", 1, list(np.arange(13, dtype=np.int32)))
        await incoming.committed()


# --- offers ---------------------------------------------------------------------------------------------------


async def test_two_offers_with_one_request_id() -> None:
    offer = manifest("same")
    source, target = Caches(offer), Caches(offer)
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        with pytest.raises(DuplicateTransfer, match="request 'same' is under way on this link"):
            await pair.link.offer(offer, source.at())
        await incoming.grant(target.at())
        out = await task
        with pytest.raises(DuplicateTransfer, match="request 'same'"):
            await pair.link.offer(offer, source.at())
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        out, incoming = await granted(pair.link, pair.server, offer, source, target)  # once it is over it is fine
        kit.ready_all(out)
        await out.committed()
        await kit.still_works(pair)


async def test_a_manifest_over_the_limits() -> None:
    tiny = GroupSpec.mla("tiny", (0,), DType.UINT8, block_tokens=1, latent=1)
    tokens = 5000
    offer = manifest("large", (tiny,), tokens, hashes={"tiny": (b"0123456789abcdef",) * tokens})
    caches = Caches(offer)
    async with joined(server=Config(max_message_bytes=65536)) as pair:
        with pytest.raises(LimitExceeded, match=r"the manifest takes 8\d{4} bytes; the peer's limit is 65536.*larger"):
            await pair.link.offer(offer, caches.at())
        await kit.still_works(pair)


async def test_more_transfers_than_the_peer_takes() -> None:
    async with joined(server=Config(max_transfers=2)) as pair:
        offers = [manifest(f"r{i}") for i in range(3)]
        caches = Caches(offers[0])
        pending = [await offered(pair.link, pair.server, offer, caches) for offer in offers[:2]]
        with pytest.raises(LimitExceeded, match="2 transfers are under way"):
            await pair.link.offer(offers[2], caches.at())
        for task, incoming in pending:
            await incoming.refuse("make room")
            with pytest.raises(OfferRefused, match="make room"):
                await task
        await kit.still_works(pair)


async def test_another_model() -> None:
    mine = ModelTag("m", "rev 1", layout_digest((FULL,)))
    async with joined(server=Config(models=(mine, kit.MODEL))) as pair:
        for model in (ModelTag("m", "rev 2", mine.layout), ModelTag("n", "rev 1", mine.layout), ModelTag("m", "rev 1")):
            offer = manifest("r1", (FULL,), model=model)
            with pytest.raises(ModelMismatch, match=r"this side runs m revision rev 1.*the offer is for ") as caught:
                await pair.link.offer(offer, Caches(offer).at())
            assert not caught.value.retriable
            assert f"{model.name} revision {model.revision}" in str(caught.value)
        offer = manifest("r1", (FULL, CONV), model=mine)  # the tag agrees, but this is not that layout
        with pytest.raises(ModelMismatch, match="do not have the layout"):
            await pair.link.offer(offer, Caches(offer).at())
        assert not pair.server._offers
        await kit.still_works(pair)


async def test_configurations_that_cannot_be() -> None:
    for nobody in (Node.start(), Node.serve("127.0.0.1", 0, Config(plain=False))):
        with pytest.raises(ConfigError, match=r"a node needs an identity.*plain=True"):
            await nobody
    for somebody in (Node.start(PLAIN, identity=kit.keys()), Node.serve("127.0.0.1", 0, PLAIN, identity=kit.keys())):
        with pytest.raises(ConfigError, match="a plain node has no identity"):
            await somebody
    with pytest.raises(ConfigError, match=r"config is dict; expected kvwire.Config"):
        await Node.start({"lanes": 2})  # type: ignore[arg-type]
    wrong: Any
    for wrong in ({"policy": {}}, {"policy": ["acme"]}, {"audit": "/var/log/audit"}, {"identity": "kvwire-keys"}):
        with pytest.raises(ConfigError, match=r"expected a kvwire\.(Policy|AuditLog|Identity)"):
            await kit.start(**wrong)
    async with await kit.start() as node:
        for host in (3, None, b"localhost"):
            wrong = host
            for use in (node.connect(wrong, 7878), kit.serve(wrong, 0)):
                with pytest.raises(ConfigError, match=r"host is .*; expected a name or an address"):
                    await use
    with pytest.raises(ConfigError, match="lanes is 65; expected 1 to 64"):
        Config(lanes=65)
    for start in (kit.serve("127.0.0.1", 0, Config(congestion="nagle")), kit.start(Config(congestion="nagle"))):
        with pytest.raises(ConfigError, match=r"congestion control 'nagle'.*this host has"):
            await start


async def test_offers_time_out_where_nobody_accepts() -> None:
    offer = manifest()
    caches = Caches(offer)
    async with joined() as pair:
        with pytest.raises(TimeoutError, match="request 'r1' was not granted in time"):
            await pair.link.offer(offer, caches.at(), timeout_s=0.05)
        await kit.eventually(lambda: not pair.back._exchange.incoming, "the offer to be withdrawn")
        waiting = asyncio.create_task(pair.server.accept())  # a withdrawn offer is not handed out
        await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()
        await kit.still_works(pair)
