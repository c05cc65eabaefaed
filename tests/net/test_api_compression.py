"""Transfers that go through codecs over real TCP: what comes back, what both ends say of it, and what cannot be."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvwire import (
    CodecMismatch,
    Config,
    ConfigError,
    DType,
    GroupKind,
    GroupSpec,
    Incoming,
    Link,
    Manifest,
    Outgoing,
    Policy,
    Receipt,
    WrongThread,
    find_codec,
    register_codec,
)
from kvwire._ext import zstdlib
from kvwire._ext.codec import Cell, Scratch
from kvwire.codecs import cell, registry
from tests.net import kit
from tests.net.kit import FIVE, FULL, MLA, RECURRENT, WINDOW, Caches, Pair, granted, joined, manifest, ready_all, same
from tests.net.proxy import proxied
from tests.net.sealed import Log, logged

pytestmark = pytest.mark.usefixtures("nothing_left", "codecs_forgotten")

CELL = 12288  # three blocks of FULL: neither a block nor a group of them is as long as a cell
PLAIN, SEALED = (Config(lanes=2, cell_bytes=CELL, plain=plain) for plain in (True, False))
BY_KIND = {"full": "int8", "mla": "int4", "recurrent": "zstd", "conv": "off"}
LOSSLESS = {"full": "zstd", "window": "zstd", "mla": "zstd", "recurrent": "zstd", "conv": "zstd"}

both = pytest.mark.parametrize("config", [PLAIN, SEALED], ids=["plain", "sealed"])


def numbers(spec: GroupSpec, rows: int, rng: np.random.Generator) -> kit.Rows:
    """Blocks as models have them: normal deviates of the group's dtype."""
    count = rows * spec.block_bytes // spec.dtype.itemsize
    drawn = rng.standard_normal(count, np.float32)
    match spec.dtype:
        case DType.BF16:
            made: Any = (drawn.view(np.uint32) >> 16).astype(np.uint16)
        case DType.FP16:
            made = drawn.astype(np.float16)
        case _:
            made = drawn
    return np.asarray(made.view(np.uint8).reshape(rows, spec.block_bytes))


def of_numbers(offer: Manifest, seed: int = 1) -> Caches:
    """The sender's memory."""
    caches, rng = Caches(offer, seed=seed), np.random.default_rng(seed)
    for pages in caches.pages.values():
        for layer in pages.spec.layers:
            pages.array(layer)[:] = numbers(pages.spec, pages.slots, rng)
    return caches


def through(codec: str, spec: GroupSpec, layer: int, segment: bytes, cell_bytes: int = CELL) -> tuple[bytes, int, int]:
    """What a receiver has of a segment, and the bytes of cells that went coded, before and after."""
    native, scratch = find_codec(codec).native, Scratch()
    out, plain, wire = b"", 0, 0
    for at in range(0, len(segment), cell_bytes):
        data = segment[at : at + cell_bytes]
        told = cell(spec, spec.layers.index(layer), at)
        payload = native.encode(told, data, scratch)
        if payload is not None:
            plain, wire = plain + len(data), wire + len(payload)
            data = native.decode(told, payload, len(data), scratch)
        out += data
    return out, plain, wire


def as_coded(source: Caches, target: Caches, receipts: tuple[Receipt, Receipt], codecs: Mapping[str, str]) -> None:
    """The receiver has what these codecs, by group, make of the sender's bytes, and both receipts say so."""
    expected = {}
    for group in source.manifest.groups:
        name, codec, sums = group.spec.name, codecs.get(group.spec.name), [0, 0]
        for layer in group.spec.layers:
            sent, got = source.rows(name, layer).tobytes(), target.rows(name, layer).tobytes()
            if codec is not None:
                sent, *counted = through(codec, group.spec, layer, sent)
                sums = [a + b for a, b in zip(sums, counted, strict=True)]
            assert got == sent, (name, layer)
        if codec is not None and sums[0]:
            expected[name] = (codec, *sums, find_codec(codec).lossless)
    for receipt in receipts:
        done = {
            name: (coded.codec, coded.plain_bytes, coded.wire_bytes, coded.lossless)
            for name, coded in receipt.coded.items()
        }
        assert done == expected
    assert target.untouched(target.slot_of)


async def transferred(
    link: Link, pair: Pair, offer: Manifest, **more: Any
) -> tuple[Caches, Caches, tuple[Receipt, Receipt]]:
    """One transfer of numbers over the pair's link, committed on both sides."""
    source, target = of_numbers(offer), Caches(offer, seed=2)
    out, incoming = await granted(link, pair.server, offer, source, target, **more)
    if offer.attachment:
        out.attach({"token": 7})
    ready_all(out)
    receipts = await out.committed(), await incoming.committed()
    assert incoming.attachment == ({"token": 7} if offer.attachment else None)
    await pair.settled()
    source.check_free()
    target.check_free()
    return source, target, receipts


# --- what comes back --------------------------------------------------------------------------------------------------


@both
async def test_lossless_by_name(config: Config) -> None:
    async with joined(config, config) as pair:
        offer = manifest("zstd", FIVE, attachment=True)
        source, target, receipts = await transferred(pair.link, pair, offer, compression="zstd")
        same(source, target)
        as_coded(source, target, receipts, LOSSLESS)
        sent = receipts[0].coded
        assert set(sent) == set(LOSSLESS)
        assert all(coded.wire_bytes < coded.plain_bytes for coded in sent.values())
        assert pair.link.engine_link.link_stats()["coded_wire_bytes"] == sum(it.wire_bytes for it in sent.values())
        await kit.still_works(pair)


@both
async def test_by_kind_of_group(config: Config) -> None:
    async with joined(config, config) as pair:
        offer = manifest("by kind", FIVE, attachment=True)
        compression = BY_KIND | {"window": "fp8"}
        source, target, receipts = await transferred(pair.link, pair, offer, compression=compression)
        by_group = {"full": "int8", "mla": "int4", "recurrent": "zstd", "window": "fp8"}
        as_coded(source, target, receipts, by_group)
        assert {name: coded.lossless for name, coded in receipts[0].coded.items()} == {
            name: codec == "zstd" for name, codec in by_group.items()
        }
        await kit.still_works(pair)


async def test_what_the_configuration_names() -> None:
    async with joined(SEALED, Config(lanes=2, cell_bytes=CELL, compression={"full": "int8", "mla": "off"})) as pair:
        offer = manifest("configured", (FULL, MLA))
        as_coded(*await transferred(pair.link, pair, offer), {"full": "int8"})
        offer = manifest("but not this one", (FULL, MLA))
        source, target, receipts = await transferred(pair.link, pair, offer, compression="off")
        same(source, target)
        assert receipts[0].coded == receipts[1].coded == {}


async def test_off_encodes_nothing() -> None:
    async with joined(SEALED, Config(lanes=2, compression="off")) as pair:
        source, target, receipts = await transferred(pair.link, pair, manifest("off", FIVE))
        same(source, target)
        assert receipts[0].coded == receipts[1].coded == {}
        assert pair.link.engine_link.link_stats()["encoded_bytes"] == 0


async def test_auto_is_bit_exact() -> None:
    async with joined() as pair:
        for number in range(3):
            source, target, receipts = await transferred(pair.link, pair, manifest(f"auto {number}", FIVE))
            same(source, target)
            assert all(coded.lossless for receipt in receipts for coded in receipt.coded.values())


async def test_what_does_not_shrink_goes_as_it_is() -> None:
    offer = manifest("noise", FIVE)
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target, compression="zstd")
        ready_all(out)
        assert (await out.committed()).coded == (await incoming.committed()).coded == {}
        same(source, target)


async def test_only_what_is_granted_is_coded() -> None:
    async with joined(SEALED, SEALED) as pair:
        offer = manifest("some", (FULL, MLA))
        source, target = of_numbers(offer), Caches(offer, seed=2)
        task, incoming = await kit.offered(pair.link, pair.server, offer, source, compression="zstd")
        only = {"mla": [1, 3, 4, 12]}
        await incoming.grant(target.at(only))
        out = await task
        ready_all(out)
        assert set((await out.committed()).coded) == set((await incoming.committed()).coded) == {"mla"}
        same(source, target, only)


async def test_both_ways_at_once() -> None:
    """Each side names what it sends."""
    async with joined(SEALED, SEALED) as pair:
        there, back = manifest("there", (FULL,)), manifest("back", (FULL,))
        memory = of_numbers(there), Caches(there, seed=2), of_numbers(back, 3), Caches(back, seed=4)
        outs = await asyncio.gather(
            granted(pair.link, pair.server, there, *memory[:2], compression="int8"),
            granted(pair.back, pair.client, back, *memory[2:], compression="zstd"),
        )
        for (out, incoming), codec, side in zip(outs, ("int8", "zstd"), (memory[:2], memory[2:]), strict=True):
            ready_all(out)
            as_coded(side[0], side[1], (await out.committed(), await incoming.committed()), {"full": codec})


# --- an application's own ---------------------------------------------------------------------------------------------


def halves(told: Cell, data: memoryview) -> bytes | None:
    """The lower byte of every bf16 is left out."""
    return bytes(data[1::2])


def doubled(told: Cell, payload: memoryview, n: int) -> bytes:
    out = bytearray(n)
    out[1::2] = payload
    return bytes(out)


@both
async def test_one_of_the_application(config: Config) -> None:
    register_codec("halves", 200, halves, doubled, lossless=False, kinds=[GroupKind.FULL], dtypes=[DType.BF16])
    async with joined(config, config) as pair:
        offer = manifest("own", (FULL, MLA))
        source, target, receipts = await transferred(pair.link, pair, offer, compression={"full": "halves"})
        assert receipts[0].coded["full"] == receipts[1].coded["full"]
        coded = receipts[0].coded["full"]
        assert (coded.codec, coded.lossless) == ("halves", False)
        assert coded.plain_bytes == 2 * coded.wire_bytes == 13 * FULL.block_bytes * 2
        for layer in FULL.layers:
            assert np.array_equal(target.rows("full", layer)[:, 1::2], source.rows("full", layer)[:, 1::2])
            assert not target.rows("full", layer)[:, ::2].any()


async def test_one_that_would_wait_for_its_own_worker() -> None:
    """It is told so, in the workers of both ends, and the transfer goes on."""
    ends: list[Outgoing | Incoming] = []
    told: list[str] = []

    def waits(made: bytes) -> bytes:
        for end in ends:
            calls: list[Callable[[], object]] = [end.abort_nowait, partial(end.wait_committed, 5.0)]
            if isinstance(end, Outgoing):
                calls += partial(end.ready, "full", 0), partial(end.attach, 7)
            for call in calls:
                try:
                    call()
                except WrongThread as error:
                    told.append(str(error))
        return made

    def encode(shape: Cell, data: memoryview) -> bytes:
        return waits(data[1::2].tobytes())

    def decode(shape: Cell, payload: memoryview, n: int) -> bytes:
        return waits(doubled(shape, payload, n))

    register_codec("waits", 200, encode, decode, lossless=False)
    async with joined() as pair:
        offer = manifest("waits", (FULL,))
        out, incoming = await granted(
            pair.link, pair.server, offer, of_numbers(offer), Caches(offer, seed=2), compression="waits"
        )
        ends += out, incoming
        ready_all(out)
        await asyncio.gather(out.committed(), incoming.committed())
    wanted = {f"this would wait for the worker that runs codec 'waits', {does} " for does in ("encode", "decode")}
    assert {text.partition("(")[0] for text in told} == wanted


async def test_one_that_only_the_sender_knows() -> None:
    async with joined() as pair:
        register_codec("late", 200, halves, doubled, lossless=False)  # the server's HELLO was without it
        offer = manifest("late", (FULL,))
        with pytest.raises(CodecMismatch, match=r"does not take codec 'late'.*it does not know it") as caught:
            await pair.link.offer(offer, Caches(offer).at(), compression="late")
        assert caught.value.hint == "it takes bf16, delta, fp8, int2, int4, int8, zstd"
        await kit.still_works(pair)
        again = await pair.client.connect("127.0.0.1", pair.server.port)
        assert (await transferred(again, pair, offer, compression="late"))[2][0].coded["full"].codec == "late"
        await again.close()


async def test_two_by_the_same_name() -> None:
    register_codec("mine", 200, halves, doubled, lossless=False)
    async with joined() as pair:
        del registry._codecs["mine"]
        register_codec("mine", 201, halves, doubled, lossless=False)
        offer = manifest("mine", (FULL,))
        with pytest.raises(CodecMismatch, match="it has another one by that name or id"):
            await pair.link.offer(offer, Caches(offer).at(), compression="mine")
        await kit.still_works(pair)


# --- what cannot be ---------------------------------------------------------------------------------------------------

IMPOSSIBLE: dict[str, tuple[Any, str]] = {
    "unknown": ("lz4", "there is no codec 'lz4'"),
    "unknown for a kind that is not there": ({"window": "lz4"}, "there is no codec 'lz4'"),
    "a state": ("int8", "codec 'int8' does not take group 'recurrent', which is recurrent of fp32"),
    "a dtype": ({"full": "bf16"}, "codec 'bf16' does not take group 'full', which is full of bf16"),
    "no kind": ({"Full": "int8"}, "'Full' is no kind of group"),
    "a number": (7, "compression is 7"),
    "a list": (["zstd"], "compression is"),
    "no name": ({"full": 3}, "compression is"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
async def test_what_cannot_be_is_said_before_anything_is_sent(what: str) -> None:
    compression, words = IMPOSSIBLE[what]
    offer = manifest("impossible", (FULL, RECURRENT))
    async with joined() as pair:
        with pytest.raises(ConfigError, match=words) as caught:
            await pair.link.offer(offer, Caches(offer).at(), compression=compression)
        if what in ("a state", "a dtype"):
            assert "compression={" in str(caught.value.hint)
        assert not pair.link.busy
        await transferred(pair.link, pair, offer)  # the request id is free
        await kit.still_works(pair)


@pytest.mark.parametrize("compression", ["lz4", {"full": "lz4"}])
async def test_a_configuration_that_names_no_codec(compression: Any) -> None:
    with pytest.raises(ConfigError, match="there is no codec 'lz4'"):
        await kit.start(Config(compression=compression))


async def test_a_receiver_that_takes_nothing_lossy(tmp_path: Path) -> None:
    offer = manifest("lossy", (FULL, WINDOW))
    with logged(tmp_path / "audit.jsonl") as log:
        async with await kit.serve(policy=Policy(lossy=False), audit=log.audit) as server, await kit.start() as client:
            pair = Pair(server, client, await client.connect("127.0.0.1", server.port))
            for compression in ("int8", {"full": "int8"}):
                with pytest.raises(CodecMismatch, match="codec 'int8', of group 'full': it takes nothing lossy"):
                    await pair.link.offer(offer, Caches(offer).at(), compression=compression)
            assert not log.events("offer")
            source, target, _ = await transferred(pair.link, pair, offer, compression="zstd")
            same(source, target)
            # What it sends itself may be lossy.
            back, memory = manifest("back"), (of_numbers(manifest("back")), Caches(manifest("back"), seed=2))
            out, incoming = await granted(pair.back, client, back, *memory, compression="int8")
            ready_all(out)
            await out.committed()
            assert (await incoming.committed()).coded["full"].codec == "int8"


async def test_a_machine_without_libzstd(monkeypatch: pytest.MonkeyPatch) -> None:
    offer = manifest("no zstd", (FULL,))
    async with await kit.serve() as server, await kit.start() as client:
        monkeypatch.setattr(zstdlib, "find", lambda: None)
        pair = Pair(server, client, await client.connect("127.0.0.1", server.port))  # neither says that it has one
        with pytest.raises(ConfigError, match="codec 'zstd' needs a libzstd, and none was found"):
            await pair.link.offer(offer, Caches(offer).at(), compression="zstd")
        source, target, receipts = await transferred(pair.link, pair, offer)
        same(source, target)
        assert receipts[0].coded == {}
        monkeypatch.undo()
        with pytest.raises(
            CodecMismatch, match="codec 'zstd', of group 'full': it does not know it, or cannot have it"
        ):
            await pair.link.offer(offer, Caches(offer).at(), compression="zstd")


# --- what is written down ---------------------------------------------------------------------------------------------


async def test_the_audit_log_says_what_was_done(tmp_path: Path) -> None:
    with logged(tmp_path / "sender.jsonl") as sender, logged(tmp_path / "receiver.jsonl") as receiver:
        async with (
            await kit.serve(config=SEALED, audit=receiver.audit) as server,
            await kit.start(SEALED, audit=sender.audit) as client,
        ):
            pair = Pair(server, client, await client.connect("127.0.0.1", server.port))
            offer = manifest("lossy", FIVE)
            _, _, (sent, _) = await transferred(pair.link, pair, offer, compression=BY_KIND | {"window": "off"})
            await transferred(pair.link, pair, manifest("plain", FIVE), compression="off")
        sizes = [sum(getattr(it, name) for it in sent.coded.values()) for name in ("plain_bytes", "wire_bytes")]
        for log in (sender, receiver):
            _check_log(log, sizes)


def _check_log(log: Log, sizes: list[int]) -> None:
    offers, commits = log.events("offer"), log.events("commit")
    assert [event["codecs"] for event in offers] == ["int8 (lossy), int4 (lossy), zstd", ""]
    assert [event["codecs"] for event in commits] == ["int8 (lossy), int4 (lossy), zstd", ""]
    assert [[event["coded_bytes"], event["wire_bytes"]] for event in commits] == [sizes, [0, 0]]


# --- losses and restarts ----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("lossy", [False, True], ids=["lossless", "lossy"])
async def test_connections_that_are_lost_in_the_middle(config: Config, lossy: bool) -> None:
    compression = {"full": "int8", "window": "int4", "mla": "int8", "recurrent": "zstd", "conv": "zstd"}
    chosen = compression if lossy else LOSSLESS
    async with kit.through_proxy(config) as (pair, proxy):
        offer = manifest("lost", FIVE, attachment=True)
        source, target = of_numbers(offer), Caches(offer, seed=2)
        out, incoming = await granted(pair.link, pair.server, offer, source, target, compression=chosen)
        segments = offer.segments()
        for number, (name, layer) in enumerate(segments):
            out.ready(name, layer)
            if number % 3 == 1:
                await incoming.wait_layer(name, layer)
                proxy.reset()
        out.attach({"token": 7})
        sent, got = await out.committed(), await incoming.committed()
        as_coded(source, target, (got, got), chosen)
        assert set(sent.coded) == set(got.coded)
        assert all(sent.coded[name].plain_bytes >= it.plain_bytes for name, it in got.coded.items())
        assert incoming.attachment == {"token": 7}
        await kit.still_works(pair)


@dataclass
class Restarted:
    """A transfer whose receiver has restarted in the middle."""

    source: Caches
    target: Caches
    receipts: tuple[Receipt, Receipt]


@asynccontextmanager
async def restarted(compression: Any, policy: Policy) -> AsyncIterator[Restarted]:
    """`policy`: that of the receiver's next life."""
    first = await kit.serve(config=SEALED)
    with proxied(first.port) as proxy:
        async with await kit.start(SEALED) as client:
            link = await client.connect("127.0.0.1", proxy.port)
            offer = manifest("restarted", (FULL, MLA))
            source, target = of_numbers(offer), Caches(offer, seed=2)
            out, incoming = await granted(link, first, offer, source, Caches(offer), compression=compression)
            out.ready("full", 0)
            await incoming.wait_layer("full", 0)
            proxy.cut()
            await first.close()
            await kit.eventually(lambda: link.suspended, "the sender to notice")
            async with await kit.serve(config=SEALED, policy=policy) as second:
                proxy.target = second.port
                proxy.heal()
                incoming = await second.accept()
                await incoming.grant(target.at())
                for name, layer in offer.segments()[1:]:
                    out.ready(name, layer)
                yield Restarted(source, target, (await out.committed(), await incoming.committed()))


async def test_another_life_of_the_receiver_takes_the_same() -> None:
    async with restarted({"full": "int8", "mla": "zstd"}, Policy()) as there:
        as_coded(there.source, there.target, there.receipts, {"full": "int8", "mla": "zstd"})


async def test_another_life_of_the_receiver_takes_less() -> None:
    """What it does not take any more goes as it is."""
    async with restarted({"full": "int8", "mla": "zstd"}, Policy(lossy=False)) as there:
        same(there.source, there.target)
        as_coded(there.source, there.target, there.receipts, {"mla": "zstd"})
