"""make demo: the KV caches of four models, moved layer by layer between two processes over TCP, every byte checked."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

from kvwire import Config, KvwireError
from kvwire.cli import machine, sealing
from kvwire.cli.failure import Failure
from kvwire.cli.loopback.command import LOOPBACK_LANES
from kvwire.cli.loopback.pair import Moved, Pair, Run
from kvwire.cli.memory import kv_bytes
from kvwire.cli.models.presets import Preset, preset
from kvwire.cli.progress import Progress
from kvwire.cli.units import show_size

MODELS = (("llama-3-70b", 1024), ("kimi-linear-48b", 32768), ("gemma-3-27b", 2048), ("nemotron-h-8b", 16384))
"""Model and tokens: 280 to 580 MiB each."""
PREFILL_S = 2.5
"""The pace at which layers become ready."""
AT_ONCE = 3
"""Transfers with all layers ready at once; their median is the goodput."""

HEAD = ("model", "kind", "tokens", "groups", "bytes", "goodput", "tail", "verdict")


def row(model: Preset, tokens: int, bulk: Run, streamed: Moved) -> tuple[str, ...]:
    """A line of the table."""
    groups = ", ".join(f"{spec.name} x{len(spec.layers)}" for spec in model.specs())
    goodput = statistics.median(m.sent.nbytes / m.sent.elapsed_s / 1e9 for m in bulk.moved)
    verdict = "WRONG" if bulk.damage or streamed.damage else "every byte right"
    size, tail = show_size(streamed.sent.nbytes), f"{streamed.sent.tail_s * 1e3:.1f} ms"
    return (model.name, model.kind, str(tokens), groups, size, f"{goodput:.2f} GB/s", tail, verdict)


def demo(plain: bool) -> int:
    """Exit status 1 where a byte was wrong."""
    congestion = machine.congestion(None)
    config = Config(lanes=LOOPBACK_LANES, congestion=congestion, plain=plain)
    machine.check_memory(2 * max(kv_bytes(preset(name).specs(), tokens) for name, tokens in MODELS))
    mode = sealing.mode(plain) if plain else f"sealed, AES-256-GCM by {sealing.cipher_name()}, keys made for this run"
    print(f"Two processes, TCP on 127.0.0.1, {config.lanes} lanes, {congestion}; {mode}.", flush=True)
    rows: list[tuple[str, ...]] = [HEAD]
    wrong: list[str] = []
    with Progress() as progress, Pair(config) as pair:
        for name, tokens in MODELS:
            model = preset(name)
            segments = sum(len(spec.layers) for spec in model.specs())
            progress.say(f"{name}: making {show_size(model.kv_bytes(tokens))} of KV on both sides")
            pair.allocate(model.specs(), tokens)
            bulk = pair.run(AT_ONCE)

            def landed(count: int, segments: int = segments, name: str = name) -> None:
                progress.say(f"{name}: {count} of {segments} segments have landed", count / segments)

            streamed = pair.move(name, PREFILL_S, landed=landed)
            wrong += [f"{name}: {sentence}" for sentence in bulk.damage + streamed.damage]
            rows.append(row(model, tokens, bulk, streamed))
            progress.say("")
            print(f"{name}: {', '.join(rows[-1][4:])}", flush=True)
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    print()
    for line in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"\ngoodput: all layers ready at once. tail: last layer ready to receipt, layers paced over {PREFILL_S} s.")
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    return 1 if wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all well, 1 bytes were wrong, 2 it could not run, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--plain", action="store_true", help="CRC32C, no encryption, no keys")
    try:
        return demo(parser.parse_args(arguments).plain)
    except (Failure, KvwireError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
