"""What a measurement moves: synthetic pages, or a model's KV cache."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import kvwire
from kvwire.cli import compression
from kvwire.cli.arguments import parsed, within
from kvwire.cli.content import KV, NOISE
from kvwire.cli.failure import Failure
from kvwire.cli.memory import kv_bytes
from kvwire.cli.models.presets import PRESETS, preset
from kvwire.cli.units import MIB, parse_size, show_size

SEGMENTS = 8
"""Layers of the synthetic group."""
MAX_PAGE_BYTES = 256 * MIB
MAX_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True)
class Job:
    """KV caches of one shape, `transfers` of them."""

    model: str
    specs: tuple[kvwire.GroupSpec, ...]
    tokens: int
    transfers: int
    content: str = NOISE
    """Of its blocks: `content.CONTENTS`."""

    @property
    def transfer_bytes(self) -> int:
        return kv_bytes(self.specs, self.tokens)

    @property
    def segments(self) -> int:
        return sum(len(spec.layers) for spec in self.specs)


def synthetic(nbytes: int, page_bytes: int, most_bytes: int, content: str = NOISE) -> Job:
    """About `nbytes` in whole pages of one size, in transfers of at most `most_bytes`. `Failure` if impossible.

    Noise is of bytes, keys and values are of bf16."""
    if page_bytes % 8 or not 512 <= page_bytes <= MAX_PAGE_BYTES:
        raise Failure(f"--page is {page_bytes} bytes; expected a multiple of 8 in 512 to {MAX_PAGE_BYTES}")
    transfer = min(nbytes, most_bytes)
    if transfer < page_bytes:
        raise Failure(f"{show_size(transfer)} are less than one page of {show_size(page_bytes)}; give a smaller --page")
    layers = min(SEGMENTS, transfer // page_bytes)
    blocks = transfer // (layers * page_bytes)
    dtype = kvwire.DType.BF16 if content == KV else kvwire.DType.UINT8
    part = kvwire.Part("page", (page_bytes // dtype.itemsize,))
    spec = kvwire.GroupSpec("pages", kvwire.GroupKind.FULL, tuple(range(layers)), dtype, (part,), block_tokens=1)
    return Job("bench", (spec,), blocks, max(1, round(nbytes / (layers * blocks * page_bytes))), content)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags from which `job_of` makes a job."""
    add = parser.add_argument
    add("--page", metavar="BYTES", type=parsed(parse_size), default=MIB, help="page size (1MiB)")
    add("--scatter", action="store_true", help="pages in random order on both sides")
    add("--model", type=parsed(preset), metavar="NAME", help=f"move a model's KV: {', '.join(PRESETS)}")
    add("--tokens", type=within(1, MAX_TOKENS, int), metavar="N", help="tokens of the model's KV")
    add("--prefill", type=within(0, 600, float), metavar="SECONDS", default=0.0, help="pace layers over this time")
    compression.add_arguments(parser)


def job_of(options: argparse.Namespace, nbytes: int, most_bytes: int) -> Job:
    """The job that the flags ask for; `nbytes` and `most_bytes` are for synthetic pages. ConfigError for a codec that
    does not take it."""
    job = _job(options, nbytes, most_bytes)
    compression.check(options.compression, job.specs)
    return job


def _job(options: argparse.Namespace, nbytes: int, most_bytes: int) -> Job:
    if options.model is None:
        if options.tokens is not None:
            raise Failure("--tokens needs --model")
        return synthetic(nbytes, options.page, most_bytes, options.content)
    if options.tokens is None:
        raise Failure("--model needs --tokens")
    return Job(options.model.name, options.model.specs(), options.tokens, 1, options.content)
