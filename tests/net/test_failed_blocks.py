"""What an engine must compute itself after a transfer has failed: exactly the blocks that are not whole."""

import numpy as np
import pytest

from kvwire import Closed, Config, DType, GroupSpec, LimitExceeded, PeerAborted
from tests.net import kit
from tests.net.kit import Caches, granted, joined, manifest, ready_all

pytestmark = pytest.mark.usefixtures("nothing_left")


def not_whole(source: Caches, target: Caches) -> dict[str, tuple[int, ...]]:
    """The same, from the bytes."""
    failed = {}
    for name, slots in target.slot_of.items():
        layers = source.pages[name].spec.layers
        failed[name] = tuple(
            block
            for block in slots
            if not all(
                np.array_equal(source.rows(name, layer, [block]), target.rows(name, layer, [block])) for layer in layers
            )
        )
    return failed


async def test_nothing_has_failed_after_the_commit() -> None:
    async with joined() as pair:
        offer = manifest(specs=kit.FIVE)
        source, target = Caches(offer, filled=True), Caches(offer)
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        assert incoming.failed_blocks() == {name: tuple(slots) for name, slots in target.slot_of.items()}
        ready_all(out)
        await out.committed()
        await incoming.committed()
        assert incoming.failed_blocks() == dict.fromkeys(target.slot_of, ())


@pytest.mark.parametrize("cell_bytes", [4096, 65536])
@pytest.mark.parametrize("seed", range(6))
async def test_failure_in_the_middle(seed: int, cell_bytes: int) -> None:
    """Some blocks of some layers landed, then the sender gave up."""
    rng = np.random.default_rng(seed)
    async with joined() as pair:
        offer = manifest(specs=kit.FIVE)
        source, target = Caches(offer, filled=True), Caches(offer)
        task, incoming = await kit.offered(pair.link, pair.server, offer, source)
        await incoming.grant(target.at(), cell_bytes=cell_bytes)
        out = await task
        for name, layer in offer.segments():
            blocks = [block for block in out.granted[name] if rng.random() < 0.8]
            out.ready(name, layer, blocks)
        await kit.eventually(lambda: out.progress[0] == incoming.progress[0], "what is ready to land")
        await kit.eventually(lambda: pair.link.engine_link.queued_runs == 0, "what is ready to leave")
        await kit.eventually(lambda: out.progress[0] == incoming.progress[0], "what is ready to land")
        await out.abort("enough")
        with pytest.raises(PeerAborted):
            await incoming.committed()
        failed = incoming.failed_blocks()
        assert failed == not_whole(source, target)
        assert any(failed.values())


async def test_of_a_part_of_the_offer_and_before_a_grant() -> None:
    async with joined() as pair:
        offer = manifest(specs=kit.FIVE)
        source, target = Caches(offer, filled=True), Caches(offer)
        task, incoming = await kit.offered(pair.link, pair.server, offer, source)
        assert incoming.failed_blocks() == {}
        await incoming.grant(target.at({"full": [3, 4, 9], "recurrent": [0]}))
        out = await task
        out.ready("full", 0)
        out.ready("full", 1, [4])
        out.ready("recurrent", 6)
        await incoming.wait_layer("full", 0)
        await incoming.wait_layer("recurrent", 6)
        await incoming.abort("enough")
        with pytest.raises(Closed):
            await incoming.committed()
        failed = incoming.failed_blocks()
        assert failed["recurrent"] == (0,)
        assert set(failed["full"]) >= {3, 9}
        assert failed["window"] == failed["mla"] == failed["conv"] == ()


async def test_a_grant_that_was_too_long_to_be_sent() -> None:
    """It is none: no block of it has failed, and a shorter one may follow."""
    every_token = GroupSpec.mla("mla", (0,), DType.BF16, block_tokens=1, latent=1)
    async with joined(Config(lanes=2), Config(lanes=2, max_message_bytes=65536)) as pair:
        offer = kit.manifest("r", (every_token,), 20_000)
        source, target = Caches(offer, filled=True), Caches(offer)
        task, incoming = await kit.offered(pair.link, pair.server, offer, source)
        with pytest.raises(LimitExceeded, match="the grant takes"):
            await incoming.grant(target.at({"mla": range(0, 20_000, 2)}))
        assert incoming.failed_blocks() == {}
        target.check_free()
        await incoming.grant(target.at())
        out = await task
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        kit.same(source, target)
