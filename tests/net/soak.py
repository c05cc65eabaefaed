"""A small fleet under load for as long as one likes: models of every kind, links over proxies that never leave them in
peace, transfers that are given up on either side; every byte that is committed is compared, every slot accounted for.

What happens is drawn from a seed; when it happens is up to the machine.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from kvwire import (
    Closed,
    Config,
    GroupKind,
    GroupSpec,
    Incoming,
    KvwireError,
    Link,
    Manifest,
    ModelTag,
    Node,
    Outgoing,
    Pages,
    Slots,
)
from kvwire.cli.models.presets import PRESETS
from tests.net import kit
from tests.net.kit import POISON
from tests.net.proxy import Proxy, Way

MODELS = ("llama-3-70b", "deepseek-v3", "mimo-v2-flash", "nemotron-h-8b", "case-study-1t")
"""Full attention, MLA, sliding window, recurrent and convolution states, and mixtures of them."""
LAYERS, EXTENT, WINDOW = 2, 2, 128
"""What is left of a model: layers of a group, the first axis of a part that is not its tokens, tokens of a window."""
TOKENS, SLOTS = 800, 128
WORKERS = 8
CONFIG = Config(lanes=3, resume_timeout_s=5.0, offer_timeout_s=10.0, transfer_timeout_s=60.0, connect_timeout_s=5.0)
Held = dict[str, dict[int, int]]
"""By group: the slot of each block."""


def scaled(spec: GroupSpec) -> GroupSpec:
    """The same kind of cache, small."""
    parts = []
    for part in spec.parts:
        free = [axis for axis in range(len(part.shape)) if axis != part.token_axis]
        small = min(EXTENT, part.shape[free[0]]) if len(free) > 1 else part.shape[free[0]]
        shape = tuple(small if axis == free[0] else extent for axis, extent in enumerate(part.shape))
        parts.append(replace(part, shape=shape))
    return replace(spec, layers=spec.layers[:LAYERS], parts=tuple(parts), window=min(spec.window, WINDOW))


SPECS = {name: [scaled(spec) for spec in PRESETS[name].specs()] for name in MODELS}


class Pool:
    """A node's memory for one model, its slots handed out as an engine does: used again and again."""

    def __init__(self, specs: Iterable[GroupSpec]) -> None:
        self.pages = {spec.name: Pages.empty(spec, SLOTS) for spec in specs}
        self.free = {name: list(range(SLOTS)) for name in self.pages}
        self._given_back = asyncio.Condition()
        for pages in self.pages.values():
            for layer in pages.spec.layers:
                pages.array(layer).fill(POISON)

    async def take(self, offer: Manifest, rng: np.random.Generator) -> Held:
        """Slots for everything on offer; what was there before has been left alone since it was given back."""
        async with self._given_back:
            counts = {group.spec.name: len(group.blocks) for group in offer.groups}
            await self._given_back.wait_for(lambda: all(len(self.free[name]) >= n for name, n in counts.items()))
            held: Held = {}
            for group in offer.groups:
                free = self.free[group.spec.name]
                rng.shuffle(free)
                slots = [free.pop() for _ in range(len(group.blocks))]
                held[group.spec.name] = {group.blocks.start + i: slot for i, slot in enumerate(slots)}
            assert self.untouched(held), "written after the end of the transfer that had it"
            return held

    async def give_back(self, held: Held) -> None:
        """Nobody reads or writes it any more, so a lease says."""
        for name, slots in held.items():
            self.pages[name].check_free(slots.values())
            for layer in self.pages[name].spec.layers:
                self.pages[name].array(layer)[list(slots.values())] = POISON
        async with self._given_back:
            for name, slots in held.items():
                self.free[name] += slots.values()
            self._given_back.notify_all()

    def at(self, held: Held) -> dict[str, Slots]:
        return {name: self.pages[name].at(list(slots.values()), list(slots)) for name, slots in held.items() if slots}

    def rows(self, held: Held, name: str, layer: int, blocks: Iterable[int]) -> kit.Rows:
        return self.pages[name].array(layer)[[held[name][block] for block in blocks]]

    def fill(self, held: Held, rng: np.random.Generator) -> None:
        """With bytes that shrink, or with such that do not."""
        values = 16 if rng.random() < 0.5 else 256
        for name, slots in held.items():
            for layer in self.pages[name].spec.layers:
                rows = self.pages[name].array(layer)
                rows[list(slots.values())] = rng.integers(0, values, (len(slots), rows.shape[1]), np.uint8)

    def untouched(self, held: Held) -> bool:
        return all(
            bool((self.rows(held, name, layer, slots) == POISON).all())
            for name, slots in held.items()
            for layer in self.pages[name].spec.layers
        )

    def check_whole(self) -> None:
        """Every slot has come back, and no lease holds one."""
        for name, pages in self.pages.items():
            assert sorted(self.free[name]) == list(range(SLOTS)), name
            pages.check_free(range(SLOTS))
            pages.close()


@dataclass
class Tally:
    committed: Counter[str] = field(default_factory=Counter)
    """By model."""
    bytes: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    """Transfers that were not committed, by what their sender was told."""
    troubles: Counter[str] = field(default_factory=Counter)
    links: int = 0
    """Made, those in the place of lost ones too."""
    resent: int = 0
    duplicates: int = 0
    coded: int = 0
    """Transfers of which cells went through a codec."""


class Route:
    """One link, over a proxy of its own, made anew whenever it is lost."""

    def __init__(self, client: Node, server: Node, proxy: Proxy, tally: Tally) -> None:
        self.client, self.server, self.proxy, self._tally = client, server, proxy, tally
        self.link: Link | None = None

    async def keep(self) -> None:
        while True:
            try:
                self.link = await self.client.connect("127.0.0.1", self.proxy.port)
            except KvwireError:
                await asyncio.sleep(0.1)
                continue
            self._tally.links += 1
            await self.link.wait_closed()

    def ends(self, back: bool) -> tuple[Link, Node, Node] | None:
        """The link as the sender has it, sender and receiver; None while there is none."""
        if self.link is None or self.link.closed:
            return None
        if not back:
            return self.link, self.client, self.server
        same = self.link._session.link_id
        for link in self.server.links:
            if link._session.link_id == same and not link.closed:
                return link, self.server, self.client
        return None


class Soak:
    def __init__(self, seed: int, routes: list[Route], tally: Tally) -> None:
        self.seed, self.routes, self.tally = seed, routes, tally
        self.nodes = list({id(node): node for route in routes for node in (route.client, route.server)}.values())
        self.pools = {(node, name): Pool(SPECS[name]) for node in self.nodes for name in MODELS}
        self._arrivals: dict[str, asyncio.Future[Incoming]] = {}
        self.over = asyncio.Event()

    async def run(self, seconds: float) -> None:
        """Everything at once, for so long; then what is under way is let end in peace."""
        keeping = [asyncio.create_task(route.keep()) for route in self.routes]
        keeping += [asyncio.create_task(self._dispatch(node)) for node in self.nodes]
        troubling = [asyncio.create_task(self._trouble(number)) for number in range(len(self.routes))]
        working = [asyncio.create_task(self._work(number)) for number in range(WORKERS)]
        try:
            done, _ = await asyncio.wait(
                keeping + troubling + working, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
                raise AssertionError(f"{task} has ended by itself")
            self.over.set()
            await asyncio.gather(*troubling)
            await asyncio.gather(*working)
        finally:
            for task in keeping + troubling + working:
                task.cancel()
            await asyncio.wait(keeping + troubling + working)

    # --- transfers ------------------------------------------------------------------------------------------------

    async def _dispatch(self, node: Node) -> None:
        while True:
            incoming = await node.accept()
            arrival = self._arrivals.get(incoming.manifest.request_id)
            if arrival is not None and not arrival.done():
                arrival.set_result(incoming)
            else:
                await incoming.refuse("nobody waits for it any more")

    async def _work(self, worker: int) -> None:
        rng, number = np.random.default_rng((self.seed, worker)), 0
        while not self.over.is_set():
            number += 1
            ends = self.routes[int(rng.integers(len(self.routes)))].ends(back=bool(rng.random() < 0.3))
            if ends is None:
                await asyncio.sleep(0.05)
                continue
            await self._one(rng, f"{worker}-{number}", *ends)

    async def _one(self, rng: np.random.Generator, request_id: str, link: Link, sender: Node, receiver: Node) -> None:
        model = MODELS[int(rng.integers(len(MODELS)))]
        tokens = int(min(TOKENS, 1 + rng.exponential(TOKENS / 4)))
        attached = bool(rng.random() < 0.3)
        offer = Manifest.of(request_id, ModelTag(model), tokens, SPECS[model], attachment=attached)
        here, there = self.pools[sender, model], self.pools[receiver, model]
        source = await here.take(offer, rng)
        here.fill(source, rng)
        target = await there.take(offer, rng)
        wanted = target if rng.random() < 0.7 else without_prefix(target, offer, rng)
        self._arrivals[request_id] = asyncio.get_running_loop().create_future()
        transfers: list[Outgoing | Incoming] = []
        try:
            await self._move(rng, link, offer, here.at(source), there.at(wanted), transfers)
            self.tally.committed[model] += 1
        except KvwireError as error:
            self.tally.ended[type(error).__name__] += 1
        finally:
            self._arrivals.pop(request_id).cancel()
        incoming = next((it for it in transfers if isinstance(it, Incoming)), None)
        if incoming is not None:
            await self._end_of(incoming)
        self._compare(offer, (here, source), (there, target), wanted, incoming)
        await here.give_back(source)
        await there.give_back(target)

    async def _end_of(self, incoming: Incoming) -> None:
        """The receiver's side ends too, whatever became of the sender's."""
        try:
            async with asyncio.timeout(CONFIG.transfer_timeout_s + kit.PATIENCE_S):
                await incoming.committed()
        except KvwireError:
            pass
        assert incoming.state != "active"

    async def _move(
        self,
        rng: np.random.Generator,
        link: Link,
        offer: Manifest,
        source: dict[str, Slots],
        wanted: dict[str, Slots],
        transfers: list[Outgoing | Incoming],
    ) -> None:
        """A transfer up to its receipt, or what ended it; `transfers`: its two halves, as they come to be."""
        klass, fate = int(rng.integers(3)), float(rng.random())
        deadline_s = None if rng.random() < 0.8 else float(rng.exponential(0.5)) + 0.01
        compression = ("auto", "zstd", "off")[int(rng.integers(3))]
        making = link.offer(offer, source, klass=klass, deadline_s=deadline_s, compression=compression)
        offering = asyncio.create_task(making)
        arrival = self._arrivals[offer.request_id]
        try:
            await asyncio.wait((offering, arrival), return_when=asyncio.FIRST_COMPLETED)
            if arrival.done():
                incoming = arrival.result()
                if fate < 0.03:
                    with contextlib.suppress(Closed):
                        await incoming.refuse("not today")
                elif fate < 0.06:
                    offering.cancel()
                    await asyncio.wait((offering,))
                    raise Closed("cancelled")
                else:
                    with contextlib.suppress(Closed):  # over by now, as the sender hears
                        await incoming.grant(wanted)
                        transfers.append(incoming)
            out = await offering
        finally:
            if not offering.done():
                offering.cancel()
                await asyncio.wait((offering,))
        transfers.append(out)
        try:
            await self._send(rng, out, fate, transfers)
            receipt = await out.committed()
        finally:
            self.tally.resent += out._handle.resent_cells
            self.tally.coded += any(plain for plain, _ in out._handle.coded())
        assert receipt.transfer_id == out.transfer_id

    async def _send(
        self, rng: np.random.Generator, out: Outgoing, fate: float, transfers: list[Outgoing | Incoming]
    ) -> None:
        """Layer by layer, as prefill would; some are given up on the way, by one side or the other."""
        segments = [(name, layer) for name, layer in out.manifest.segments() if out.granted[name]]
        give_up = int(rng.integers(len(segments) + 1)) if fate < 0.2 else -1
        for number, (name, layer) in enumerate([*segments, ("", 0)]):
            if number == give_up:
                await transfers[int(rng.integers(len(transfers)))].abort("given up")
                return
            if name:
                await out.wait_ready(name, layer)
            if rng.random() < 0.2:
                await asyncio.sleep(float(rng.exponential(0.005)))
        if out.manifest.attachment:
            out.attach({"token": out.manifest.request_id})

    def _compare(
        self, offer: Manifest, sent: tuple[Pool, Held], got: tuple[Pool, Held], wanted: Held, incoming: Incoming | None
    ) -> None:
        """Committed: every byte that was wanted. Else: nothing that was not sent. And nothing beside it, ever."""
        (here, source), (there, target) = sent, got
        whole = incoming is not None and incoming.state == "committed"
        for name, layer in offer.segments():
            blocks = list(wanted.get(name, {})) if incoming is not None else []
            others = [block for block in target[name] if block not in blocks]
            assert (there.rows(target, name, layer, others) == POISON).all()
            ours, theirs = here.rows(source, name, layer, blocks), there.rows(target, name, layer, blocks)
            same = ours == theirs
            assert (same if whole else same | (theirs == POISON)).all(), (offer.request_id, name, layer)
            self.tally.bytes += ours.size if whole else 0
        if whole and incoming is not None:
            assert incoming._handle is not None
            self.tally.duplicates += incoming._handle.duplicates
            assert incoming.attachment == ({"token": offer.request_id} if offer.attachment else None)

    # --- trouble --------------------------------------------------------------------------------------------------

    async def _trouble(self, number: int) -> None:
        rng, route = np.random.default_rng((self.seed, 1000 + number)), self.routes[number]
        proxy = route.proxy
        ways: tuple[Way, Way] = ("up", "down")
        while not self.over.is_set():
            what = (
                "lane",
                "lane",
                "control",
                "cut",
                "stall one",
                "stall",
                "slow",
                "slices",
                "half",
                "hole",
                "bit",
                "close",
            )
            chosen, up_or_down = what[int(rng.integers(len(what)))], ways[int(rng.integers(2))]
            self.tally.troubles[chosen] += 1
            with contextlib.suppress(IndexError):  # there is no lane just now
                match chosen:
                    case "lane":
                        await asyncio.to_thread(proxy.reset_one, "lane", rng)
                    case "control":
                        await asyncio.to_thread(proxy.reset, "control", None, up_or_down)
                    case "cut":
                        await asyncio.to_thread(proxy.cut)
                    case "stall one":
                        await asyncio.to_thread(proxy.stall_one, "lane", up_or_down)
                    case "stall":
                        await asyncio.to_thread(proxy.stall)
                    case "slow":
                        await asyncio.to_thread(proxy.fault, "throttle", "lane", up_or_down, amount=2e6)
                    case "slices":
                        await asyncio.to_thread(proxy.fault, "slice", None, up_or_down, amount=999)
                    case "half":
                        await asyncio.to_thread(proxy.half_close, up_or_down, "lane", 1)
                    case "hole":
                        await asyncio.to_thread(proxy.fault, "swallow", "lane", up_or_down, one=True)
                    case "bit":
                        await asyncio.to_thread(proxy.flip, "lane", up_or_down)
                    case "close" if route.link is not None and rng.random() < 0.2:
                        await route.link.close()
            await self._pause(float(rng.exponential(0.4)))
            await asyncio.to_thread(proxy.heal)
            await self._pause(float(rng.exponential(0.4)))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), seconds)


def without_prefix(held: Held, offer: Manifest, rng: np.random.Generator) -> Held:
    """What a receiver asks for that has the beginning already; windows and states go all or nothing."""
    found = {}
    for group in offer.groups:
        slots = list(held[group.spec.name].items())
        first = int(rng.integers(len(slots))) if group.spec.kind in (GroupKind.FULL, GroupKind.MLA) else 0
        found[group.spec.name] = dict(slots[first:])
    return found
