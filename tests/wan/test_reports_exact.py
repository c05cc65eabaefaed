"""Reports against what the emulated link itself has counted."""

import json
import subprocess
import sys
from statistics import median
from typing import Any

from kvwire.emulate import Counters, Path, Wan
from tests.wan.kit import in_user_mode, needs_wan

pytestmark = needs_wan

MIB = 1 << 20
RATE_BPS = 1e8


def moved(loss: float, nbytes: int, count: int, pause_s: float) -> tuple[list[dict[str, Any]], Counters]:
    """What a sender reported, and what the link has counted meanwhile."""
    words = [sys.executable, "-m", "tests.wan.moving"]
    with Wan(Path(delay_s=0.01, rate_bps=RATE_BPS, queue_bytes=500_000, loss=loss)) as wan:
        server = wan.popen("b", [*words, "serve", wan.addresses[1]], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        assert server.stdout.readline() == "serving\n"
        before = wan.counters()["there"]
        sending = [*words, "send", wan.addresses[1], str(nbytes), str(count), str(pause_s)]
        sent = wan.run("a", sending, stdout=subprocess.PIPE, text=True, check=True, timeout=50)
        counted = wan.counters()["there"].since(before)
        server.kill()
        server.wait()
        server.stdout.close()
    return [json.loads(line) for line in sent.stdout.splitlines()], counted


def near(value: float, counted: float, packets: float = 10) -> bool:
    """Within 5 % or so many packets."""
    return abs(value - counted) <= max(0.05 * counted, packets)


def test_a_link_that_is_full_and_loses() -> None:
    reports, counted = moved(0.001, 64 * MIB, 1, 0.0)
    totals = reports[-1]["totals"]
    assert totals["landed_bytes"] >= 64 * MIB
    assert near(totals["wire_bytes"] + 52 * totals["segments"], counted.bytes_in, 10 * 1500)
    assert near(totals["delivered_segments"], counted.segments_out)
    lost = totals["retransmitted_segments"] - totals["spurious_segments"]
    assert near(lost, counted.lost + counted.overflowed)
    busy = [report for report in reports[2:-2] if report["application_limited_share"] == 0]
    full = busy[1:]  # its first second may be one of growth
    assert full
    assert not any(report["capacity_is_lower_bound"] for report in full)
    # In the middle: where the host stands still for a moment, what was under way arrives within one report's period. A
    # user-mode Linux often does, and capacity is the most of any half second.
    capacity_bps = median(report["capacity_bps"] for report in full)
    assert abs(capacity_bps - RATE_BPS) < (0.25 if in_user_mode else 0.05) * RATE_BPS
    assert median(report["utilisation"] for report in full) > 0.8


def test_a_link_with_little_to_do() -> None:
    reports, _ = moved(0.0, MIB, 16, 0.2)
    for report in reports:
        assert report["capacity_is_lower_bound"]
        assert report["capacity_bps"] < 1.05 * RATE_BPS
