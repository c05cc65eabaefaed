"""The flags of `kvwire-bench wan`: which there are, what they mean where they are left out, which go together."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvwire.cli import compression
from kvwire.cli.arguments import Subparsers, parsed, within
from kvwire.cli.failure import Failure
from kvwire.cli.jobs import add_job_arguments
from kvwire.cli.units import MIB, parse_rate, parse_share, parse_size, parse_time

SCENARIOS = {
    "transfer": "single transfers over an idle link, beside iperf3",
    "step": "the rate falls and rises again",
    "black_hole": "nothing gets through for a while",
    "urgent": "small urgent transfers while others keep the link full",
    "beside": "plain TCP flows share the link",
    "model": "layers of a model's KV cache leave during prefill",
}
"""By the flag that asks for one; the first without any."""

LINK: Mapping[str, Any] = {
    "rtt": 0.040,
    "rate": 1e9,
    "loss": 0.0,
    "bursty": False,
    "jitter": 0.0,
    "reorder": 0.0,
    "queue": None,
}
"""What describes the emulated link, and what it is without being said."""

DEFAULTS: Mapping[str, Any] = {
    **LINK,
    "cc": None,
    "cold": False,
    "vs": "iperf3",
    "vs_compression": (),
    "iperf3_seconds": 15.0,
    "count": 200,
    "no_classes": False,
    "scale": 1,
    "seconds": 30.0,
}
SIZES = {"transfer": 512 * MIB}
SIZE = 64 * MIB
"""Of a transfer of the scenarios that keep several under way."""
RUNS = {"transfer": 5, "model": 5, "urgent": 1}
RUNS_OF_OTHERS = 3

ONLY_WITH = {
    "cold": ("transfer",),
    "vs": ("transfer",),
    "vs_compression": ("transfer",),
    "iperf3_seconds": ("transfer",),
    "grid": ("transfer",),
    "size": ("transfer", "step", "black_hole", "urgent", "beside"),
    "seconds": ("step", "black_hole", "beside"),
    "count": ("urgent",),
    "no_classes": ("urgent",),
    "tokens": ("model",),
    "scale": ("model",),
    "prefill": ("model",),
    "shaped": ("transfer", "urgent", "model"),
}
"""Flags that say something of these scenarios only."""

EXCLUDES = {
    "grid": ("rtt", "rate", "loss", "bursty", "cc", "shaped"),
    "shaped": (*LINK,),
    "bursty": ("loss",),
    "vs_compression": ("cold",),
}
"""Flags that leave nothing to say to these."""
WHY = {
    "grid": "the grid has cells of its own",
    "shaped": "a veth has no delay and loses nothing",
    "bursty": "its losses come in bursts",
    "vs_compression": "automatic codecs decide on a link that has carried something",
}


def _controlled(text: str) -> tuple[str, int]:
    """The congestion control and the number of "cubic=2"."""
    name, equals, count = text.partition("=")
    if not name or not equals or not count.isascii() or not count.isdecimal() or not 1 <= int(count) <= 64:
        raise ValueError(f"{text!r} names no flows; expected a congestion control and how many, such as cubic=2")
    return name, int(count)


def _comparison(text: str) -> str:
    if text not in ("iperf3", "none"):
        raise ValueError(f"{text!r} cannot be compared with; expected iperf3 or none")
    return text


def _positive(parse: Any) -> Any:
    def convert(text: str) -> Any:
        value = parse(text)
        if not value:
            raise ValueError(f"{text!r} is nothing; leave it out")
        return value

    return parsed(convert)


def add_arguments(subparsers: Subparsers, about: str | None) -> argparse.ArgumentParser:
    """The parser; defaults are filled in by `checked`, which has to know what was said."""
    parser = subparsers.add_parser("wan", help="over an emulated long and lossy link", description=about)
    size, time_s, share = parsed(parse_size), _positive(parse_time), parsed(parse_share)

    link = parser.add_argument_group("the emulated link, both directions alike")
    add = link.add_argument
    add("--rtt", metavar="TIME", type=time_s, help="round-trip time without queues (40ms)")
    add("--rate", metavar="RATE", type=parsed(parse_rate), help="of the bottleneck, IP packets included (1gbit)")
    add("--loss", metavar="SHARE", type=share, help="of packets, at random (0)")
    add("--bursty", action="store_true", default=None, help="Gilbert-Elliott loss: 0.05%% into and 20%% out of bursts")
    add("--jitter", metavar="TIME", type=time_s, help="of each packet's delay, more or less")
    add("--reorder", metavar="SHARE", type=share, help="of packets that overtake those that are delayed")
    add("--queue", metavar="BYTES", type=size, help="of the bottleneck (one bandwidth-delay product)")
    add("--shaped", metavar="RATE", type=parsed(parse_rate), help="no delay, no loss: a veth shaped by tbf, instead")
    add("--buffers", choices=("default", "big"), default="default", help="of sockets; big: up to 64 MiB")
    add("--seed", type=within(0, 2**31 - 1, int), default=1, help="of what is left to chance (1)")
    add("--grid", action="store_true", default=None, help="1 Gbit/s; 40, 80 ms; no, 0.01, 0.1 %% loss; bbr and cubic")

    scenario = parser.add_argument_group("what goes over it; single transfers without any of these")
    add = scenario.add_argument
    add("--cold", action="store_true", default=None, help="each transfer is the first on a fresh link with its lanes")
    add("--step", metavar="RATE", type=parsed(parse_rate), help="the rate changes to this one and back")
    add("--black-hole", choices=("lane", "all"), help="nothing of one lane, or nothing at all, gets through for 2 s")
    add("--urgent", metavar="TIME", type=time_s, help="an urgent transfer so often, others keep the link full")
    add("--no-classes", action="store_true", default=None, help="with --urgent: all of one class, to compare")
    add("--count", type=within(1, 100_000, int), help="of urgent transfers (200)")
    add("--beside", metavar="CC=N", type=parsed(_controlled), help="N plain TCP flows share the link")
    add_job_arguments(parser)
    add("--scale", type=within(1, 1000, int), metavar="N", help="with --model: a cache of one Nth of the bytes")

    add = parser.add_argument
    add("--cc", metavar="NAME", help="congestion control of all sockets (bbr where there is one)")
    add("--controller", metavar="NAME", help="kvwire's own congestion controller, such as fixed:pace_bps=5e8")
    add("-P", "--lanes", metavar="LANES", type=within(1, 64, int), help="TCP lanes, fixed")
    add("--size", metavar="BYTES", type=size, help="of a transfer (512MiB; 64MiB where several keep the link full)")
    add(
        "--runs",
        type=within(1, 1000, int),
        metavar="N",
        help="of which the median counts (5; one of --urgent, 3 of --step, --black-hole, --beside)",
    )
    add("--seconds", type=within(1, 3600, float), help="of a run over a link that changes or is shared (30)")
    add("--plain", action="store_true", help="CRC32C, no encryption, no keys")
    add("--vs", metavar="iperf3|none", type=parsed(_comparison), help="yardstick in the same rounds (iperf3)")
    add(
        "--vs-compression",
        metavar="NAME,...",
        type=parsed(compression.settings),
        help="the same transfers with other settings of --compression in the same rounds, such as off,zstd",
    )
    add("--iperf3-seconds", metavar="S", type=within(1, 600, float), help="of each of its runs (15)")
    add("--keep", metavar="DIR", type=Path, help="keep what iperf3 printed")
    add("--html", metavar="FILE", type=Path, help="one page with charts")
    add("--json", action="store_true", help="print one JSON object a line, the last one the result")
    return parser


def scenario_of(options: Namespace) -> str:
    """Which one is asked for. `Failure` for several."""
    asked = [name for name in list(SCENARIOS)[1:] if getattr(options, name) is not None]
    if len(asked) > 1:
        raise Failure(f"{' and '.join(map(_flag, asked))} are scenarios of their own; measure one after the other")
    return asked[0] if asked else next(iter(SCENARIOS))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def checked(options: Namespace) -> Namespace:
    """The options with `scenario` and all defaults. `Failure` for those that do not go together."""
    scenario = scenario_of(options)
    said = {name for name, value in vars(options).items() if value is not None}
    if not options.prefill:
        said.discard("prefill")
    for name, scenarios in ONLY_WITH.items():
        if name in said and scenario not in scenarios:
            if scenario == "transfer":
                raise Failure(f"{_flag(name)} needs {' or '.join(map(_flag, scenarios))}")
            raise Failure(f"{_flag(name)} does not go with {_flag(scenario)}")
    for name, others in EXCLUDES.items():
        for other in others:
            if name in said and other in said:
                raise Failure(f"{_flag(name)} and {_flag(other)} do not go together: {WHY[name]}")
    found = Namespace(**vars(options))
    for name, value in DEFAULTS.items():
        if getattr(found, name) is None:
            setattr(found, name, value)
    found.scenario = scenario
    found.size = options.size or SIZES.get(scenario, SIZE)
    found.runs = options.runs or RUNS.get(scenario, RUNS_OF_OTHERS)
    if found.compression in found.vs_compression:
        raise Failure(f"--vs-compression {found.compression} compares another compression with what is that already")
    if scenario == "model" and options.tokens is None:
        raise Failure("--model needs --tokens")
    return found
