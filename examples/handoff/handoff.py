"""Prefill in one process, decode in another: does the KV cache arrive as it left, and in time?

    python examples/handoff/handoff.py --config my-model/config.json --prompt-tokens 2048

Both processes build the same model from a transformers configuration (random weights, nothing is downloaded).
One prefills a prompt and sends every layer's cache over kvwire, sealed, as soon as that layer is done; the other
builds the cache anew and decodes. Its tokens and logits are compared, bit for bit, with those of a decode that never
left the first process. Without --config or --family, all configurations in `configs/` take their turn.

Exit status: 0 identical, 1 different, 2 nothing to compare (one sentence says why).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs import BadConfig, HandoffError, Job, Received, Sent
from pair import Pair

CONFIGS = Path(__file__).parent / "configs"

IDENTICAL, DIFFERENT, NOTHING = 0, 1, 2


def at_least_one(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def lanes(text: str) -> int:
    """argparse type: a number of lanes that kvwire takes."""
    value = at_least_one(text)
    if value > 64:
        raise argparse.ArgumentTypeError(f"{value} is more than 64")
    return value


def codecs(text: str) -> str | dict[str, str]:
    """argparse type: what `kvwire.Config.compression` takes. Whether it makes sense kvwire says."""
    if "=" not in text:
        return text
    return {kind: name for kind, _, name in (part.partition("=") for part in text.split(","))}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.json",
        help="a transformers config.json; may be given more than once",
    )
    parser.add_argument(
        "--family",
        action="append",
        default=[],
        choices=sorted(f.stem for f in CONFIGS.glob("*.json")),
        help="a configuration that comes with this example; may be given more than once",
    )
    parser.add_argument("--dtype", choices=("bf16", "fp32", "fp16"), default="bf16", help="of the weights [bf16]")
    parser.add_argument(
        "--prompt-tokens", type=at_least_one, default=512, metavar="N", help="length of the prompt [512]"
    )
    parser.add_argument("--decode-tokens", type=at_least_one, default=16, metavar="N", help="tokens to compare [16]")
    parser.add_argument("--lanes", type=lanes, default=4, metavar="N", help="TCP connections, 1 to 64 [4]")
    parser.add_argument("--plain", action="store_true", help="CRC32C, no encryption, no keys")
    parser.add_argument(
        "--compression",
        type=codecs,
        default="auto",
        metavar="NAME",
        help="what the cache goes through: auto, off, the name of a codec, or full=int8,recurrent=zstd by kind [auto]",
    )
    parser.add_argument(
        "--damage",
        nargs="?",
        const="any",
        metavar="WHAT",
        help="flip the signs of one received tensor before decoding: full, window, mla, recurrent, "
        "conv, or part of its path such as layers.3.keys [the first]; must say 'different'",
    )
    return parser.parse_args(arguments)


def load(path: Path) -> dict[str, object]:
    """A configuration file. Raises `BadConfig`."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise BadConfig(f"it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadConfig(f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadConfig(f"it holds a {type(value).__name__}, expected an object with a model_type")
    return value


def why_not(compression: str | dict[str, str]) -> str:
    """Empty, or what is wrong with it, in a sentence."""
    import kvwire  # here, so that the command can say that there is none

    try:
        kvwire.Config(compression=compression)
        for name in [compression] if isinstance(compression, str) else compression.values():
            if name not in ("auto", "off"):
                kvwire.find_codec(name)
    except kvwire.ConfigError as error:
        return str(error)
    return ""


HEADER = (
    f"{'model':<20} {'dtype':<5} {'tokens':>6}  {'layers of each kind':<32} {'KiB':>8} {'coded':>6} {'early':>6} "
    f"{'prefill':>9} {'tail':>8}  verdict"
)


def row(job: Job, sent: Sent, received: Received) -> str:
    """A line of the table. Coded: how many times shorter that went which went through a codec. Early: layers that were
    at the decoder when the last one was ready to leave."""
    plain, wire = sent.coded
    coded = f"{plain / wire:.2f}x" if wire else "-"
    early = sum(at < sent.last_ready for at in received.landed) / len(received.landed)
    return (
        f"{job.name:<20} {job.dtype:<5} {job.prompt_tokens:>6}  {sent.groups:<32} {sent.nbytes / 1024:>8.1f} "
        f"{coded:>6} {early:>6.0%} {sent.prefill_s * 1e3:>6.1f} ms {sent.tail_s * 1e3:>5.2f} ms"
    )


def run(jobs: dict[Path, Job | HandoffError], start: Callable[[], Pair]) -> int:
    """Does the jobs one after the other in one pair of processes, prints the table; the exit status."""
    status = IDENTICAL
    pair: Pair | None = None
    print(HEADER, flush=True)
    try:
        for path, job in jobs.items():
            try:
                if isinstance(job, HandoffError):
                    raise job
                pair = pair or start()
                sent, received = pair.run(job)
            except HandoffError as error:
                print(f"handoff: {path}: {error}", file=sys.stderr, flush=True)
                status, pair = NOTHING, None
                continue
            same = sent.decoded == received.decoded
            status = max(status, IDENTICAL if same else DIFFERENT)
            damaged = f" ({received.damaged} was damaged)" if received.damaged else ""
            print(f"{row(job, sent, received)}  {'identical' if same else 'different'}{damaged}", flush=True)
    finally:
        if pair is not None:
            pair.close()
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    missing = [name for name in ("kvwire", "torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"handoff: {' and '.join(missing)} cannot be imported; pip install 'kvwire[models]'", file=sys.stderr)
        return NOTHING
    if fault := why_not(options.compression):
        print(f"handoff: --compression: {fault}", file=sys.stderr)
        return NOTHING
    files = options.config + [CONFIGS / f"{name}.json" for name in options.family]
    jobs: dict[Path, Job | HandoffError] = {}
    for path in files or sorted(CONFIGS.glob("*.json")):
        try:
            settings = (options.dtype, options.prompt_tokens, options.decode_tokens, options.damage)
            jobs[path] = Job(path.stem, load(path), *settings)
        except BadConfig as error:
            jobs[path] = error
    return run(jobs, lambda: Pair(options.lanes, options.plain, options.compression))


if __name__ == "__main__":
    sys.exit(main())
