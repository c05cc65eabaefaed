"""A user's program: it has to run, and pass `mypy --strict`, where nothing but the wheel is installed.

Each `type: ignore` below is a mistake that the installed types must catch: strict mypy complains of one that is not
needed, so a package that lost its types fails on every one of them.
"""

import asyncio
import tempfile
from typing import assert_type

import numpy as np

import kvwire
from kvwire._ext import crc32c, engine, ledger

SPEC = kvwire.GroupSpec.attention("full", range(2), kvwire.DType.FP16, block_tokens=4, heads=1, head_dim=8)
SLOTS = [0, 1, 2]


def memory(fill: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint16]]]:
    return [np.full((4, 2, 4, 1, 8), fill + layer, np.uint16) for layer in SPEC.layers]


def identities(where: str) -> list[kvwire.Identity]:
    authority = kvwire.Authority.create(f"{where}/ca")
    for role in ("decode", "prefill"):
        authority.issue(f"{where}/{role}", kvwire.Subject("acme", role, "eu-west", role))
    return [kvwire.Identity.load(f"{where}/{role}") for role in ("decode", "prefill")]


async def main(where: str) -> None:
    there, here = memory(0), memory(1)
    decoder, prefiller = identities(where)
    async with (
        await kvwire.Node.serve("127.0.0.1", 0, identity=decoder) as decode,
        await kvwire.Node.start(identity=prefiller) as prefill,
    ):
        link = await prefill.connect("127.0.0.1", decode.port)
        assert link.identity is not None
        assert_type(link.identity.subject.role, str)
        manifest = kvwire.Manifest.of("one", kvwire.ModelTag("a-model"), 12, [SPEC])
        offer = asyncio.ensure_future(link.offer(manifest, {"full": kvwire.Pages(SPEC, here).at(SLOTS)}))
        incoming = await decode.accept()
        await incoming.grant({"full": kvwire.Pages(SPEC, there).at(SLOTS)})
        out = await offer
        for layer in SPEC.layers:
            out.ready("full", layer)
        receipt = await out.committed()
        assert_type(receipt, kvwire.Receipt)
        await incoming.committed()
    assert all((a[SLOTS] == b[SLOTS]).all() for a, b in zip(there, here, strict=True))
    assert all((a[3] != b[3]).all() for a, b in zip(there, here, strict=True))


def the_types_arrived() -> None:
    assert_type(kvwire.__version__, str)
    assert_type(kvwire.WIRE_VERSION, int)
    assert_type(crc32c.selected(), str)
    assert_type(ledger.Ledger([1]).missing(0), int)


async def mistakes(link: kvwire.Link) -> None:
    kvwire.Config(lanes="four")  # type: ignore[arg-type]
    kvwire.Pages(SPEC)  # type: ignore[call-arg]
    kvwire.Subject("acme", "both")  # type: ignore[call-arg]
    await link.offer("no manifest", {})  # type: ignore[arg-type]
    crc32c.crc32c("text")  # type: ignore[arg-type]
    engine.Engine(threads=2)  # type: ignore[call-arg]


the_types_arrived()
with tempfile.TemporaryDirectory() as keys:
    asyncio.run(main(keys))
