"""What the KV cache of a model weighs, and how long it takes to move.

Sizes are whole blocks. Times are bytes over the rate of the line: they leave out framing (TCP over Ethernet with an
MTU of 1500 carries 94.1 % of the line rate), round trips, and what leaves while prefill still runs.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kvwire
from kvwire.cli import record
from kvwire.cli.arguments import Subparsers, parsed, within
from kvwire.cli.failure import Failure
from kvwire.cli.jsontext import check_depth
from kvwire.cli.memory import kv_bytes
from kvwire.cli.models.presets import BLOCK_TOKENS, FIT, PRESETS, Preset, preset
from kvwire.cli.units import GB, show_size, show_time

TOKENS = (1 << 10, 8 << 10, 32 << 10, 128 << 10)
RATES_GBITPS = (1, 10, 25, 100)
OVERVIEW_TOKENS = 32 << 10
MAX_TOKENS = 1 << 24
MAX_BLOCKS = 1 << 20
"""Most blocks that a group can have."""
MAX_COUNTS = 16
MAX_BLOCK_TOKENS = 1 << 16
MAX_CONFIG_BYTES = 16 << 20
COLUMNS = 112
DTYPES = {
    "bf16": kvwire.DType.BF16,
    "fp16": kvwire.DType.FP16,
    "fp8": kvwire.DType.FP8_E4M3,
    "fp32": kvwire.DType.FP32,
}
_COUNT = re.compile(r"(\d{1,8})([km]?)", re.IGNORECASE)
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20}


def _counts(text: str) -> tuple[int, ...]:
    """Numbers of tokens, as "8192" or "8K,128K"."""
    matches = [_COUNT.fullmatch(part.strip()) for part in text.split(",")]
    counts = [int(match[1]) * _FACTORS[match[2].lower()] for match in matches if match]
    if len(counts) < len(matches) or not all(1 <= count <= MAX_TOKENS for count in counts) or len(counts) > MAX_COUNTS:
        raise ValueError(
            f"{text!r:.60}; expected up to {MAX_COUNTS} numbers of tokens in 1 to {MAX_TOKENS}, such as 8192 or 8K,128K"
        )
    return tuple(dict.fromkeys(counts))


def add_command(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("models", help="what models' KV caches weigh", description=__doc__)
    add = parser.add_argument
    add("models", nargs="*", type=parsed(preset), metavar="NAME", help=f"{', '.join(PRESETS)}; none: all in one table")
    add("--config", action="append", default=[], metavar="FILE.json", help="a model's config.json, as transformers has")
    add("--tokens", type=parsed(_counts), default=TOKENS, metavar="N[,N...]", help="as 8192 or 8K,128K")
    add("--block-tokens", type=within(1, MAX_BLOCK_TOKENS, int), default=BLOCK_TOKENS, metavar="N", help="of a block")
    add("--dtype", choices=DTYPES, default="bf16", help="of K and V; fp8 leaves states as they are with bf16")
    add("--json", action="store_true", help=record.HELP)
    parser.set_defaults(command=command)


def read_config(path: str) -> Preset:
    """The model of a `config.json`. `Failure` with what is wrong with the file."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Failure(f"--config {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MAX_CONFIG_BYTES:
        raise Failure(f"--config {path}: larger than {show_size(MAX_CONFIG_BYTES)}, so it is no config.json")
    try:
        text = content.decode(json.detect_encoding(content))
        check_depth(text)
        config = json.loads(text)
    except ValueError as error:
        raise Failure(f"--config {path}: not JSON ({error}); expected a transformers config.json") from None
    if not isinstance(config, dict):
        raise Failure(f"--config {path}: a {type(config).__name__}; expected an object, a transformers config.json")
    return Preset(path, str(config.get("model_type")), path, config)


class Weighed:
    """A model's KV cache in numbers. `Failure` where its configuration does not tell."""

    def __init__(self, model: Preset, options: argparse.Namespace) -> None:
        self.model = model
        counts = {*options.tokens, OVERVIEW_TOKENS}
        try:
            self.specs = model.specs(options.block_tokens, DTYPES[options.dtype])
            self.sizes = {count: kv_bytes(self.specs, count) for count in counts}
        except (ValueError, kvwire.KvwireError) as error:
            raise Failure(f"{model.name}: {error}") from None
        self.groups = [self._group(spec) for spec in self.specs]
        self.bytes_per_token = sum(g["bytes_per_token"] for g in self.groups if g["window"] is None)
        self.fixed_bytes = sum(g["fixed_bytes"] + g["full_window_bytes"] for g in self.groups)

    @staticmethod
    def _group(spec: kvwire.GroupSpec) -> dict[str, Any]:
        """`bytes_per_token`: by which the group grows, a sliding window until it is full; 0 for a state."""
        bytes_all = len(spec.layers) * spec.block_bytes
        per_token = 0 if spec.kind.is_state else bytes_all // spec.block_tokens
        return {
            "name": spec.name,
            "kind": spec.kind.value,
            "dtype": spec.dtype.value,
            "layers": len(spec.layers),
            "bytes_per_token": per_token,
            "fixed_bytes": bytes_all if spec.kind.is_state else 0,
            "window": spec.window or None,
            "full_window_bytes": per_token * spec.window,
        }

    @property
    def source(self) -> str:
        return "; ".join(filter(None, (self.model.source, self.model.note)))

    def result(self, tokens: Sequence[int]) -> dict[str, Any]:
        """For machines. `fixed_bytes`: what does not grow with a long prompt: states, and windows once full."""
        return {
            "name": self.model.name,
            "kind": self.model.kind,
            "source": self.source,
            "fit": self.model.source == FIT,
            "bytes_per_token": self.bytes_per_token,
            "fixed_bytes": self.fixed_bytes,
            "groups": self.groups,
            "bytes": {str(count): self.sizes[count] for count in tokens},
            "seconds": {
                str(rate): {str(count): seconds(self.sizes[count], rate) for count in tokens} for rate in RATES_GBITPS
            },
        }


def seconds(nbytes: int, rate_Gbitps: float) -> float:
    """Time of `nbytes` at line rate."""
    return nbytes * 8 / (rate_Gbitps * GB)


def command(options: argparse.Namespace) -> int:
    """Prints one table of all presets, or the models that were asked for in detail."""
    if max(*options.tokens, OVERVIEW_TOKENS) > MAX_BLOCKS * options.block_tokens:
        raise Failure(
            f"--tokens {max(options.tokens)} is more than {MAX_BLOCKS} blocks of {options.block_tokens} tokens; "
            "ask for larger blocks with --block-tokens"
        )
    asked = [*options.models, *map(read_config, options.config)]
    weighed = [Weighed(model, options) for model in asked or PRESETS.values()]
    if options.json:
        result = {
            "dtype": options.dtype,
            "block_tokens": options.block_tokens,
            "models": [model.result(options.tokens) for model in weighed],
        }
        record.show(record.record("models", {}, result))
        return 0
    if asked:
        print("\n\n".join(_details(model, options.tokens) for model in weighed))
    else:
        print(_overview(weighed, options.tokens))
    conventions = (__doc__ or "").partition("\n\n")[2]
    print("\n" + _wrapped(f"{options.dtype}, blocks of {options.block_tokens} tokens. {conventions}"))
    return 0


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(" ".join(text.split()), COLUMNS, initial_indent=indent, subsequent_indent=indent)


def _overview(weighed: Sequence[Weighed], tokens: Sequence[int]) -> str:
    name = max(len(model.model.name) for model in weighed)
    head = ["per token", "fixed", *map(show_count, tokens)]
    times = [f"{rate} Gb/s" for rate in RATES_GBITPS]
    lines = [f"{'':{name}}{_cells(head, 10)}  {_cells(times, 9)}"]
    for model in weighed:
        sizes = [model.bytes_per_token, model.fixed_bytes, *(model.sizes[count] for count in tokens)]
        taken = [show_time(seconds(model.sizes[OVERVIEW_TOKENS], rate)) for rate in RATES_GBITPS]
        lines.append(f"{model.model.name:{name}}{_cells(map(show_size, sizes), 10)}  {_cells(taken, 9)}")
    legend = (
        f"fixed: states, and sliding windows once full. Times are of {show_count(OVERVIEW_TOKENS)} tokens. "
        "A NAME shows a model's groups and where its shape is from."
    )
    return "\n".join([*lines, "", _wrapped(legend)])


def _details(model: Weighed, tokens: Sequence[int]) -> str:
    lines = [f"{model.model.name}: {model.model.kind}", _wrapped(f"shape: {model.source}", "  "), ""]
    lines.append(
        f"  {'group':<10}{_cells(['kind', 'dtype', 'layers', 'per token', 'fixed', 'window', 'when full'], 12)}"
    )
    for group in model.groups:
        cells = [group["kind"], group["dtype"], str(group["layers"])]
        cells += [show_size(group[what]) if group[what] else "" for what in ("bytes_per_token", "fixed_bytes")]
        cells += [str(group["window"] or ""), show_size(group["full_window_bytes"]) if group["window"] else ""]
        lines.append(f"  {group['name']:<10}{_cells(cells, 12)}")
    lines += ["", f"  {'tokens':<10}{_cells(['size', *(f'{rate} Gbit/s' for rate in RATES_GBITPS)], 12)}"]
    for count in tokens:
        taken = (show_time(seconds(model.sizes[count], rate)) for rate in RATES_GBITPS)
        lines.append(f"  {show_count(count):<10}{_cells([show_size(model.sizes[count]), *taken], 12)}")
    return "\n".join(line.rstrip() for line in lines)


def _cells(cells: Any, width: int) -> str:
    return "".join(f"{cell:>{width}}" for cell in cells)


def show_count(tokens: int) -> str:
    """Tokens as "32 K", "1000"."""
    return f"{tokens >> 10} K" if tokens % (1 << 10) == 0 else str(tokens)
