"""The small value that travels with the commit."""

import math
from typing import Any

import msgpack
import pytest

from kvwire import AttachmentError, PlacementError
from kvwire.types import MAX_ATTACHMENT_BYTES
from tests.net import kit
from tests.net.kit import Caches, granted, joined, manifest, offered, same

pytestmark = pytest.mark.usefixtures("nothing_left")

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**64 - 1,
    -(2**63),
    1.5,
    -math.inf,
    "",
    "préfixe \U0001f600",
    b"",
    bytes(range(256)),
    [],
    [1, [2.5, [None, "x"]]],
    {},
    {"token": 17, "cumulative_length": [4096, 128], "rng": b"\0\xff"},
    {1: "integer keys", -2: [True]},
]


async def test_every_type_that_msgpack_has() -> None:
    async with joined() as pair:
        for i, value in enumerate(VALUES):
            offer = manifest(f"r{i}", attachment=True)
            source, target = Caches(offer, filled=True), Caches(offer)
            out, incoming = await granted(pair.link, pair.server, offer, source, target)
            out.attach(value)
            kit.ready_all(out)
            assert incoming.attachment is None or incoming.state == "committed"
            await incoming.committed()
            await out.committed()
            assert incoming.attachment == value
            assert type(incoming.attachment) is type(value)
            same(source, target)
        await kit.still_works(pair)


async def test_a_value_that_has_its_own_msgpack_type() -> None:
    offer = manifest(attachment=True)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))
        kit.ready_all(out)
        out.attach([msgpack.ExtType(5, b"own"), msgpack.Timestamp(1, 2)])
        await incoming.committed()
        assert incoming.attachment == [msgpack.ExtType(5, b"own"), msgpack.Timestamp(1, 2)]


async def test_nothing_commits_before_an_announced_attachment() -> None:
    offer = manifest(attachment=True)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))
        kit.ready_all(out)
        assert len([layer async for layer in incoming.layers()]) == 2
        assert incoming.state == "active"
        assert incoming.attachment is None
        out.attach({})
        await incoming.committed()
        assert incoming.attachment == {}


async def test_only_the_attachment_is_wanted() -> None:
    """A decoder that holds the whole prefix still wants the first token."""
    offer = manifest(attachment=True)
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, Caches(offer))
        await incoming.grant({})
        out = await task
        assert out.granted == {"full": ()}
        out.attach(17)
        receipt = await out.committed()
        await incoming.committed()
        assert (receipt.bytes, incoming.attachment) == (0, 17)
        assert [layer async for layer in incoming.layers()] == []
        await kit.still_works(pair)


async def test_nothing_at_all_is_refused_not_granted() -> None:
    offer = manifest()
    target = Caches(offer)
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, Caches(offer))
        with pytest.raises(PlacementError, match=r"a grant of nothing.*refuse the offer"):
            await incoming.grant({})
        await incoming.grant(target.at())
        kit.ready_all(await task)
        await incoming.committed()


async def test_limits() -> None:
    offer = manifest(attachment=True)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))
        kit.ready_all(out)
        largest = bytes(MAX_ATTACHMENT_BYTES - 3)  # msgpack's head of a short byte string takes 3
        with pytest.raises(AttachmentError, match=f"{MAX_ATTACHMENT_BYTES + 1} bytes; at most {MAX_ATTACHMENT_BYTES}"):
            out.attach(bytes(MAX_ATTACHMENT_BYTES - 2))
        for value in (object(), {1, 2}, 2**64, [[lambda: None]], {(1, 2): 3}):
            with pytest.raises(AttachmentError, match="msgpack cannot carry"):
                out.attach(value)
        out.attach(largest)
        with pytest.raises(AttachmentError, match="has its attachment already"):
            out.attach(1)
        await incoming.committed()
        assert incoming.attachment == largest
        await out.committed()
        await kit.still_works(pair)


async def test_an_attachment_that_was_not_announced() -> None:
    offer = manifest()
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))
        with pytest.raises(AttachmentError, match=r"announced no attachment.*attachment=True"):
            out.attach(1)
        kit.ready_all(out)
        await incoming.committed()
        assert incoming.attachment is None
