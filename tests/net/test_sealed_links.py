"""What an authenticated peer may try on a sealed link of its own, and on those of others."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kvwire import Config, Link, Node, wire
from kvwire.wire import schema
from kvwire.wire.preamble import join_bytes
from tests.net import kit
from tests.net.kit import Caches, manifest
from tests.net.sealed import CONFIG, LANES, Log, Peer, join, logged, peer_of, rest

pytestmark = pytest.mark.usefixtures("nothing_left")


@dataclass
class Scene:
    """A node with an honest link, and its log."""

    node: Node
    link: Link
    log: Log

    async def is_well(self) -> None:
        """The honest link is as if nothing had been."""
        await kit.move(self.link, self.node, "honest")
        assert not self.link.suspended
        assert self.log.events("tag_failure") == []


@asynccontextmanager
async def scene(tmp_path: Path, config: Config = CONFIG) -> AsyncIterator[Scene]:
    with logged(tmp_path / "audit.jsonl") as log:
        async with await kit.serve(config=config, audit=log.audit) as node, await kit.start(CONFIG) as client:
            yield Scene(node, await client.connect("127.0.0.1", node.port), log)


async def greeted(peer: Peer) -> list[wire.Ticket]:
    """Say HELLO and FINISHED; the tickets that come with the answer."""
    await peer.say()
    await peer.hear(wire.HelloDone)
    await peer.say()
    return await peer.tickets(LANES)


# --- greeting ---------------------------------------------------------------------------------------------------------


async def test_nothing_is_done_before_finished(tmp_path: Path) -> None:
    """The dialler may have its lanes by then. What is offered to it waits."""
    async with scene(tmp_path) as there, peer_of(there.node) as peer:
        await peer.say()
        await peer.hear(wire.HelloDone)
        tickets = await peer.tickets(2)
        lane = await join(there.node.port, peer.session.use_ticket(tickets[0], bytes(32))[0])
        with lane:
            link = there.node.links[-1]
            await kit.eventually(lambda: link.lanes, "its lane")
            offer = manifest("early")
            offering = asyncio.create_task(link.offer(offer, Caches(offer).at()))
            await asyncio.sleep(0.05)
            assert not offering.done()
            assert not there.log.events("offer")
            await peer.say()  # FINISHED
            offered = await peer.hear(wire.Offered)
            assert isinstance(offered, wire.Offered)
            assert offered.manifest == offer
            offering.cancel()
        await there.is_well()


def edited(**other: object) -> Callable[[schema.Hello], schema.Hello]:
    return lambda hello: replace(hello, **other)  # type: ignore[arg-type]


HELLOS: dict[str, tuple[Callable[[schema.Hello], schema.Hello], str]] = {
    "another version": (edited(version=2), "a hello of version 2 after a preamble of version 1"),
    "plain frames": (edited(suites=["crc32c"]), "this side takes aes-256-gcm"),
    "no share": (edited(share=b""), "gives no secret"),
    "a share of zeros": (edited(share=bytes(32)), "gives no secret"),
    "a share of order 8": (
        edited(share=bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")),
        "gives no secret",
    ),
}


@pytest.mark.parametrize("hello", HELLOS)
async def test_a_hello_that_is_not_taken(hello: str, tmp_path: Path) -> None:
    edit, reason = HELLOS[hello]
    async with scene(tmp_path) as there:
        async with peer_of(there.node) as peer:
            await peer.say(schema.encode(edit(peer.session._hello)))
            goodbye = (await peer.messages())[-1]
            assert isinstance(goodbye, schema.Goodbye)
            assert (goodbye.code, reason in goodbye.reason) == ("protocol", True)
        assert len(there.node.links) == 1
        (last,) = there.log.events("link_refused")
        assert reason in last["reason"]
        await there.is_well()


async def test_somebody_else_s_hello(tmp_path: Path) -> None:
    """Said again on a connection of one's own, it leads to keys that only its author has."""
    async with (
        scene(tmp_path) as there,
        peer_of(there.node) as author,
        peer_of(there.node, kit.keys(name="b")) as thief,
    ):
        hello = author.session.data_to_send()
        await thief.say(hello)
        assert await thief.stream.read()  # HELLO, FINISHED and tickets; of no use
        await thief.say(schema.encode(schema.Finished(bytes(32))))
        assert isinstance((await thief.messages())[-1], schema.Goodbye)
        (last,) = there.log.events("link_refused")
        assert "the peer has other keys, or has heard another hello" in last["reason"]
        await there.is_well()


async def test_a_message_before_finished(tmp_path: Path) -> None:
    async with scene(tmp_path) as there, peer_of(there.node) as peer:
        await peer.say(peer.session.data_to_send() + schema.encode(schema.Lanes(64)))
        goodbye = (await peer.messages())[-1]
        assert isinstance(goodbye, schema.Goodbye)
        assert goodbye.reason == "lanes before finished"
        await there.is_well()


HALVES = {"nothing": 0, "half a length": 2, "half a HELLO": 99}


async def test_a_hello_that_never_ends(tmp_path: Path) -> None:
    async with scene(tmp_path, replace(CONFIG, handshake_timeout_s=0.3)) as there:
        for count in HALVES.values():
            async with peer_of(there.node) as peer:
                if count:
                    await peer.say(peer.session.data_to_send()[:count])
                assert await rest(peer.stream.sock) == (b"", "eof")
        assert there.log.refusals() == [("ConnectTimeout", "it did not say who it is within 0.3 s")] * len(HALVES)
        await there.is_well()


async def test_a_finished_that_never_comes(tmp_path: Path) -> None:
    async with scene(tmp_path, replace(CONFIG, handshake_timeout_s=0.3)) as there, peer_of(there.node) as peer:
        await peer.say()
        await peer.messages()  # up to the end
        assert len(there.node.links) == 1
        (last,) = there.log.events("link_refused")
        assert "the peer did not say hello in time" in last["reason"]
        await there.is_well()


# --- tickets ----------------------------------------------------------------------------------------------------------


async def refused(there: Scene, first: bytes, *reasons: str) -> None:
    """A lane that says this first is hung up on, without a word, and the log has one of these reasons."""
    before = len(there.log.refusals())
    with await join(there.node.port, first) as sock:
        assert await rest(sock) == (b"", "eof")
    await kit.eventually(lambda: len(there.log.refusals()) > before, "the log")
    ((error, reason),) = there.log.refusals()[before:]
    assert error == "ProtocolError"
    assert reason in reasons


async def test_a_ticket_that_is_replayed(tmp_path: Path) -> None:
    async with scene(tmp_path) as there, peer_of(there.node) as peer:
        (ticket, _) = await greeted(peer)
        first, _ = peer.session.use_ticket(ticket, bytes(32))
        again = f"no ticket is out for lane {ticket.lane}, incarnation {ticket.incarnation}"
        with await join(there.node.port, first):
            await kit.eventually(lambda: there.node.links[-1].lanes == 1, "the lane")
            await refused(there, first, again)
            await refused(there, peer.session.use_ticket(ticket, b"r" * 32)[0], again)
            assert there.node.links[-1].lanes == 1
        await refused(there, first, again)  # nor when the lane is gone
        await there.is_well()


async def test_a_ticket_that_has_expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path) as there:
        monkeypatch.setattr("kvwire.wire.tickets.TICKET_VALID_S", 0.0)
        async with peer_of(there.node) as peer:
            ticket, _ = await greeted(peer)
            first, _ = peer.session.use_ticket(ticket, bytes(32))
            forgotten = f"no ticket is out for lane {ticket.lane}, incarnation {ticket.incarnation}"
            await refused(there, first, f"the ticket for lane {ticket.lane} has expired", forgotten)
        await there.is_well()


async def test_a_ticket_of_another_lane(tmp_path: Path) -> None:
    async with scene(tmp_path) as there, peer_of(there.node) as peer:
        one, other = await greeted(peer)
        for wrong in (
            replace(one, lane=other.lane, incarnation=other.incarnation),
            replace(one, random=other.random),
            replace(one, random=bytes(32)),
        ):
            first, _ = peer.session.use_ticket(wrong, bytes(32))
            await refused(there, first, "a lane's MAC does not fit its ticket")
        for wrong in (replace(one, incarnation=one.incarnation + 1), replace(one, lane=7)):
            first, _ = peer.session.use_ticket(wrong, bytes(32))
            await refused(there, first, f"no ticket is out for lane {wrong.lane}, incarnation {wrong.incarnation}")
        with await join(there.node.port, peer.session.use_ticket(one, bytes(32))[0]):  # which guesses used up none of
            await kit.eventually(lambda: there.node.links[-1].lanes == 1, "the lane")
        await there.is_well()


async def test_a_ticket_of_another_link(tmp_path: Path) -> None:
    """Also where both tickets have the same numbers, and the thief knows the random: it lacks the join secret."""
    other = kit.keys(name="b")
    async with scene(tmp_path) as there, peer_of(there.node) as owner, peer_of(there.node, other) as thief:
        ticket, _ = await greeted(owner)
        await greeted(thief)
        link_id = owner.session.link_id
        secret = thief.session._join_secret
        wrong = join_bytes(link_id, ticket.lane, ticket.incarnation, bytes(32), ticket.random, secret)
        await refused(there, wrong, "a lane's MAC does not fit its ticket")
        first, _ = owner.session.use_ticket(ticket, bytes(32))
        moved = first.replace(link_id, thief.session.link_id)
        await refused(there, moved, "a lane's MAC does not fit its ticket")
        await refused(there, first.replace(link_id, bytes(16)), "a lane for a link that is not here")
        with await join(there.node.port, first):
            await kit.eventually(lambda: sum(link.lanes for link in there.node.links) == 3, "the lane")
        await there.is_well()


async def test_a_ticket_of_the_connection_before(tmp_path: Path) -> None:
    """A link that is resumed has other keys and other tickets; those that were out are void."""
    async with scene(tmp_path) as there, peer_of(there.node) as before:
        ticket, _ = await greeted(before)
        first, _ = before.session.use_ticket(ticket, bytes(32))
        link_id = before.session.link_id
        link = there.node.links[-1]
        before.stream.sock.shutdown(socket.SHUT_RDWR)
        await kit.eventually(lambda: link.suspended, "the loss to be noticed")
        gone = f"no ticket is out for lane {ticket.lane}, incarnation {ticket.incarnation}"
        await refused(there, first, gone)
        async with peer_of(there.node, link_id=link_id) as after:
            await after.say()
            await after.hear(wire.HelloDone)
            tickets = await after.tickets(2)
            assert after.session.link_id == link_id
            assert all(each.incarnation > ticket.incarnation for each in tickets)
            await refused(there, first, gone)
            wrong = join_bytes(
                link_id,
                tickets[0].lane,
                tickets[0].incarnation,
                bytes(32),
                tickets[0].random,
                before.session._join_secret,
            )
            await refused(there, wrong, "a lane's MAC does not fit its ticket")
        await there.is_well()


# --- links of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["of another tenant", "of another name", "of another life"])
async def test_a_link_is_resumed_by_its_peer_alone(who: str, tmp_path: Path) -> None:
    """Who names it and is somebody else gets a new one, as for a name that never was."""
    identities = {"of another tenant": kit.keys("globex"), "of another name": kit.keys(name="b")}
    async with scene(tmp_path) as there:
        owner = there.node.links[0]
        identity = identities.get(who, kit.keys())
        boot_id = b"x" * 16 if who == "of another life" else there.link._session._boot_id
        there.node._guard._policy = replace(there.node._guard._policy, tenants={"acme", "globex"})
        async with peer_of(there.node, identity, link_id=owner._session.link_id, boot_id=boot_id) as thief:
            await thief.say()
            done = await thief.hear(wire.HelloDone)
            assert isinstance(done, wire.HelloDone)
            assert done.peer.link_id != owner._session.link_id
            assert not owner.suspended
        await there.is_well()
