"""As `lies`: what an authenticated peer says of codecs."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvwire import wire
from kvwire.wire import schema
from kvwire.wire.manifest import pack_runs
from tests.net import kit
from tests.net.liar import GRANT, Liar, connection, messages
from tests.net.lies import U64, Check, Lie, Tell, link
from tests.net.lies_said import HELLO, frame, packed, saying


def offering(ids: Sequence[int]) -> Tell:
    """One group."""
    return saying(schema.Offer(1, packed(), 60.0, 1, list(ids)))


def offering_oddly(codecs: Any) -> Tell:
    return saying(frame(t="offer", transfer=1, manifest=packed(), deadline_s=60.0, klass=1, codecs=codecs))


def granting_oddly(decode_Bps: Any) -> Tell:
    runs = list(pack_runs(GRANT))
    return saying(frame(t="grant", transfer=2, runs=runs, cell_bytes=GRANT.cell_bytes, decode_Bps=decode_Bps))


def decoding_at(decode_Bps: int) -> Tell:
    """What it says of itself is believed, and has its own transfers coded, or not: nobody else's."""

    async def tell(liar: Liar) -> Check:
        task = await liar.offered()
        liar.peer.session.grant(time.monotonic(), 2, GRANT, decode_Bps=decode_Bps)
        await liar.peer.say()
        out = await asyncio.wait_for(task, kit.PATIENCE_S)
        lane = await liar.lane()
        out.ready("full", 0)
        await lane.cells(2)
        return lambda: out.state == "active"

    return tell


def greeting_with(codecs: Any) -> Tell:
    """Over another connection: it gets no link, is told why, and the log says the same."""

    async def tell(liar: Liar) -> Check:
        before = len(liar.log.refusals())
        stream, agreement = await connection(liar.node, liar.stack)
        hello = HELLO if agreement is None else replace(HELLO, suites=["aes-256-gcm"], share=agreement.share)
        content = {name: getattr(hello, name) for name in schema.Hello.CHECKS} | {"t": "hello", "codecs": codecs}
        await stream.write(frame(**content))
        said = b""
        while data := await asyncio.wait_for(stream.read(), kit.PATIENCE_S):
            said += data
        (goodbye,) = messages(said)
        await kit.eventually(lambda: len(liar.log.refusals()) > before, "the log")
        error, reason = liar.log.refusals()[before]
        liar.forgiven += 1
        assert isinstance(goodbye, schema.Goodbye)
        return lambda: error == "ProtocolError" and "codecs is" in reason and "codecs is" in goodbye.reason

    return tell


async def taking_less_when_it_is_back(liar: Liar) -> Check:
    """In the same life. What was on offer is under way as it was offered; the next offer names nothing."""
    out, lane = await liar.grants(), await liar.lane()
    out.ready("full", 0)
    await lane.cells(2)
    liar.peer.session._codecs = ()
    await liar.loses_its_connection()
    await liar.comes_back()
    await liar.peer.hear(wire.LedgerWanted)
    await liar.say(schema.Ledger(2, "active", list(pack_runs(GRANT)), GRANT.cell_bytes, b"\x03"))
    return lambda: out.state == "active" and liar.link._session.peer is not None and not liar.link._session.peer.codecs


ZSTD = ["zstd", 1, True]

CODECS: dict[str, Lie] = {
    "an offer through a codec that nobody has": link(offering([200]), "names codec 200, which this side's hello"),
    "an offer through a codec for other numbers": link(offering([2]), "names codec 'bf16' for group 'full', which is"),
    "an offer through codecs of two groups": link(offering([1, 1]), "an offer of 1 groups names codecs for 2"),
    "an offer through 64 codecs": link(offering([1] * 64), "an offer of 1 groups names codecs for 64"),
    "an offer through 65 codecs": link(offering_oddly([1] * 65), "offer: codecs is"),
    "an offer through codec 256": link(offering_oddly([256]), "offer: codecs is"),
    "an offer through codec -1": link(offering_oddly([-1]), "offer: codecs is"),
    "an offer through a codec by name": link(offering_oddly(["zstd"]), "offer: codecs is"),
    "an offer through what is no list": link(offering_oddly(b"\x01"), "offer: codecs is"),
    "a grant that decodes less than nothing": link(granting_oddly(-1), "grant: decode_Bps is -1"),
    "a grant that decodes a text": link(granting_oddly("fast"), "grant: decode_Bps is 'fast'"),
    "a grant that decodes half a byte": link(granting_oddly(0.5), "grant: decode_Bps is 0.5"),
    "a grant that decodes a byte a second": Lie(decoding_at(1)),
    "a grant that decodes 2^64-1 bytes a second": Lie(decoding_at(U64)),
    "a greeting with a codec twice": Lie(greeting_with([ZSTD, ZSTD])),
    "a greeting with an id twice": Lie(greeting_with([ZSTD, ["int8", 1, False]])),
    "a greeting with a name twice": Lie(greeting_with([ZSTD, ["zstd", 2, True]])),
    "a greeting with codec 0": Lie(greeting_with([["none", 0, True]])),
    "a greeting with 33 codecs": Lie(greeting_with([[f"c{number}", number, True] for number in range(1, 34)])),
    "a greeting with a codec without a name": Lie(greeting_with([["", 1, True]])),
    "a greeting with codecs that are none": Lie(greeting_with({})),
    "other codecs when it is back": Lie(taking_less_when_it_is_back),
}
