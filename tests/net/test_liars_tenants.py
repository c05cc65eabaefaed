"""A peer of one tenant that asks for what is another's, on the same node: the answer is that of what never was."""

import secrets
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kvwire import OfferRefused, wire
from kvwire.wire import schema
from kvwire.wire.preamble import join_bytes
from tests.net import kit
from tests.net.kit import Caches
from tests.net.liar import Liar, liar, taken
from tests.net.sealed import join, peer_of, rest

pytestmark = pytest.mark.usefixtures("nothing_left")

NOBODY = bytes(16)


@dataclass
class Scene:
    """A liar of acme's; of globex's: a transfer that is under way, one that is committed, and one that was refused."""

    liar: Liar
    under_way: int
    committed: int
    refused: int

    @property
    def link_id(self) -> bytes:
        """Globex's."""
        return self.liar.honest._session.link_id

    async def asks(self, link_id: bytes, transfer: int) -> str:
        await self.liar.say(schema.Ask(link_id, transfer))
        return (await self.liar.peer.message(schema.Answer)).outcome

    async def refusal(self, first: bytes) -> tuple[bytes, str]:
        """What a lane that says this first gets to see."""
        with await join(self.liar.node.port, first) as sock:
            return await rest(sock)


@asynccontextmanager
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with liar(tmp_path, plain=False) as there:
        await (await there.half("whole"))()  # number 5, behind two that were refused
        finish = await there.half("under way")
        yield Scene(there, 7, 5, 1)
        there.memory.check()
        await finish()


async def test_what_became_of_it(tmp_path: Path) -> None:
    async with scene(tmp_path) as there:
        asked = [(there.link_id, number) for number in (there.committed, there.under_way, there.refused, 99)]
        asked += [(NOBODY, 5), (there.liar.peer.session.link_id, 5)]
        assert {await there.asks(*each) for each in asked} == {"unknown"}


async def test_its_link(tmp_path: Path) -> None:
    """A HELLO that names it, with the life of globex's process too, gets what one gets that names no link at all."""
    async with scene(tmp_path) as there:
        boot_id = there.liar.honest._session._boot_id
        said: list[list[type[schema.Message]]] = []
        for link_id in (there.link_id, NOBODY):
            async with peer_of(there.liar.node, kit.keys(name="liar"), link_id=link_id, boot_id=boot_id) as peer:
                await peer.say()
                done = await peer.hear(wire.HelloDone)
                assert isinstance(done, wire.HelloDone)
                assert done.peer.link_id not in (there.link_id, NOBODY)
                await peer.say()
                await peer.tickets(2)
                await peer.say(schema.encode(schema.Resume(struct.pack("<Q", there.under_way))))
                said.append([type(message) for message in await peer.messages()])
        assert said[0] == said[1]
        assert said[0][-1] is schema.Goodbye  # it was no resumption, and a RESUME had no place there
        assert not there.liar.honest.suspended
        downs = there.liar.log.events("link_down")
        assert [down["reason"] for down in downs] == ["a resume where no link was lost"] * 2


async def test_its_tickets(tmp_path: Path) -> None:
    """Of a lane that globex could open now: also with the ticket's random, the join secret is missing."""
    async with scene(tmp_path) as there:
        link = next(link for link in there.liar.node.links if link._session.link_id == there.link_id)
        random = secrets.token_bytes(32)
        lane, incarnation = link._session.issue_ticket(time.monotonic(), random)
        mine = there.liar.peer.session._join_secret
        seen = {
            await there.refusal(join_bytes(link_id, number, incarnation, bytes(32), random, mine))
            for link_id in (there.link_id, NOBODY)
            for number in (lane, 0, 63)
        }
        assert seen == {(b"", "eof")}
        assert link._session.tickets_out(time.monotonic()) == 1


async def test_its_transfers_by_number(tmp_path: Path) -> None:
    """On its own link the numbers are its own: what was never offered there is named so, whatever others have."""
    async with scene(tmp_path) as there:
        (incoming, lane) = await there.liar.granted()
        before = there.liar.memory.bytes.copy()
        for number in (there.under_way, 99):  # a third one would end the link
            await lane.say(lane.frame("data", number, 0, 0, b"\x5a" * 53248))
            closed = await there.liar.peer.hear(wire.LaneClosed)
            assert isinstance(closed, wire.LaneClosed)
            assert closed.reason == "a cell of a transfer that was never granted"
            if number == 99:
                break
            lane = await there.liar.lane()
        assert (there.liar.memory.bytes == before).all()
        assert incoming.progress == (0, 5)


async def test_prefixes(tmp_path: Path) -> None:
    """Of the hashes of blocks that globex has on the node the wire says what it says of any others.

    Which blocks are granted is the application's word (docs/security.md); kvwire has no index of them.
    """
    known, other = ({"full": tuple(bytes([first + at]) * 16 for at in range(13))} for first in (0, 100))
    async with scene(tmp_path) as there:
        me = there.liar.peer
        theirs = kit.manifest("with hashes", hashes=known)
        offering, held = await kit.offered(there.liar.honest, there.liar.node, theirs, Caches(theirs, filled=True))
        said = []
        for name, hashes in (("known", known), ("other", other)):
            before = len(me.all_said)
            manifest = kit.manifest(name, hashes=hashes)
            me.session.offer(time.monotonic(), manifest, timeout_s=60, deadline_s=60, klass=1)
            await me.say()
            incoming = await taken(there.liar.node, name)
            await incoming.refuse()
            await me.hear(wire.Refused)
            await there.liar.answers()
            said.append(
                [replace(it, transfer=0) if isinstance(it, schema.Refuse) else it for it in me.said_since(before)]
            )
        assert said[0] == said[1]
        await held.refuse()
        with pytest.raises(OfferRefused):
            await offering
