"""Automatic codecs over a link that is slow enough for them."""

import numpy as np
import pytest

from kvwire import Config, EgressReport
from kvwire._ext import zstdlib
from kvwire.codecs.adaptive import Reason
from kvwire.emulate import Wan
from tests.wan.kit import needs_wan
from tests.wan.nodes import RATE_BPS, Transfer, across, way

pytestmark = [
    needs_wan,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(zstdlib.find() is None, reason="no libzstd on this machine"),
]


def of_numbers(transfer: Transfer) -> Transfer:
    """What it moves shrinks as KV does: normal deviates in bf16."""
    rng = np.random.default_rng(7)
    for pages in transfer.source.pages.values():
        for layer in pages.spec.layers:
            rows = pages.array(layer)
            drawn = rng.standard_normal(rows.size // 2, np.float32)
            rows[:] = (drawn.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(rows.shape)
    return transfer


async def test_a_slow_link_carries_more_than_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goodput above the rate of the link, and capacity that stays where it is. Both ends and the emulator share the
    cores of this machine, so that cores are spare is said here and not measured."""
    monkeypatch.setattr("kvwire.cores.Cores.idle", lambda self, now: 2.0)
    reports: list[EgressReport] = []
    with Wan(way(0.02)) as wan:
        async with across(wan, Config(plain=True)) as pair:
            pair.link.on_report(reports.append, 0.25)
            for number in range(8):
                await of_numbers(Transfer(2.0, f"r{number}")).move(pair)
                if number > 2 and reports[-1].compression == "on":
                    break
    coded = [report for report in reports if report.compression == "on"]
    assert coded, [report.compression_reason for report in reports]
    assert Reason.WORTH_IT in {report.compression_reason for report in coded}
    assert max(report.goodput_bps for report in coded) > 1.1 * RATE_BPS
    assert max(report.capacity_bps for report in reports) < 1.3 * RATE_BPS
    assert 0.4 * RATE_BPS < coded[-1].link_bps < 1.3 * RATE_BPS
    assert all(report.utilisation <= 1.0 for report in reports)
    assert coded[-1].totals.coded_plain_bytes > 1.3 * coded[-1].totals.coded_wire_bytes
