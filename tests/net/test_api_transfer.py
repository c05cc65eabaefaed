"""The main job over real TCP: what is offered, granted and ready arrives, byte for byte, and nothing else does."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

import kvwire
from kvwire import BlockRange, Config, DType, GroupKind, GroupSpec, Layer, ModelTag, Pages, layout_digest
from tests.net import kit
from tests.net.kit import CONV, FIVE, FULL, MLA, RECURRENT, WINDOW, Caches, granted, joined, manifest, offered, same
from tests.net.namespaces import needs_ipv6

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_all_five_kinds() -> None:
    offer = manifest("five", FIVE)
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        assert incoming.manifest == offer
        assert incoming.peer.startswith("127.0.0.1 port ")
        assert out.granted["window"] == (10, 11, 12)
        assert out.granted["conv"] == (0,)
        kit.ready_all(out)
        sent, got = await out.committed(), await incoming.committed()
        same(source, target)
        assert sent.bytes == got.bytes == sum(len(out.granted[s.name]) * s.block_bytes * len(s.layers) for s in FIVE)
        assert sent.request_id == got.request_id == "five"
        assert sent.elapsed_s >= (sent.tail_s or 0) > 0
        assert got.tail_s is None
        assert (out.state, incoming.state) == ("committed", "committed")
        assert incoming.attachment is None
        await pair.settled()
        source.check_free()
        target.check_free()


@pytest.mark.parametrize(
    "held", [range(0), range(9), [0, 3, 4, 7, 12], range(1, 13)], ids=["none", "prefix", "scattered", "most"]
)
async def test_blocks_that_the_receiver_holds_are_not_sent(held: Sequence[int]) -> None:
    offer = manifest("held", (FULL, MLA))
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    wanted = [block for block in range(13) if block not in held]
    only = {"full": wanted, "mla": wanted}
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        await incoming.grant(target.at(only))
        out = await task
        assert out.granted == {"full": tuple(wanted), "mla": tuple(wanted)}
        kit.ready_all(out)
        receipt = await out.committed()
        await incoming.committed()
        assert receipt.bytes == 2 * len(wanted) * (FULL.block_bytes + MLA.block_bytes)
        same(source, target, only)


async def test_window_and_states_may_be_left_out_whole() -> None:
    offer = manifest("left out", FIVE)
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    only = {"full": [12], "recurrent": [0]}
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        await incoming.grant(target.at(only))
        out = await task
        assert out.granted == {"full": (12,), "window": (), "mla": (), "recurrent": (0,), "conv": ()}
        kit.ready_all(out)
        seen = [layer async for layer in incoming.layers()]
        assert sorted(seen, key=str) == [
            Layer("full", 0),
            Layer("full", 1),
            Layer("recurrent", 6),
            Layer("recurrent", 7),
        ]
        await out.committed()
        await incoming.committed()
        same(source, target, only)


# --- two sides that page differently --------------------------------------------------------------------------

HEADS, DIM, PAGED_TOKENS = 2, 8, 200


class TokenCache:
    """K and V of FULL-like attention in a layout of its own, read and written by token number."""

    def __init__(self, spec: GroupSpec, page_tokens: int, style: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        count = -(-PAGED_TOKENS // page_tokens)
        # A block of the spec must be covered whole, so the last pages go as far as the last block.
        count = max(count, -(-(-(-PAGED_TOKENS // spec.block_tokens) * spec.block_tokens) // page_tokens))
        self.tokens, self.slots = page_tokens, rng.permutation(count + 4)[:count]
        self.k: list[NDArray[np.uint16]] = []
        self.v: list[NDArray[np.uint16]] = []
        layers: list[object] = []
        for _ in spec.layers:
            if style == "together":
                whole = np.zeros((count + 4, 2, page_tokens, HEADS, DIM), np.uint16)
                self.k.append(whole[:, 0])
                self.v.append(whole[:, 1])
                layers.append(whole)
                continue
            if style == "apart":
                k, v = (np.zeros((count + 4, page_tokens, HEADS, DIM), np.uint16) for _ in range(2))
            else:  # pages that hold the heads of others too, [heads, tokens, dim] behind a transposed view
                wide = np.zeros((2, count + 4, HEADS + 3, page_tokens, DIM), np.uint16)
                k, v = (wide[i, :, 1 : 1 + HEADS].transpose(0, 2, 1, 3) for i in range(2))
            self.k.append(k)
            self.v.append(v)
            layers.append((k, v))
        self.pages = Pages(spec, layers, block_tokens=page_tokens)

    def put(self, values: NDArray[np.uint16]) -> None:
        """`values[layer, part, token, head, dim]`."""
        for layer, parts in enumerate(values):
            for array, part in zip((self.k[layer], self.v[layer]), parts, strict=True):
                for i, slot in enumerate(self.slots):
                    piece = part[i * self.tokens : (i + 1) * self.tokens]
                    array[slot, : len(piece)] = piece

    def take(self) -> NDArray[np.uint16]:
        layers = [[np.concatenate(list(a[self.slots])) for a in pair] for pair in zip(self.k, self.v, strict=True)]
        return np.array(layers)[:, :, :PAGED_TOKENS]


@pytest.mark.parametrize("styles", [("together", "apart"), ("apart", "strided"), ("strided", "together")], ids="-".join)
@pytest.mark.parametrize("tokens", [(16, 64, 16), (64, 16, 16), (16, 64, 64), (16, 16, 32)], ids=str)
async def test_sides_that_page_differently(styles: tuple[str, str], tokens: tuple[int, int, int]) -> None:
    spec = GroupSpec.attention("kv", (0, 5), DType.BF16, block_tokens=tokens[2], heads=HEADS, head_dim=DIM)
    offer = manifest("paged", (spec,), PAGED_TOKENS)
    values = np.random.default_rng(3).integers(0, 1 << 16, (2, 2, PAGED_TOKENS, HEADS, DIM), np.uint16)
    source, target = (TokenCache(spec, tokens[i], styles[i], seed=i) for i in range(2))
    source.put(values)
    async with joined(client=Config(lanes=1), server=Config(cell_bytes=4096)) as pair:
        task = asyncio.create_task(pair.link.offer(offer, {"kv": source.pages.at(source.slots)}))
        incoming = await pair.server.accept()
        await incoming.grant({"kv": target.pages.at(target.slots)})
        out = await task
        kit.ready_all(out)
        await incoming.committed()
        await out.committed()
    assert np.array_equal(target.take(), values)


# --- links ----------------------------------------------------------------------------------------------------


@needs_ipv6
async def test_over_ipv6() -> None:
    async with joined(host="::1") as pair:
        await kit.still_works(pair)


async def test_both_sides_offer_at_once_over_one_link() -> None:
    offers = [manifest(f"r{i}", FIVE) for i in range(6)]
    sources = [Caches(offer, filled=True, seed=i) for i, offer in enumerate(offers)]
    targets = {offer.request_id: Caches(offer, seed=9) for offer in offers}
    async with joined() as pair:

        async def send(i: int) -> None:
            link = pair.link if i % 2 else pair.back
            out = await link.offer(offers[i], sources[i].at())
            kit.ready_all(out)
            await out.committed()

        async def receive(node: kvwire.Node) -> None:
            for _ in range(3):
                incoming = await node.accept()
                await incoming.grant(targets[incoming.manifest.request_id].at())
                await incoming.committed()

        await asyncio.gather(*map(send, range(6)), receive(pair.server), receive(pair.client))
        for offer, source in zip(offers, sources, strict=True):
            same(source, targets[offer.request_id])
        await pair.settled()


async def test_many_links() -> None:
    async with joined(client=Config(lanes=1)) as pair:
        links = await asyncio.gather(*(pair.client.connect("127.0.0.1", pair.server.port) for _ in range(12)))
        assert len(pair.server.links) == 13
        for i, link in enumerate(links):
            await kit.move(link, pair.server, f"r{i}")
        for link in links[::2]:
            await link.close()
        await kit.eventually(lambda: len(pair.server.links) == 7, "closed links to go")
        await kit.move(links[1], pair.server, "after the others closed")


async def test_lanes_as_configured_and_counted() -> None:
    async with joined(client=Config(lanes=7)) as pair:
        assert pair.link.lanes == 7
        assert sorted(stats["lane"] for stats in pair.link.lane_stats()) == list(range(7))
        await kit.move(pair.link, pair.server, "r1")
        assert sum(stats["sent_bytes"] for stats in pair.link.lane_stats()) > 0
        assert "7 lanes" in repr(pair.link)
        assert pair.client.gil_entries() > 0


async def test_models_that_agree() -> None:
    tag = ModelTag("m", "rev", layout_digest(FIVE))
    offer = manifest("tagged", FIVE, model=tag)
    async with joined(server=Config(models=(tag,), lanes=2)) as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))
        kit.ready_all(out)
        await incoming.committed()
        await out.committed()


# --- layers as they land --------------------------------------------------------------------------------------


async def test_layers_are_right_the_moment_they_are_yielded() -> None:
    offer = manifest("layers", FIVE)
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    order = list(offer.segments())
    np.random.default_rng(5).shuffle(order)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        seen: list[tuple[str, int]] = []
        layers = incoming.layers()
        for group, layer in order:  # one at a time, so that the order of landing is that of `ready`
            out.ready(group, layer)
            got = await anext(layers)
            assert (got.group, got.layer) == (group, layer)
            assert np.array_equal(source.rows(group, layer), target.rows(group, layer))
            await incoming.wait_layer(group, layer)
            seen.append((got.group, got.layer))
        assert [layer async for layer in layers] == []
        assert sorted(seen) == sorted(offer.segments())
        assert incoming.progress[0] == incoming.progress[1] > 0
        await incoming.committed()
        assert [(layer.group, layer.layer) async for layer in incoming.layers()] == order


async def test_a_layer_waits_for_its_last_block() -> None:
    offer = manifest("chunks")
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        waiting = asyncio.create_task(incoming.wait_layer("full", 1))
        out.ready("full", 1, range(12))
        out.ready("full", 0)
        await incoming.wait_layer("full", 0)
        assert not waiting.done()
        out.ready("full", 1, BlockRange(12, 13))
        await waiting
        await incoming.committed()
        same(source, target)


async def test_chunks_from_several_threads() -> None:
    offer = manifest("threads", FIVE)
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    held = [2, 3, 8]
    wanted = [block for block in range(13) if block not in held]
    only = {"full": wanted, "mla": wanted, "window": [10, 11, 12], "recurrent": [0], "conv": [0]}
    async with joined(server=Config(cell_bytes=4096)) as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        await incoming.grant(target.at(only))
        out = await task
        barrier = threading.Barrier(4)

        def prefill(part: int) -> None:
            barrier.wait()
            for group, layer in offer.segments():
                chunk = only[group][part::4]
                if chunk:
                    out.ready(group, layer, chunk)

        threads = [threading.Thread(target=prefill, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        await out.committed()
        await incoming.committed()
        for thread in threads:
            thread.join()
        same(source, target, only)


async def test_state_group_kinds_have_one_block() -> None:
    assert all(spec.kind.is_state for spec in (RECURRENT, CONV))
    offer = manifest("states", (RECURRENT, CONV), 1)
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        for layer in (6, 7):
            out.ready("recurrent", layer, [0])
            out.ready("conv", layer, (0,))
        await incoming.committed()
        same(source, target)


async def test_cells_larger_and_smaller_than_segments() -> None:
    big = GroupSpec.state("big", GroupKind.RECURRENT, (0,), DType.UINT8, (1_000_003,))
    for cell in (4096, 256 * 1024):
        offer = manifest("cells", (big, WINDOW))
        source, target = Caches(offer, filled=True), Caches(offer, seed=2)
        async with joined(server=Config(cell_bytes=cell)) as pair:
            out, incoming = await granted(pair.link, pair.server, offer, source, target)
            kit.ready_all(out)
            await incoming.committed()
            same(source, target)
            assert incoming.progress[0] == -(-1_000_003 // cell) + 2 * -(-3 * WINDOW.block_bytes // cell)


async def test_a_node_that_has_dialled_itself() -> None:
    """One node may be both ends: it knows what became of what it was offered, either way."""
    async with await kit.serve() as node:
        link = await node.connect("127.0.0.1", node.port)
        await kit.eventually(lambda: len(node.links) == 2, "both ends")
        (back,) = (each for each in node.links if each is not link)
        for number, end in enumerate((link, back)):
            offer = manifest(f"r{number}")
            source, target = Caches(offer, filled=True), Caches(offer)
            out, incoming = await granted(end, node, offer, source, target)
            kit.ready_all(out)
            await out.committed()
            await incoming.committed()
            same(source, target)
            assert await end.outcome_of(out) == "committed"
