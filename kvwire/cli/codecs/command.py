"""What codecs make of keys and values: how much shorter, how fast on one core, and what is lost.

On numbers that are made as models have them, or on yours: an .npz (numpy.savez) with an array for each layer's keys and
values. Beside zstd alone, and blosc2 where that is installed. A codec wins on links up to the rate that is shown: there
it carries at least 1.1 times what the link alone does, with one core at either end for each link's share.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvwire._ext import zstdlib
from kvwire._ext.codec import Scratch
from kvwire.cli import machine, record
from kvwire.cli.arguments import Subparsers, parsed, within
from kvwire.cli.codecs import measure
from kvwire.cli.codecs.measure import Row, Trial
from kvwire.cli.codecs.samples import Sample, dtypes, load, synthetic
from kvwire.cli.failure import Failure
from kvwire.cli.progress import Progress
from kvwire.cli.units import GB, KIB, parse_size, show_rate, show_size
from kvwire.codecs import codecs

LINKS_BPS = (200e6, 1e9, 10e9, 25e9)
SMALLEST_CELL, LARGEST_CELL = 4 * KIB, 256 * KIB
COLUMNS = 112


def _cell_size(text: str) -> int:
    size = parse_size(text)
    if not SMALLEST_CELL <= size <= LARGEST_CELL or size % KIB:
        raise ValueError(f"{text!r}; expected whole KiB in 4KiB to 256KiB")
    return size


def add_command(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "codecs", help="what codecs make of keys and values, and on which links they are worth it", description=__doc__
    )
    add = parser.add_argument
    add(
        "--npz",
        type=Path,
        metavar="FILE",
        help="keys and values of a model: an array for each layer's keys, and values",
    )
    add("--order", choices=("NHD", "HND"), default="NHD",
        help="of its axes: tokens, heads, dim (the default), or heads, tokens, dim")  # fmt: skip
    add("--cell", type=parsed(_cell_size), default=64 * KIB, metavar="SIZE", help="bytes of a cell (64KiB)")
    add("--rounds", type=within(1, 1000, int), default=9, metavar="N", help="how often each is measured (9)")
    add("--json", action="store_true", help=record.HELP)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """1 where a lossless codec did not give the same bytes back."""
    samples = synthetic() if options.npz is None else load(options.npz, options.order)
    trials, left_out = _trials(samples, options.cell)
    with Progress() as progress:
        measure.run(trials, options.rounds, progress.say)
    rows = [trial.row for trial in trials]
    wrong = sum(row.wrong_cells for row in rows)
    if options.json:
        record.show(record.record("codecs", {"here": machine.describe()}, _result(rows, left_out, samples, options)))
    else:
        print(_text(rows, left_out, samples, options.cell))
    if wrong:
        raise Failure(f"{wrong} cells came back as others")
    return 0


def _trials(samples: Sequence[Sample], cell_bytes: int) -> tuple[list[Trial], dict[str, str]]:
    """And why the other codecs are left out."""
    scratch, found, left_out = Scratch(cell_bytes), [], {}
    for codec in codecs():
        trial = measure.of_codec(codec, samples, cell_bytes, scratch) if codec.available else None
        if trial is not None:
            found.append(trial)
        else:
            left_out[codec.name] = f"not for {dtypes(samples)}" if codec.available else "there is no libzstd"
    return [*found, *measure.of_others(samples, cell_bytes)], left_out


def _result(
    rows: Sequence[Row], left_out: dict[str, str], samples: Sequence[Sample], options: argparse.Namespace
) -> dict[str, Any]:
    library = zstdlib.find()
    return {
        "data": "synthetic" if options.npz is None else str(options.npz),
        "dtypes": dtypes(samples),
        "bytes": sum(len(sample.data) for sample in samples),
        "cell_bytes": options.cell,
        "rounds": options.rounds,
        "zstd": None if library is None else library.version,
        "left_out": left_out,
        "codecs": [_row(row) for row in rows],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "lossless": row.lossless,
        "kvwire": row.ours,
        "ratio": row.ratio,
        "encode_bps": row.encode_bps,
        "decode_bps": row.decode_bps if row.coded_cells else None,
        "relative_error": None if row.lossless else row.relative_error,
        "cells": row.cells,
        "coded_cells": row.coded_cells,
        "wins_below_bps": row.wins_below_bps,
        "speed_up": {f"{link:.0f}": row.speed_up(link) for link in LINKS_BPS},
    }


def _text(rows: Sequence[Row], left_out: dict[str, str], samples: Sequence[Sample], cell_bytes: int) -> str:
    total = sum(len(sample.data) for sample in samples)
    links = "".join(f"{show_rate(link):>13}" for link in LINKS_BPS)
    lines = [
        f"{show_size(total)} of {dtypes(samples)}, cells of {show_size(cell_bytes)}; one core, GB/s of what goes in",
        "",
        f"{'codec':12}{'ratio':>7}{'encode':>9}{'decode':>9}{'error':>10}{'wins up to':>15}{links}",
    ]
    for row in rows:
        error = "none" if row.lossless else "?" if row.relative_error is None else f"{row.relative_error:.2g}"
        decode = f"{row.decode_bps / 8 / GB:9.2f}" if row.coded_cells else f"{'-':>9}"
        wins = show_rate(row.wins_below_bps) if row.wins_below_bps else "never"
        faster = "".join(f"{row.speed_up(link):>12.2f}x" for link in LINKS_BPS)
        lines.append(
            f"{row.name:12}{row.ratio:>7.2f}{row.encode_bps / 8 / GB:>9.2f}{decode}{error:>10}{wins:>15}{faster}"
        )
    note = (
        "The right part says how many times faster a link of that rate carries these cells. The error is that of the "
        "numbers, beside their own size; what it does to a model is another question (docs/compression.md)."
    )
    lines += ["", *textwrap.wrap(note, COLUMNS)]
    lines += [f"{name} is left out: {why}." for name, why in left_out.items()]
    return "\n".join(lines)
