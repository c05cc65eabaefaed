"""How the two ends of a bench talk: over the same link that is measured, in attachments of offers.

An offer of which nothing is granted but its attachment is a message. So there is one port, one hand-shake and one
place where versions meet, and whatever protects the link protects the conversation:

    client                                   server
    hello ...                                            round trips, timed
    order, with the shape of the KV cache
                                             refused | ready
    data, sent, stop                         data, sent
    received                                 received    what the sinks found
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import kvwire
from kvwire.cli.failure import Failure
from kvwire.cli.hosts.tasks import finish
from kvwire.cli.memory import KvMemory
from kvwire.cli.streams import printable

T = TypeVar("T")

PROTOCOL = "2"
"""Version of the conversation: the revision in the model tag of every offer."""
MODEL = kvwire.ModelTag("kvwire-bench", PROTOCOL)
DATA = "data"
"""What the request id of an offer begins with that is no message."""
WORDS: dict[str, dict[str, tuple[type, ...]]] = {
    "hello": {},
    "order": {},
    "refused": {},
    "ready": {
        **dict.fromkeys(("host", "cpu", "kernel", "congestion", "kvwire", "python", "crc32c", "cipher"), (str,)),
        **dict.fromkeys(("cores", "memory_bytes"), (int,)),
    },
    "stop": {},
    "sent": {
        **dict.fromkeys(("bytes", "transfers", "aborted"), (int,)),
        **dict.fromkeys(("seconds", "cpu_s", "coded_share"), (float,)),
        **dict.fromkeys(("tail_s", "coded_ratio"), (float, type(None))),
    },
    "received": {"transfers": (int,), "checked": (int,), "damage": (list,), "cpu_s": (float,)},
}
"""What there is to say, and what its value has to have where both ends rely on it."""
MOST_UNHEARD = 16
"""Messages of one word that wait to be heard; further ones are dropped."""
UNWIND_S = 0.2
"""What was done when the link ended has so long to say so."""
MOST = 1e18
"""Largest number in a message."""
ANSWER_S = 60.0
"""Longest wait for an answer: the other end may have gigabytes to fill or to check before it gives one."""

_NOTHING = (kvwire.GroupSpec.state("nothing", kvwire.GroupKind.RECURRENT, (0,), kvwire.DType.UINT8, (8,)),)

Heard = tuple[kvwire.Manifest, Any]


def _shown(value: Any) -> Any:
    """A value whose texts may be shown: the other end has chosen them, on a plain link whoever that is."""
    if isinstance(value, dict):
        return {name: _text_shown(field) for name, field in value.items()}
    return _text_shown(value)


def _text_shown(value: Any) -> Any:
    if isinstance(value, list):
        return [printable(item) if isinstance(item, str) else "?" for item in value]
    return printable(value) if isinstance(value, str) else value


class Channel:
    """One end of the conversation over `link`. Feed it every offer that comes over the link (`take`)."""

    def __init__(self, link: kvwire.Link) -> None:
        self.link = link
        self.on_data: Callable[[kvwire.Incoming], None] | None = None
        """What becomes of offers that are no messages; None: they are refused."""
        self._heard: dict[str, asyncio.Queue[Heard]] = {word: asyncio.Queue(MOST_UNHEARD) for word in WORDS}
        self._tasks: set[asyncio.Future[None]] = set()
        self._nothing = KvMemory(_NOTHING, 1)
        self._said = 0

    def take(self, incoming: kvwire.Incoming) -> None:
        """An offer has come over the link."""
        offer = incoming.manifest
        word = offer.request_id.partition("-")[0]
        if offer.model != MODEL:
            reason = f"this is {MODEL.name} {PROTOCOL}, and the offer is for {offer.model.name} {offer.model.revision}"
            self.spawn(incoming.refuse(reason))
        elif word == DATA and self.on_data is not None:
            self.on_data(incoming)
        elif word in WORDS:
            self.spawn(self._take_message(word, incoming))
        else:
            self.spawn(incoming.refuse("nothing of this kind was ordered"))

    async def _take_message(self, word: str, incoming: kvwire.Incoming) -> None:
        await incoming.grant({})
        await incoming.committed()
        if not self._heard[word].full():
            self._heard[word].put_nowait((incoming.manifest, incoming.attachment))

    async def say(self, word: str, value: Any = None, about: KvMemory | None = None) -> float:
        """Send a message; returns the seconds from its offer to the grant. `about`: a KV cache that it describes.

        `Failure` where the other end does not talk like this.
        """
        memory = about or self._nothing
        self._said += 1
        offer = kvwire.Manifest.of(f"{word}-{self._said}", MODEL, memory.tokens, memory.specs, attachment=True)
        begun = time.monotonic()
        try:
            async with asyncio.timeout(2 * ANSWER_S):
                outgoing = await self.link.offer(offer, memory.placement(), klass=0, timeout_s=ANSWER_S)
                granted = time.monotonic()
                outgoing.attach(value)
                await outgoing.committed()
        except kvwire.OfferRefused as error:
            raise Failure(f"this is no kvwire-bench of our version: {error}") from None
        except TimeoutError:
            if word == "hello":
                raise Failure("this is a kvwire node, but it did not answer as kvwire-bench does") from None
            raise Failure(f"no answer to {word} within {2 * ANSWER_S:.0f} s") from None
        return granted - begun

    async def hear(self, *words: str, within_s: float | None = ANSWER_S) -> tuple[str, Heard]:
        """The next message of one of these words: the word, the manifest it came with, its value.

        `Failure` if none comes in time.
        """
        waits = {asyncio.ensure_future(self._heard[word].get()): word for word in words}
        try:
            await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            for wait, word in waits.items():
                if wait.done():
                    manifest, value = wait.result()
                    self._check(word, value)
                    return word, (manifest, _shown(value))
            raise Failure(f"no word ({' or '.join(words)}) within {within_s:.0f} s")
        finally:
            await finish(*waits)

    def _check(self, word: str, value: Any) -> None:
        for name, kinds in WORDS[word].items():
            found = value.get(name) if isinstance(value, dict) else ...
            if type(found) not in kinds or (isinstance(found, int | float) and not 0 <= found <= MOST):
                raise Failure(f"a word of another version: {word} with a wrong {name}, {value!r:.80}")

    async def while_open(self, work: Awaitable[T]) -> T:
        """The result of `work`. `Failure`, and the work is cancelled, where the link ends before it."""
        task, closed = asyncio.ensure_future(work), asyncio.ensure_future(self.link.wait_closed())
        try:
            await asyncio.wait((task, closed), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():  # what was done when the link ended may still have to say so
                await asyncio.wait((task,), timeout=UNWIND_S)
            if self.link.closed and not (task.done() and task.exception() is None):
                raise Failure(f"gone: {await closed}")
            return await task
        finally:
            await finish(task, closed)

    def spawn(self, work: Awaitable[object]) -> None:
        """Does something that nobody waits for."""

        async def quietly() -> None:
            with contextlib.suppress(kvwire.KvwireError):  # withdrawn, or the link has ended: who waits will know
                await work

        task = asyncio.ensure_future(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
