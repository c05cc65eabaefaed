"""Every lie of an authenticated peer that `test_liars` tells to a node, and what it has to lead to.

A lie is a function of a `Liar`; what it returns is looked at once the lie has led to what it should.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from kvwire import AttachmentError, KvwireError, ProtocolError
from kvwire.wire import schema
from tests.net import kit
from tests.net.liar import Lane, Liar
from tests.net.poisoned import CELL

Check = Callable[[], object]
Tell = Callable[[Liar], Awaitable[Check | None]]

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
MOST_CELL = 256 * 1024


@dataclass(frozen=True)
class Lie:
    """`ends`: what of the liar's. `words`: of the reason that the node gives, to its user and its audit log."""

    tell: Tell
    ends: Literal["nothing", "lane", "link"] = "nothing"
    words: str = ""
    error: type[KvwireError] = ProtocolError


def lane(tell: Tell, words: str) -> Lie:
    return Lie(tell, "lane", words)


def link(tell: Tell, words: str) -> Lie:
    return Lie(tell, "link", words)


# --- cells ------------------------------------------------------------------------------------------------------------

OUTSIDE = "a cell outside the grant"
LENGTH = "a frame with a wrong length"
NEVER = "a cell of a transfer that was never granted"


def cells(make: Callable[[Lane], bytes]) -> Tell:
    """In a transfer that was granted, of which one cell has landed."""

    async def tell(liar: Liar) -> Check:
        incoming, lane = await liar.granted()
        await liar.sends(lane, (0, 0))
        await lane.say(make(lane))
        return lambda: incoming.progress == (1, 5) and incoming.state == "active"

    return tell


def header(at: int, value: int) -> Callable[[Lane], bytes]:
    """Of an honest frame another u32 there."""

    def make(lane: Lane) -> bytes:
        data = bytearray(lane.cell(1, 0))
        struct.pack_into("<I", data, at, value)
        return bytes(data)

    return make


def lengths(value: int) -> Callable[[Lane], bytes]:
    """Both lengths in the header are this."""

    def make(lane: Lane) -> bytes:
        data = bytearray(lane.cell(1, 0))
        struct.pack_into("<II", data, 36, value, value)
        return bytes(data)

    return make


def cell(segment: int, number: int, size: int, transfer: int = 1) -> Callable[[Lane], bytes]:
    return lambda lane: lane.frame("data", transfer, segment, number, b"\x5a" * size)


async def other_content(liar: Liar) -> Check:
    incoming, lane = await liar.granted()
    await liar.sends(lane, (0, 0))
    await lane.say(lane.cell(0, 0, data=b"\x5a" * CELL))
    await lane.settled()
    assert incoming._handle is not None
    duplicates = incoming._handle.duplicates
    return lambda: duplicates == 1 and incoming.progress == (1, 5)


async def after_the_commit(liar: Liar) -> Check:
    incoming, lane = await liar.granted()
    await liar.commits(incoming, lane)
    await lane.say(*(lane.cell(segment, 0, data=b"\x5a" * CELL) for segment in (0, 1, 2, 99)))
    await lane.settled()
    return lambda: incoming.state == "committed"


def after_an_abort(by: str) -> Tell:
    async def tell(liar: Liar) -> Check:
        incoming, lane = await liar.granted()
        await liar.sends(lane, (0, 0))
        if by == "liar":
            await liar.say(schema.Abort(1, "aborted", "changed my mind"))  # as its session does not know
            await kit.eventually(lambda: incoming.state == "aborted", incoming)
        else:
            await incoming.abort()
        await lane.say(lane.cell(0, 1, data=b"\x5a" * 8192), lane.cell(1, 0, data=b"\x5a" * CELL))
        await lane.settled()
        return lambda: incoming.state == "aborted"

    return tell


async def before_the_grant(liar: Liar) -> Check:
    incoming, lane = await liar.offers(), await liar.lane()
    await lane.say(lane.cell(0, 0))
    return lambda: incoming.state == "offered"


async def before_the_grant_of_an_older_one(liar: Liar) -> Check:
    """What has a smaller number than one that was granted may be over: it is dropped."""
    older = await liar.offers("older")
    incoming = await liar.offers()
    await incoming.grant(liar.memory.placement(), cell_bytes=CELL)
    lane = await liar.lane()
    await lane.say(lane.cell(0, 0))
    await lane.settled()
    return lambda: older.state == "offered" and incoming.progress == (0, 5)


def attachment(data: bytes) -> Tell:
    async def tell(liar: Liar) -> Check:
        incoming, lane = await liar.granted()
        await liar.commits(incoming, lane, data)

        def is_no_value() -> bool:
            try:
                _ = incoming.attachment
            except AttachmentError:
                return incoming.state == "committed"
            return False

        return is_no_value

    return tell


CELLS: dict[str, Lie] = {
    "a cell of no byte": lane(cells(cell(1, 0, 0)), OUTSIDE),
    "a cell a byte short": lane(cells(cell(1, 0, CELL - 1)), OUTSIDE),
    "a cell a byte long": lane(cells(cell(1, 0, CELL + 1)), OUTSIDE),
    "the last cell as long as the first": lane(cells(cell(1, 1, CELL)), OUTSIDE),
    "the longest frame there is": lane(cells(cell(1, 0, MOST_CELL)), OUTSIDE),
    "a length beyond the longest": lane(cells(lengths(MOST_CELL + 1)), LENGTH),
    "a length of 2^32-1": lane(cells(lengths(U32)), LENGTH),
    "a plain length of 0": lane(cells(header(36, 0)), LENGTH),
    "a plain length of 2^32-1": lane(cells(header(36, U32)), LENGTH),
    "a wire length of 0": lane(cells(header(40, 0)), LENGTH),
    "a wire length of 2^32-1": lane(cells(header(40, U32)), LENGTH),
    "the cell behind the last": lane(cells(cell(1, 2, CELL)), OUTSIDE),
    "the last cell of what was offered": lane(cells(cell(1, 3, 4096)), OUTSIDE),
    "cell 2^32-1": lane(cells(cell(1, U32, CELL)), OUTSIDE),
    "cell 2^31": lane(cells(cell(1, 1 << 31, CELL)), OUTSIDE),
    "the segment behind the attachment": lane(cells(cell(3, 0, CELL)), OUTSIDE),
    "segment 2^32-1": lane(cells(cell(U32, 0, CELL)), OUTSIDE),
    "a second cell of the attachment": lane(cells(cell(2, 1, 1)), OUTSIDE),
    "an attachment of 64 KiB and a byte": lane(cells(cell(2, 0, 65537)), OUTSIDE),
    "an attachment that is no value": Lie(attachment(b"\xc1")),
    "an attachment of nothing": Lie(attachment(b"")),
    "an attachment of lists that do not end": Lie(attachment((b"\xdd\x00\x00\xff\xff" * 13107)[:65536])),
    "an attachment of lists in lists that are longer than it is": Lie(
        attachment((b"\xdc\x3e\x80" * 1000).ljust(65536, b"\xc0"))
    ),
    "a cell again, with other content": Lie(other_content),
    "cells after the commit": Lie(after_the_commit),
    "cells after its own abort": Lie(after_an_abort("liar")),
    "cells after the node's abort": Lie(after_an_abort("node")),
    "cells before the grant": lane(before_the_grant, NEVER),
    "cells before the grant, of an older offer": Lie(before_the_grant_of_an_older_one),
    "cells of what was never offered": lane(cells(cell(0, 0, CELL, 3)), NEVER),
    "cells of transfer 2^64-1": lane(cells(cell(0, 0, CELL, U64)), NEVER),
    "cells of what the node sends": lane(cells(cell(0, 0, CELL, 2)), NEVER),
    "cells of another link's transfer": lane(cells(cell(0, 0, CELL, 5)), NEVER),  # under way there, and half landed
}

# --- acknowledgements and receipts ------------------------------------------------------------------------------------

UNSENT = "an acknowledgement of frames that were never sent"
FALSE = "a receipt for what was never sent"


def said(make: Callable[[Lane], bytes], *, ready: int = 2) -> Tell:
    """While the node sends a transfer of four cells, two of which the liar has."""

    async def tell(liar: Liar) -> Check:
        out, lane = await liar.grants(), await liar.lane()
        for layer in range(ready):
            out.ready("full", layer)
        await lane.cells(2 * ready)
        await lane.say(make(lane))
        return lambda: out.state == "active"

    return tell


def ignored(make: Callable[[Lane], bytes], acknowledged: int = 0) -> Tell:
    """As `said`, and nothing comes of it: an honest receipt ends the transfer as it should."""

    async def tell(liar: Liar) -> None:
        out, lane = await liar.grants(), await liar.lane()
        out.ready("full", 0)
        await lane.cells(2)
        await lane.say(make(lane))
        await lane.settled()
        assert out.state == "active"
        assert out.progress == (acknowledged, 4)
        out.ready("full", 1)
        await lane.cells(2)
        await lane.say(lane.frame("receipt", 2))
        await asyncio.wait_for(out.committed(), kit.PATIENCE_S)

    return tell


def forth_and_back(lane: Lane) -> bytes:
    return lane.ack(2) + lane.ack(1) + lane.ack(0)


async def before_all_is_sent(liar: Liar) -> Check:
    """Every cell is ready, and no lane has taken the last ones."""
    out, lane = await liar.grants(), await liar.lane()
    out.ready("full", 0)
    await lane.cells(2)
    liar.link.engine_link.set_pace(0, 0, 0, 1)  # as long as those are not acknowledged, which they never are
    out.ready("full", 1)
    await lane.say(lane.frame("receipt", 2))
    return lambda: out.state == "active"


async def of_an_aborted_one(liar: Liar) -> Check:
    out, lane = await liar.grants(), await liar.lane()
    out.ready("full", 0)
    await lane.cells(2)
    await out.abort()
    await lane.say(lane.frame("receipt", 2))
    await lane.settled()
    return lambda: out.state == "aborted"


async def twice(liar: Liar) -> Check:
    out, lane = await liar.grants(), await liar.lane()
    kit.ready_all(out)
    await lane.cells(4)
    await lane.say(lane.frame("receipt", 2), lane.frame("receipt", 2), lane.frame("receipt", 2))
    await lane.settled()
    return lambda: out.state == "committed" and len(liar.log.events("commit")) == 1


RECEIVED: dict[str, Lie] = {
    "an acknowledgement of one frame too many": lane(said(lambda lane: lane.ack(1 << 16)), UNSENT),
    "an acknowledgement of 2^64-1 frames": lane(said(lambda lane: lane.ack(U64)), UNSENT),
    "acknowledgements that go backwards": Lie(ignored(forth_and_back, 2)),
    "an acknowledgement of another lane": Lie(ignored(lambda lane: lane.ack(U64, lane=7))),
    "an acknowledgement of lane 2^32-1": Lie(ignored(lambda lane: lane.ack(U64, lane=U32))),
    "an acknowledgement of an older lane": Lie(ignored(lambda lane: lane.ack(U64, incarnation=0))),
    "an acknowledgement of a lane to come": Lie(ignored(lambda lane: lane.ack(U64, incarnation=U32))),
    "as many acknowledgements as fit": Lie(ignored(lambda lane: lane.ack(U64, lane=7, times=64))),
    "one acknowledgement more than fits": lane(said(lambda lane: lane.ack(0, times=65)), LENGTH),
    "an acknowledgement of nothing": lane(said(lambda lane: lane.ack(0, times=0)), LENGTH),
    "half an acknowledgement": lane(said(lambda lane: lane.frame("ack", payload=bytes(24))), LENGTH),
    "acknowledged what it does not have": Lie(ignored(lambda lane: lane.ack(2), 2)),
    "a receipt before the last cell was ready": lane(said(lambda lane: lane.frame("receipt", 2), ready=1), FALSE),
    "a receipt before anything was ready": lane(said(lambda lane: lane.frame("receipt", 2), ready=0), FALSE),
    "a receipt before the last cell was sent": lane(before_all_is_sent, FALSE),
    "a receipt with something in it": lane(said(lambda lane: lane.frame("receipt", 2, payload=bytes(1))), LENGTH),
    "a receipt of what was never offered": lane(said(lambda lane: lane.frame("receipt", 4)), FALSE),
    "a receipt of transfer 2^64-1": lane(said(lambda lane: lane.frame("receipt", U64)), FALSE),
    "a receipt of another link's transfer": lane(said(lambda lane: lane.frame("receipt", 5)), FALSE),
    "a receipt of an aborted transfer": Lie(of_an_aborted_one),
    "a receipt three times": Lie(twice),
}
