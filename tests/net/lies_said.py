"""As `lies`: what an authenticated peer says on its control connection."""

import asyncio
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvwire import Manifest, PlacementError, ProtocolError, SpecError, wire
from kvwire.types import BlockRange, Grant
from kvwire.wire import schema
from kvwire.wire.manifest import pack_manifest, pack_runs
from tests.net import kit
from tests.net.liar import CONFIG, GRANT, Liar, offer
from tests.net.lies import U32, U64, Check, Lie, Tell, link
from tests.net.poisoned import BLOCKS, CELL
from tests.net.sealed import join, rest
from tests.unit.wire_pair import frame as unchecked

Message = schema.Message


def frame(**content: Any) -> bytes:
    """A message that no session of ours would make."""
    return unchecked(content)


def saying(*what: Message | bytes) -> Tell:
    """Where nothing is under way."""

    async def tell(liar: Liar) -> None:
        await liar.say(*what)

    return tell


# --- grants -----------------------------------------------------------------------------------------------------------

MISFIT = "the peer's grant does not fit the offer"


def granting(*runs: bytes, cell_bytes: int = CELL, transfer: int = 2) -> Tell:
    """To an offer of 13 blocks of one group."""

    async def tell(liar: Liar) -> Check:
        offering = await liar.offered()
        await liar.say(schema.GrantMessage(transfer, list(runs), cell_bytes))
        await asyncio.wait([offering], timeout=kit.PATIENCE_S)
        return lambda: isinstance(offering.exception(), ProtocolError)

    return tell


def runs(*edges: int) -> bytes:
    return struct.pack(f"<{len(edges)}I", *edges)


def after_the_grant(*what: Message) -> Tell:
    async def tell(liar: Liar) -> Check:
        out = await liar.grants()
        await liar.say(*what)
        return lambda: out.state in ("lost", "aborted")

    return tell


AGAIN = schema.GrantMessage(2, list(pack_runs(GRANT)), CELL)


async def granted_late(liar: Liar) -> Check:
    """After its own refusal: the offer is over, and the grant means nothing."""
    offering = await liar.offered()
    await liar.say(schema.Refuse(2, "refused", "no"), AGAIN, schema.Refuse(2, "refused", "no"))
    await liar.answers()
    return lambda: "no" in str(offering.exception())


# --- offers -----------------------------------------------------------------------------------------------------------


def packed(**other: Any) -> list[Any]:
    """A manifest of one group, some of it replaced."""
    request_id, residency, model, tokens, attachment, groups = pack_manifest(offer())
    whole = {"request_id": request_id, "residency": residency, "model": model, "tokens": tokens}
    whole |= {"attachment": attachment, "groups": groups}
    return list((whole | other).values())


GROUP = packed()[5][0]


def group(at: int, value: Any) -> list[Any]:
    """The one group, with another value in this place."""
    return packed(groups=[[value if place == at else each for place, each in enumerate(GROUP)]])


def offering(manifest: list[Any], transfer: int = 1) -> Tell:
    return saying(schema.Offer(transfer, manifest, 60.0, 1))


async def more_than_allowed(liar: Liar) -> Check:
    """Offers without end: a bound is felt, and each beyond it is refused, once."""
    numbers = range(1, 2 * 3 * CONFIG.max_transfers, 2)
    await liar.say(*(schema.Offer(number, pack_manifest(offer(f"r{number}")), 60.0, 1) for number in numbers))
    await liar.answers()
    refused = liar.log.events("policy_refused")
    return lambda: len(refused) == len(numbers) - 2 * CONFIG.max_transfers


async def of_another_layout(liar: Liar) -> Check:
    """Under the name of a group that the node has, pages four times as large."""
    spec = replace(kit.FULL, parts=tuple(replace(part, shape=(16, 2, 128)) for part in kit.FULL.parts))
    manifest = Manifest.of("larger", kit.MODEL, kit.TOKENS, (spec,))
    liar.peer.session.offer(time.monotonic(), manifest, timeout_s=60, deadline_s=60, klass=1)
    await liar.peer.say()
    incoming = await asyncio.wait_for(liar.node.accept(), kit.PATIENCE_S)
    with pytest.raises(SpecError, match="on offer and"):
        await incoming.grant(liar.memory.placement())
    return lambda: incoming.state == "offered"


async def of_more_blocks(liar: Liar) -> Check:
    """As many blocks as may be, of which the node has slots for few."""
    tokens = 16 << 20
    manifest = Manifest.of("longer", kit.MODEL, tokens, (kit.FULL,))
    liar.peer.session.offer(time.monotonic(), manifest, timeout_s=60, deadline_s=60, klass=1)
    await liar.peer.say()
    incoming = await asyncio.wait_for(liar.node.accept(), kit.PATIENCE_S)
    with pytest.raises(PlacementError, match="6 slots for 1048576 blocks"):
        await incoming.grant({"full": liar.memory.pages.at(liar.memory.slots)})
    return lambda: incoming.state == "offered"


# --- lanes ------------------------------------------------------------------------------------------------------------


async def tickets_without_end(liar: Liar) -> None:
    await liar.say(*[schema.Lanes(64)] * 50)
    await liar.answers()
    assert sum(isinstance(event, wire.Ticket) for event in liar.peer.heard) == 64


async def closed_that_never_were(liar: Liar) -> Check:
    lane = await liar.lane()
    others = (lane.number, lane.incarnation + 1), (lane.number, 1 << 31), (63, 1), (U32, U32)
    await liar.say(*(schema.LaneClosed(*other, "gone", U64) for other in others))
    return lambda: liar.has(lane)


async def closed_by_a_lie(liar: Liar) -> None:
    """Its own lane, of which it says that more has come than was ever sent."""
    out, lane = await liar.grants(), await liar.lane()
    out.ready("full", 0)
    await lane.cells(2)
    await liar.say(schema.LaneClosed(lane.number, lane.incarnation, "gone", U64))
    await kit.eventually(lambda: not liar.has(lane), "the lane to be closed")
    liar.lanes.remove(lane)
    other = await liar.lane()
    out.ready("full", 1)
    assert sorted(await other.cells(4)) == [(2, 0, 0), (2, 0, 1), (2, 1, 0), (2, 1, 1)]  # nothing of it was believed
    await other.say(other.frame("receipt", 2))
    await asyncio.wait_for(out.committed(), kit.PATIENCE_S)


def joining(make: Callable[[Liar, wire.Ticket], bytes], reason: str) -> Tell:
    """A lane that nobody gets: it is hung up on without a word, and the log says why."""

    async def tell(liar: Liar) -> Check:
        lane, ticket = await liar.lane(), await liar.ticket()
        before = len(liar.log.refusals())
        with await join(liar.node.port, make(liar, ticket)) as sock:
            assert await rest(sock) == (b"", "eof")
        await kit.eventually(lambda: len(liar.log.refusals()) > before, "the log")
        refusal = liar.log.refusals()[before]
        liar.forgiven += 1
        return lambda: refusal[0] == "ProtocolError" and reason in refusal[1] and liar.has(lane)

    return tell


def spent(liar: Liar, _: wire.Ticket) -> bytes:
    """The ticket of the lane that is up."""
    lane = liar.lanes[-1]
    return use(liar, wire.Ticket(lane.number, lane.incarnation, bytes(32)))


def use(liar: Liar, ticket: wire.Ticket) -> bytes:
    return liar.peer.session.use_ticket(ticket, secrets.token_bytes(32))[0]


def for_another_link(liar: Liar, ticket: wire.Ticket) -> bytes:
    """Its own ticket, with the id of the other tenant's link in the place of its own."""
    return use(liar, ticket).replace(liar.peer.session.link_id, liar.honest._session.link_id)


LANES: dict[str, Lie] = {
    "no lanes wanted": link(saying(frame(t="lanes", count=0)), "lanes: count is 0"),
    "65 lanes wanted": link(saying(frame(t="lanes", count=65)), "lanes: count is 65"),
    "tickets without end": Lie(tickets_without_end),
    "a ticket from the side that asks for them": link(
        saying(schema.LaneTicket(0, 1, bytes(32), 30.0)), "the dialler hands out a lane ticket"
    ),
    "lanes closed that never were": Lie(closed_that_never_were),
    "a lane closed that has taken what was never sent": Lie(closed_by_a_lie),
    "a ticket a second time": Lie(joining(spent, "no ticket is out for lane")),
    "a ticket with another random": Lie(
        joining(lambda liar, ticket: use(liar, replace(ticket, random=bytes(32))), "MAC does not fit")
    ),
    "a ticket of a lane to come": Lie(
        joining(lambda liar, ticket: use(liar, replace(ticket, incarnation=9)), "no ticket is out for lane")
    ),
    "a ticket for another link": Lie(joining(for_another_link, "no ticket is out for lane")),
    "a ticket for a link that is not there": Lie(
        joining(
            lambda liar, ticket: use(liar, ticket).replace(liar.peer.session.link_id, bytes(16)),
            "a lane for a link that is not here",
        )
    ),
}

# --- everything that is said where nothing is under way, or in the wrong state ----------------------------------------

HELLO = schema.Hello(1, ["crc32c"], b"", b"p" * 16, b"r" * 32, b"", "liar", 2, 4, 65536)
PINGS = 20_000

SAID: dict[str, Lie] = LANES | {
    "a grant of blocks that were not offered": link(granting(runs(0, 14)), MISFIT),
    "a grant of the last block there can be": link(granting(runs((1 << 20) - 1, 1 << 20)), MISFIT),
    "a grant of block 2^32-1": link(granting(runs(U32 - 1, U32)), "a grant that cannot be"),
    "a grant of runs that overlap": link(granting(runs(0, 4, 3, 6)), MISFIT),
    "a grant of a run twice": link(granting(runs(0, 4, 0, 4)), MISFIT),
    "a grant of runs out of order": link(granting(runs(4, 6, 0, 2)), MISFIT),
    "a grant of an empty run": link(granting(runs(4, 4)), MISFIT),
    "a grant of a run that ends before it begins": link(granting(runs(6, 4)), "a grant that cannot be"),
    "a grant of half a run": link(granting(bytes(4)), "a grant that cannot be"),
    "a grant of more runs than a message holds": link(granting(runs(*range(20_000))), "at most 65536 are allowed"),
    "a grant of another group": link(granting(runs(0, 4), runs(0, 4)), MISFIT),
    "a grant of no group": link(granting(), MISFIT),
    "a grant of nothing": link(granting(b""), MISFIT),
    "a grant in odd cells": link(granting(runs(0, 4), cell_bytes=4097), MISFIT),
    "a grant in cells of nothing": link(
        saying(frame(t="grant", transfer=2, runs=[runs(0, 4)], cell_bytes=0)), "cell_bytes is 0"
    ),
    "a grant in cells of 2^32-1": link(
        saying(frame(t="grant", transfer=2, runs=[runs(0, 4)], cell_bytes=U32)), "cell_bytes is 4294967295"
    ),
    "a grant of what was never offered": link(granting(runs(0, 4), transfer=4), "transfer 4 was never offered"),
    "a grant of another link's transfer": link(granting(runs(0, 4), transfer=5), "is the peer's own offer"),
    "a grant of its own offer": link(granting(runs(0, 4), transfer=1), "is the peer's own offer"),
    "a second grant": link(after_the_grant(AGAIN), "recv grant is not allowed then"),
    "a refusal after the grant": link(after_the_grant(schema.Refuse(2, "model", "no")), "recv refuse is not allowed"),
    "a grant after its refusal": Lie(granted_late),
    "drained of what was not given up": link(after_the_grant(schema.Drained(2)), "recv drained is not allowed"),
    "drained of what never was": link(saying(schema.Drained(8)), "transfer 8 was never offered"),
    "given up twice": link(after_the_grant(*[schema.Abort(2, "", "")] * 2), "recv abort is not allowed"),
    "given up what never was": link(saying(schema.Abort(U64, "", "")), "was never offered"),
    "given up another link's transfer": link(saying(schema.Abort(5, "", "")), "transfer 5 was never offered"),
    "an offer with an id of the node's": link(offering(packed(), 2), "transfer id 2 belongs to the other side"),
    "an offer with the id 0": link(saying(frame(t="offer", transfer=0, manifest=[], deadline_s=1.0, klass=1)), "is 0"),
    "an offer with an id again": link(
        saying(*[schema.Offer(3, packed(), 60.0, 1)] * 2), "transfer id 3 was used before"
    ),
    "an offer of nothing": link(offering([]), "a manifest that cannot be"),
    "an offer of no group": link(offering(packed(groups=[])), "a manifest that cannot be"),
    "an offer of a group twice": link(offering(packed(groups=[GROUP, GROUP])), "the same name"),
    "an offer of no token": link(offering(packed(tokens=0)), "a manifest that cannot be"),
    "an offer of fewer tokens than blocks": link(offering(packed(tokens=1)), "on offer, but 1 tokens make"),
    "an offer of blocks 2^32-2 and on": link(offering(group(7, U32 - 1)), "a manifest that cannot be"),
    "an offer of hashes for other blocks": link(offering(group(9, bytes(16))), "1 hashes for 13 blocks"),
    "an offer of half a hash": link(offering(group(9, bytes(8))), "a manifest that cannot be"),
    "an offer of blocks of no token": link(offering(group(5, 0)), "a manifest that cannot be"),
    "an offer of parts that are none": link(offering(group(4, [])), "a manifest that cannot be"),
    "an offer with an attachment that is 1": link(offering(packed(attachment=1)), "attachment is neither"),
    "an offer of larger blocks": Lie(of_another_layout),
    "an offer of 2^20 blocks": Lie(of_more_blocks),
    "more offers than are allowed": Lie(more_than_allowed),
    "a message longer than any": link(saying((1 << 30).to_bytes(4, "little")), "1073741824 bytes; at most 65536"),
    "a message that is none": link(saying(frame(t="nonsense")), "of unknown type 'nonsense'"),
    "a second hello": link(saying(HELLO), "a second hello"),
    "finished once more": link(saying(schema.Finished(bytes(32))), "finished where nothing was to be confirmed"),
    "a resume where no link was lost": link(saying(schema.Resume(b"")), "a resume where no link was lost"),
    "a ledger that nobody asked for": link(saying(schema.Ledger(2, "committed", [], 0, b"")), "which nobody asked for"),
    "answers to what was never asked": Lie(saying(schema.Answer(b"q" * 16, 1, "committed"), schema.Pong(1))),
    "pings without end": Lie(saying(*[schema.Ping(U64)] * PINGS)),
}


# --- after a loss -----------------------------------------------------------------------------------------------------


def returning(make: Callable[[], Message | bytes], *more: Callable[[], Message | bytes]) -> Tell:
    """Of four cells the node has sent two; two more are ready since the link was lost, and were never sent."""

    async def tell(liar: Liar) -> Check:
        out, lane = await liar.grants(), await liar.lane()
        out.ready("full", 0)
        await lane.cells(2)
        await liar.loses_its_connection()
        out.ready("full", 1)
        await liar.comes_back()
        await liar.peer.hear(wire.LedgerWanted)
        await liar.say(*(each() for each in (make, *more)))
        return lambda: out.state in ("lost", "aborted", "active")

    return tell


def ledger(landed: bytes, grant: Grant = GRANT, transfer: int = 2, state: str = "active") -> Callable[[], Message]:
    return lambda: schema.Ledger(transfer, state, list(pack_runs(grant)), grant.cell_bytes, landed)


def outcome(state: str, transfer: int = 2) -> Callable[[], Message]:
    return lambda: schema.Ledger(transfer, state, [], 0, b"")


def resuming(*ids: int) -> Tell:
    """These are its transfers, it says."""

    async def tell(liar: Liar) -> None:
        await liar.loses_its_connection()
        await liar.comes_back(names=struct.pack(f"<{len(ids)}Q", *ids))

    return tell


async def everybody_s(liar: Liar) -> None:
    """It asks for what another link has under way, or has had: as unknown as what never was."""
    await liar.loses_its_connection()
    await liar.comes_back(names=struct.pack("<4Q", 1, 3, 5, 99))
    found = [await liar.peer.message(schema.Ledger) for _ in range(4)]
    assert {(each.state, each.landed) for each in found} == {("unknown", b"")}


async def before_its_resume(liar: Liar) -> None:
    await liar.loses_its_connection()
    await liar.comes_back(names=b"")
    await liar.say(schema.Resume(b""))


async def forgotten(liar: Liar) -> Check:
    """A transfer of its own that it does not name is over; what it sends of it then is dropped."""
    incoming, lane = await liar.granted()
    await liar.sends(lane, (0, 0))
    await liar.loses_its_connection()
    await liar.comes_back(names=b"")
    await kit.eventually(lambda: incoming.state == "aborted", incoming)
    lane = await liar.lane()
    await lane.say(lane.cell(1, 0, data=b"\x5a" * CELL))
    await lane.settled()
    return lambda: incoming.progress == (1, 5)


UNSENT = "which was never sent"
RETURNED: dict[str, Lie] = {
    "a ledger with cells that were ready and not sent": link(returning(ledger(b"\x07")), f"cell 2, {UNSENT}"),
    "a ledger with all cells": link(returning(ledger(b"\x0f")), f"cell 2, {UNSENT}"),
    "a ledger with a cell too many": link(returning(ledger(b"\x13")), f"cell 4, {UNSENT}"),
    "a ledger with its last bit set": link(returning(ledger(b"\x80")), f"cell 7, {UNSENT}"),
    "a ledger of no byte": link(returning(ledger(b"")), "a ledger of 0 bytes; 4 cells take 1"),
    "a ledger a byte too long": link(returning(ledger(bytes(2))), "a ledger of 2 bytes; 4 cells take 1"),
    "a ledger of another grant": link(
        returning(ledger(b"\0", Grant(((BlockRange(0, BLOCKS.stop),),), CELL))), "is of another grant"
    ),
    "a ledger of other cells": link(returning(ledger(b"\0", Grant(GRANT.runs, 4096))), "is of another grant"),
    "a ledger of its own transfer": link(returning(ledger(b"\0", transfer=1)), "transfer 1, which nobody asked for"),
    "a ledger of what never was": link(returning(ledger(b"\0", transfer=4)), "transfer 4, which nobody asked for"),
    "a ledger of another link's transfer": link(
        returning(ledger(b"\0", transfer=5)), "transfer 5, which nobody asked for"
    ),
    "a ledger twice": link(returning(ledger(b"\0"), ledger(b"\0")), "transfer 2, which nobody asked for"),
    "committed, and it cannot be": link(returning(outcome("committed")), "not every cell was ever sent"),
    "refused, and it was granted": link(returning(outcome("refused")), "is refused, and it is active"),
    "unknown, and it was granted": link(returning(outcome("unknown")), "is unknown, and it is active"),
    "not granted yet, and it was": link(returning(outcome("offered")), "is offered, and it is active"),
    "a resume out of order": link(resuming(3, 1), "not the peer's, or not in order"),
    "a resume with an id twice": link(resuming(3, 3), "not the peer's, or not in order"),
    "a resume with the id 0": link(resuming(0), "not the peer's, or not in order"),
    "a resume with the node's ids": link(resuming(2), "not the peer's, or not in order"),
    "a resume with too many": link(resuming(1, 3, 5, 7, 9), "resume names 5 transfers; at most 4"),
    "a resume twice": link(before_its_resume, "a resume where no link was lost"),
    "a resume that names another link's transfers": Lie(everybody_s),
    "a resume that leaves its own out": Lie(forgotten),
}
