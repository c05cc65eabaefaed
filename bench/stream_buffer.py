"""Goodput against a lane's receive buffer and the number of lanes, interleaved, as ratios to the default.

python bench/stream_buffer.py [--runs N]. Backs `Config.stream_bytes` and `Config.lanes`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics

import kvwire
from kvwire.cli import machine
from kvwire.cli.jobs import synthetic
from kvwire.cli.loopback.command import LOOPBACK_LANES
from kvwire.cli.loopback.pair import Pair
from kvwire.cli.units import KIB, MIB, show_size

STREAM_BYTES = (128 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB)
LANES = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    default, congestion = kvwire.Config(), machine.congestion(None)
    points = [(stream, LOOPBACK_LANES) for stream in STREAM_BYTES]
    points += [(default.stream_bytes, lanes) for lanes in LANES if lanes != LOOPBACK_LANES]
    job = synthetic(256 * MIB, MIB, 256 * MIB)
    seen: dict[tuple[int, int], list[float]] = {point: [] for point in points}
    with contextlib.ExitStack() as stack:
        pairs: dict[tuple[int, int], Pair] = {}
        for stream, lanes in points:
            config = kvwire.Config(lanes=lanes, stream_bytes=stream, congestion=congestion)
            pairs[stream, lanes] = stack.enter_context(Pair(config))
            pairs[stream, lanes].allocate(job.specs, job.tokens)
            pairs[stream, lanes].run(1)
        for _ in range(runs):
            for point, pair in pairs.items():
                run = pair.run(4)
                assert not run.damage, run.damage
                seen[point].append(run.goodput_GBps)
    base = statistics.median(seen[default.stream_bytes, LOOPBACK_LANES])
    results = []
    for (stream, lanes), figures in seen.items():
        ratio = statistics.median(figures) / base
        print(f"{lanes} lanes, {show_size(stream):>8}: {ratio:.2f} of the default's {base:.2f} GB/s")
        results.append({"lanes": lanes, "stream_bytes": stream, "ratio": round(ratio, 4)})
    print(json.dumps({"default_GBps": base, "runs": runs, "congestion": congestion, "results": results}))


if __name__ == "__main__":
    main()
