"""Two nodes joined over loopback, caches to move between them, and what must be left when they close."""

import asyncio
import atexit
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvwire import (
    Authority,
    Config,
    DType,
    GroupKind,
    GroupSpec,
    Identity,
    Incoming,
    Link,
    Manifest,
    ModelTag,
    Node,
    Outgoing,
    Pages,
    Receipt,
    Slots,
    Subject,
)
from tests.net.proxy import Proxy, proxied

POISON = 0xA5
PATIENCE_S = 20.0
TOKENS = 200  # 13 blocks of 16, the last one partial; 4 of them touch the window
MODEL = ModelTag("test-model", "r1")

FULL = GroupSpec.attention("full", range(2), DType.BF16, block_tokens=16, heads=2, head_dim=32)
WINDOW = GroupSpec.attention("window", (2, 3), DType.FP16, block_tokens=16, heads=2, head_dim=32, window=40)
MLA = GroupSpec.mla("mla", (4, 5), DType.BF16, block_tokens=16, latent=72)
RECURRENT = GroupSpec.state("recurrent", GroupKind.RECURRENT, (6, 7), DType.FP32, (4, 32, 32))
CONV = GroupSpec.state("conv", GroupKind.CONV, (6, 7), DType.BF16, (96, 3))
FIVE = (FULL, WINDOW, MLA, RECURRENT, CONV)

Rows = NDArray[np.uint8]


def manifest(
    request_id: str = "r1", specs: Sequence[GroupSpec] = (FULL,), tokens: int = TOKENS, **more: Any
) -> Manifest:
    return Manifest.of(request_id, more.pop("model", MODEL), tokens, specs, **more)


class Caches:
    """One side's memory for a manifest: scattered slots, random bytes at the sender, poison at the receiver."""

    def __init__(self, offer: Manifest, *, filled: bool = False, seed: int = 1, spare: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.manifest = offer
        self.pages: dict[str, Pages] = {}
        self.slot_of: dict[str, dict[int, int]] = {}
        for group in offer.groups:
            spec, count = group.spec, len(group.blocks)
            pages = Pages.empty(spec, count + spare)
            slots = rng.permutation(pages.slots)[:count]
            self.pages[spec.name] = pages
            self.slot_of[spec.name] = {group.blocks.start + i: int(slot) for i, slot in enumerate(slots)}
            for layer in spec.layers:
                rows = pages.array(layer)
                rows[:] = rng.integers(0, 256, rows.shape, np.uint8) if filled else POISON

    def at(self, only: Mapping[str, Iterable[int]] | None = None) -> dict[str, Slots]:
        """Source or placement: every block, or by group those that `only` names."""
        chosen = self.slot_of if only is None else only
        return {
            name: self.pages[name].at([self.slot_of[name][block] for block in blocks], list(blocks))
            for name, blocks in ((name, list(blocks)) for name, blocks in chosen.items())
        }

    def rows(self, group: str, layer: int, blocks: Iterable[int] | None = None) -> Rows:
        """The bytes of these blocks of a layer, a row each."""
        slots = self.slot_of[group]
        return self.pages[group].array(layer)[[slots[block] for block in (slots if blocks is None else blocks)]]

    def untouched(self, but: Mapping[str, Iterable[int]] | None = None) -> bool:
        """Whether every byte outside the slots of `but` (by group, blocks) is still poison."""
        for name, pages in self.pages.items():
            kept = np.ones(pages.slots, np.bool_)
            kept[[self.slot_of[name][block] for block in (but or {}).get(name, ())]] = False
            for layer in pages.spec.layers:
                if not (pages.array(layer)[kept] == POISON).all():
                    return False
        return True

    def check_free(self) -> None:
        """LeaseHeld where a transfer still holds anything."""
        for pages in self.pages.values():
            pages.check_free(range(pages.slots))


def same(source: Caches, target: Caches, only: Mapping[str, Iterable[int]] | None = None) -> None:
    """Every block that was wanted arrived, and nothing else was written."""
    wanted = {name: list(blocks) for name, blocks in (target.slot_of if only is None else only).items()}
    for name, blocks in wanted.items():
        for layer in source.pages[name].spec.layers:
            assert np.array_equal(source.rows(name, layer, blocks), target.rows(name, layer, blocks)), (name, layer)
    assert target.untouched(wanted)


def digest(caches: Caches) -> str:
    """Of every block on offer."""
    found = hashlib.sha256()
    for name, layer in caches.manifest.segments():
        found.update(caches.rows(name, layer).tobytes())
    return found.hexdigest()


@dataclass
class Pair:
    """Two nodes and a link from `client` to `server`."""

    server: Node
    client: Node
    link: Link

    @property
    def back(self) -> Link:
        """The same link, as the server has it."""
        (link,) = self.server.links
        return link

    def counters(self) -> dict[str, int]:
        """What transfers leave behind while the link stays up; zeros, or it leaks."""
        found: dict[str, int] = {}
        for node in (self.server, self.client):
            found["watched"] = found.get("watched", 0) + len(node._watched) - len(node._links)
            for link in node.links:
                session = link._session
                tables: tuple[Sized, ...] = (link._exchange.outgoing, link._exchange.incoming, link._exchange.offers)
                tables += (session._outgoing, session._incoming)
                found["in tables"] = found.get("in tables", 0) + sum(len(table) for table in tables)
                found["queued"] = found.get("queued", 0) + link.engine_link.queued_runs
        return found

    async def settled(self) -> None:
        """Wait until no transfer has left anything on either side."""
        await eventually(lambda: not any(self.counters().values()), self.counters)


KEYS = "KVWIRE_TEST_KEYS"
"""Environment variable: the directory of this run's keys, which the processes of a test share."""


def key_directory(tenant: str = "acme", role: str = "both", region: str = "eu-west", name: str = "host") -> Path:
    """Where an identity under this run's CA lies; it is made when it is first asked for."""
    if KEYS not in os.environ:
        directory = tempfile.mkdtemp(prefix="kvwire-test-keys-")
        atexit.register(shutil.rmtree, directory)
        os.environ[KEYS] = directory
        Authority.create(Path(directory) / "ca")
    root, subject = Path(os.environ[KEYS]), Subject(tenant, role, region, name)
    where = root / "-".join((tenant, role, region, name))
    if not where.exists():
        Authority.load(root / "ca").issue(where, subject)
    return where


def keys(*names: str, **named: str) -> Identity:
    """The identity in `key_directory`, which takes the same."""
    return Identity.load(key_directory(*names, **named))


def identified(config: Config | None, more: dict[str, Any]) -> dict[str, Any]:
    """What a node gets besides its configuration: an identity, unless it is plain or has one."""
    return more if (config or Config()).plain or "identity" in more else more | {"identity": keys()}


async def serve(host: str = "127.0.0.1", port: int = 0, config: Config | None = None, **more: Any) -> Node:
    """`Node.serve`, with an identity where none is named."""
    return await Node.serve(host, port, config, **identified(config, more))


async def start(config: Config | None = None, **more: Any) -> Node:
    """`Node.start`, with an identity where none is named."""
    return await Node.start(config, **identified(config, more))


@asynccontextmanager
async def joined(
    server: Config | None = None, client: Config | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Pair]:
    """A pair; on the way out nothing of it may be left: no task, no transfer, no watcher."""
    tasks = asyncio.all_tasks()
    serving = await serve(host, 0, server or Config(lanes=2))
    dialling = await start(client or Config(lanes=2))
    try:
        yield Pair(serving, dialling, await dialling.connect(host, serving.port))
    finally:
        links = [*dialling.links, *serving.links]
        await dialling.close()
        await serving.close()
    assert not any(link.engine_link.memory_bytes for link in links)
    for node in (serving, dialling):
        assert not node.links
        assert not node._watched
        assert not node._tasks
    await eventually(lambda: asyncio.all_tasks() <= tasks, lambda: asyncio.all_tasks() - tasks)


@asynccontextmanager
async def through_proxy(config: Config | None = None, **more: Any) -> AsyncIterator[tuple[Pair, Proxy]]:
    """A server, a client, and a link between them that goes through a proxy. `more`: what the server gets besides."""
    config = config or Config(lanes=2)
    async with await serve("127.0.0.1", 0, config, **more) as server, await start(config) as client:
        with proxied(server.port) as proxy:
            yield Pair(server, client, await client.connect("127.0.0.1", proxy.port)), proxy


async def eventually(condition: Callable[[], object], what: object) -> None:
    """Wait for something that the other side, or a thread, does by itself. `what` may be a function."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, what() if callable(what) else what
        await asyncio.sleep(0.001)


async def offered(
    link: Link, node: Node, offer: Manifest, source: Caches, **more: Any
) -> tuple[asyncio.Task[Outgoing], Incoming]:
    """An offer over `link`, and how it comes up at `node`."""
    task = asyncio.create_task(link.offer(offer, source.at(), **more))
    return task, await node.accept()


async def granted(
    link: Link, node: Node, offer: Manifest, source: Caches, target: Caches, **more: Any
) -> tuple[Outgoing, Incoming]:
    """A transfer of everything, granted, of which nothing is ready yet."""
    task, incoming = await offered(link, node, offer, source, **more)
    await incoming.grant(target.at())
    return await task, incoming


def ready_all(out: Outgoing) -> None:
    for name, layer in out.manifest.segments():
        if out.granted[name]:
            out.ready(name, layer)


async def half_sent(pair: Pair, offer: Manifest) -> tuple[Outgoing, Incoming, Caches, Caches]:
    """A transfer of which every second layer has landed."""
    source, target = Caches(offer, filled=True), Caches(offer)
    out, incoming = await granted(pair.link, pair.server, offer, source, target)
    segments = offer.segments()[::2]
    for name, layer in segments:
        out.ready(name, layer)
    for name, layer in segments:
        await incoming.wait_layer(name, layer)
    return out, incoming, source, target


def ready_rest(out: Outgoing) -> None:
    """The layers that `half_sent` left."""
    for name, layer in out.manifest.segments()[1::2]:
        out.ready(name, layer)


async def finish(out: Outgoing, incoming: Incoming, source: Caches, target: Caches) -> None:
    """The other half of what `half_sent` began, to the end."""
    ready_rest(out)
    await out.committed()
    await incoming.committed()
    same(source, target)
    source.check_free()
    target.check_free()


async def move(link: Link, node: Node, request_id: str, seed: int = 1) -> tuple[Receipt, Receipt]:
    """One small transfer from `link` to `node`, checked."""
    offer = manifest(request_id, FIVE, 50)
    source, target = Caches(offer, filled=True, seed=seed), Caches(offer, seed=seed + 1)
    out, incoming = await granted(link, node, offer, source, target)
    ready_all(out)
    receipts = await out.committed(), await incoming.committed()
    same(source, target)
    source.check_free()
    target.check_free()
    return receipts


async def still_works(pair: Pair) -> None:
    """Whatever went wrong before: nothing is left of it, and the link carries the next transfer both ways."""
    await pair.settled()
    await move(pair.link, pair.server, "further")
    await move(pair.back, pair.client, "and back")
    await pair.settled()
