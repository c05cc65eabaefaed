"""What a sample of all lanes costs: TCP_INFO by the workers, and what Python reads of it, in CPU time of the process.

    python bench/sampling.py [--lanes N] [--runs N]

The lanes stand still, so all CPU time is the sample's. Beside it: getsockopt(TCP_INFO) of as many sockets by a loop in
Python, in the same run. Figures are medians of `--runs` turns of 200 samples. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import statistics
import time

from kvwire._ext.engine import Engine
from kvwire._ext.lanes import EngineLink

SAMPLES = 200
TCP_INFO = 11
TCP_INFO_BYTES = 280


def tcp_pairs(count: int) -> list[tuple[socket.socket, socket.socket]]:
    pairs = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(count):
            dialled = socket.create_connection(listener.getsockname())
            pairs.append((dialled, listener.accept()[0]))
    return pairs


def sample(engine: Engine, link: EngineLink) -> None:
    """As a link does on each tick: ask, be woken, read all there is."""
    wanted = link.sampled + 1
    link.request_sample()
    while link.sampled < wanted:
        select.select([engine.fileno()], [], [])
        engine.drain()
    link.link_stats()
    assert all(stats["tcp_info"] for stats in link.lane_stats())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    engine = Engine()
    link = EngineLink(engine)
    pairs = tcp_pairs(arguments.lanes)
    others = [dialled.dup() for dialled, _ in pairs]
    for lane, (dialled, _) in enumerate(pairs):
        link.add_lane(dialled.detach(), lane, 0)
    seen: dict[str, list[float]] = {"sample": [], "getsockopt": []}
    for _ in range(arguments.runs):
        start = time.process_time_ns()
        for _ in range(SAMPLES):
            sample(engine, link)
        between = time.process_time_ns()
        for _ in range(SAMPLES):
            for other in others:
                other.getsockopt(socket.IPPROTO_TCP, TCP_INFO, TCP_INFO_BYTES)
        seen["sample"].append((between - start) / SAMPLES / 1000)
        seen["getsockopt"].append((time.process_time_ns() - between) / SAMPLES / 1000)
    us = {name: statistics.median(figures) for name, figures in seen.items()}
    ratio = us["sample"] / us["getsockopt"]
    print(f"{arguments.lanes} lanes: {us['sample']:.0f} us of CPU a sample, {ratio:.2f} of the getsockopt calls alone")
    print(json.dumps({"lanes": arguments.lanes, "sample_cpu_us": round(us["sample"], 1), "ratio": round(ratio, 3)}))
    link.close()
    engine.close()
    for sock in [*others, *(accepted for _, accepted in pairs)]:
        sock.close()


if __name__ == "__main__":
    main()
