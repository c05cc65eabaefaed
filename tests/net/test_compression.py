"""Automatic codecs over loopback, which is faster than any of them: they are tried now and then, and never used."""

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest

from kvwire import Config, DType, EgressReport, GroupSpec, Manifest
from kvwire._ext import zstdlib
from kvwire.codecs.adaptive import Reason
from tests.net.kit import Caches, Pair, granted, joined, manifest, ready_all, same

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(zstdlib.find() is None, reason="no libzstd on this machine"),
]

SPEC = GroupSpec.attention("full", range(8), DType.BF16, block_tokens=16, heads=4, head_dim=128)
TOKENS = 16 * 512
CONFIG = Config(plain=True, lanes=2)


def of_numbers(offer: Manifest) -> Caches:
    """Memory that shrinks as KV does: normal deviates in bf16."""
    caches, rng = Caches(offer), np.random.default_rng(7)
    for pages in caches.pages.values():
        for layer in pages.spec.layers:
            rows = pages.array(layer)
            drawn = rng.standard_normal(rows.size // 2, np.float32)
            rows[:] = (drawn.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(rows.shape)
    return caches


async def keep_sending(pair: Pair, source: Caches, done: Callable[[], bool]) -> None:
    """One transfer after another, until it is done."""
    target, number = Caches(source.manifest, seed=2), 0
    while not done():
        number += 1
        target.manifest = manifest(f"r{number}", (SPEC,), TOKENS)
        out, incoming = await granted(pair.link, pair.server, target.manifest, source, target)
        ready_all(out)
        await out.committed()
        await incoming.committed()
    same(source, target)


async def test_loopback_is_not_coded() -> None:
    source = of_numbers(manifest("r0", (SPEC,), TOKENS))
    reports: list[EgressReport] = []
    async with joined(CONFIG, CONFIG) as pair:
        pair.link.on_report(reports.append, 0.1)
        until = time.monotonic() + 3.0
        async with asyncio.timeout(50):
            await keep_sending(pair, source, lambda: time.monotonic() > until)
        await asyncio.sleep(0.3)
        last = reports[-1]
        assert {report.compression for report in reports} == {"off"}
        assert last.compression_reason in set(Reason) - {Reason.WORTH_IT, Reason.UNUSED, Reason.NO_SMALLER}
        assert last.compression_ratio > 1.1
        assert last.encode_bps > 0
        assert last.totals.encode_s > 0
        assert 0 < last.totals.coded_wire_bytes < last.totals.coded_plain_bytes <= last.totals.encoded_bytes
        assert last.totals.encoded_bytes < 0.2 * last.totals.landed_bytes, "it is tried now and then"
        assert pair.server.links[0]._compression.decode_Bps > 0, "who decodes can say how fast"


async def test_a_link_whose_application_does_not_want_it_says_so() -> None:
    off = Config(plain=True, lanes=2, compression="off")
    offer = manifest("r0", (SPEC,), TOKENS)
    source, target = of_numbers(offer), Caches(offer, seed=2)
    async with joined(off, off) as pair:
        reports: list[EgressReport] = []
        pair.link.on_report(reports.append, 0.1)
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        ready_all(out)
        await out.committed()
        await incoming.committed()
        await asyncio.sleep(0.3)
        last = reports[-1]
    assert (last.compression, last.compression_reason) == ("off", Reason.UNUSED.value)
    assert last.totals.encoded_bytes == last.totals.coded_plain_bytes == 0
