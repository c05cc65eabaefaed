"""A node that dials a liar: whatever is said to it, it has as many lanes as it wants, and others are well."""

import asyncio
import logging
import time

import pytest

from kvwire import Config, ProtocolError, wire
from kvwire.wire import schema
from tests.net import kit
from tests.net.peers import serving

pytestmark = pytest.mark.usefixtures("nothing_left")

CONFIG = Config(lanes=2, plain=True)
U32 = (1 << 32) - 1


def ticket(lane: int, incarnation: int = 1) -> schema.Message:
    return schema.LaneTicket(lane, incarnation, bytes(32), 30.0)


HARMLESS: dict[str, list[schema.Message]] = {
    "tickets without end": [ticket(lane) for lane in range(500)],
    "a ticket again and again": [ticket(0)] * 50,
    "tickets of older lanes": [ticket(lane, incarnation) for incarnation in (9, 5, 1) for lane in range(2)],
    "lane 2^32-1": [ticket(U32, U32)],
    "an invitation to 64 lanes": [schema.Lanes(64)] * 50,
    "lanes closed that never were": [schema.LaneClosed(U32, U32, "gone", U32)],
    "an answer that nobody asked for": [schema.Answer(bytes(16), 1, "committed"), schema.Pong(1)],
}
ENDS: dict[str, tuple[schema.Message, str]] = {
    "a second hello": (
        schema.Hello(1, ["crc32c"], b"", b"b" * 16, bytes(32), b"x" * 16, "liar", 0, 4, 65536),
        "a second hello",
    ),
    "finished on a plain link": (schema.Finished(bytes(32)), "finished where nothing was to be confirmed"),
    "a resume where no link was lost": (schema.Resume(b""), "a resume where no link was lost"),
    "a grant of what was never offered": (schema.GrantMessage(1, [], 4096), "transfer 1 was never offered"),
    "an offer of the dialler's number": (schema.Offer(1, [], 1.0, 1), "transfer id 1 belongs to the other side"),
}


async def told(lies: list[schema.Message], caplog: pytest.LogCaptureFixture, words: str = "") -> None:
    """A node that is told these as soon as its lanes are up, with an honest link beside."""
    dealt_with, reader_of_answers = asyncio.Event(), schema.MessageReader(1 << 20)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(wire.PREAMBLE_BYTES) != wire.control_preamble(plain=True):
            await reader.read()  # a lane's JOIN
            await asyncio.Event().wait()
        session = wire.Session("acceptor", CONFIG, b"a" * 16, bytes(32), b"l" * 16, time.monotonic())
        writer.write(wire.control_preamble(plain=True))
        while data := await reader.read(4096):
            session.receive_data(time.monotonic(), data)
            reader_of_answers.feed(data)
            if any(isinstance(message, schema.Answer) for message in iter(reader_of_answers.next, None)):
                dealt_with.set()
            while (event := session.next_event()) is not None:
                if isinstance(event, wire.LanesWanted):
                    for _ in range(event.count):
                        session.issue_ticket(time.monotonic(), bytes(range(32)))
            writer.write(session.data_to_send())
            if lies and session.tickets_out(time.monotonic()):
                writer.write(b"".join(map(schema.encode, lies)) + schema.encode(schema.Ask(bytes(16), 1)))
                lies.clear()

    async with await kit.serve(config=CONFIG) as honest, await kit.start(CONFIG) as node, serving(handle) as port:
        beside = await node.connect("127.0.0.1", honest.port)
        if words:
            with pytest.raises(ProtocolError, match=words):  # perhaps before its lanes were up
                raise await asyncio.wait_for((await node.connect("127.0.0.1", port)).wait_closed(), kit.PATIENCE_S)
            await kit.eventually(lambda: node.links == (beside,), node.links)
        else:
            link = await node.connect("127.0.0.1", port)
            await asyncio.wait_for(dealt_with.wait(), kit.PATIENCE_S)
            await kit.eventually(lambda: link.lanes == 2, link)
            assert link._dialler is not None
            assert link._dialler.held == 2
            assert not link.closed
        await kit.move(beside, honest, "beside")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("name", HARMLESS)
async def test_what_changes_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    await told(list(HARMLESS[name]), caplog)


@pytest.mark.parametrize("name", ENDS)
async def test_what_ends_the_link(name: str, caplog: pytest.LogCaptureFixture) -> None:
    lie, words = ENDS[name]
    await told([lie], caplog, words)
