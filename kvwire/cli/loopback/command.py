"""kvwire-bench loopback: two processes on this machine, real TCP on 127.0.0.1."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from dataclasses import replace
from typing import Any

import kvwire
from kvwire.cli import compression, machine, record, sealing
from kvwire.cli.arguments import Subparsers, parsed, within
from kvwire.cli.compression import Coding
from kvwire.cli.failure import Failure
from kvwire.cli.jobs import Job, add_job_arguments, job_of, synthetic
from kvwire.cli.loopback import busy, iperf3
from kvwire.cli.loopback.pair import Pair, Run
from kvwire.cli.memory import last_layer_bytes
from kvwire.cli.progress import Progress
from kvwire.cli.units import GB, MIB, parse_size, show_size
from kvwire.codecs import codecs
from kvwire.codecs.choice import AUTO, OFF
from kvwire.congestion import LanePlanner

BUFFER_BYTES = 512 * MIB
"""Largest transfer of the synthetic group; a larger run moves several through the same memory."""
IPERF3_STREAMS = (1, 2, 4)
TAIL_SLACK_S = 0.005


def _comparison(text: str) -> str | int:
    """The page size of "page=SIZE", or another word as it is. ValueError for what cannot be compared with."""
    if text in ("iperf3", "plain", *_settings()):
        return compression.setting(text) if text in _settings() else text
    name, equals, size = text.partition("=")
    if name == "page" and equals:
        return parse_size(size)
    others = ", ".join(_settings())
    raise ValueError(f"{text!r} cannot be compared with; expected iperf3, plain or page=SIZE, or another of {others}")


def _settings() -> list[str]:
    """Of compression, those of a single word."""
    return [OFF, AUTO, *(codec.name for codec in codecs())]


LOOPBACK_LANES = LanePlanner(None).start(0.0)
"""What a link has within a site."""


VS = f"compare with iperf3, plain, page=SIZE, or another compression: {OFF}, {AUTO}, the name of a codec"


def add_command(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("loopback", help="two processes on this machine", description=__doc__)
    add = parser.add_argument
    lanes = within(1, 64, int)
    add("-P", "--lanes", metavar="LANES", type=lanes, default=LOOPBACK_LANES, help=f"TCP lanes ({LOOPBACK_LANES})")
    size = parsed(parse_size)
    add(
        "-n",
        dest="nbytes",
        metavar="BYTES",
        type=size,
        default=2048 * MIB,
        help="bytes per run, as 512MiB or 2G (2GiB)",
    )
    add_job_arguments(parser)
    add("--busy-host", action="store_true", help="a pure-Python loop in both processes, beside loops of their own")
    add("--plain", action="store_true", help="CRC32C, no encryption, no keys")
    add("--vs", type=parsed(_comparison), metavar="WHAT", action="append", default=[], help=VS)
    add("--runs", type=within(1, 1000, int), metavar="N", default=5, help="rounds of the measurement (5)")
    add("--cc", metavar="NAME", help="congestion control of all sockets (cubic where there is one)")
    add("--json", action="store_true", help=record.HELP)
    parser.set_defaults(command=command)


def jobs_of(options: argparse.Namespace) -> dict[str, Job]:
    """What is measured in each round, "kvwire" first. `Failure` for flags that do not go together."""
    pages = [page for page in options.vs if isinstance(page, int)]
    if len(pages) > 1:
        raise Failure("--vs page=SIZE can be given once")
    if pages and options.model is not None:
        raise Failure("--vs page=SIZE compares page sizes; a model has its own")
    if options.plain and "plain" in options.vs:
        raise Failure("--vs plain compares a sealed link with a plain one; leave --plain out")
    if options.compression in options.vs:
        raise Failure(f"--vs {options.compression} compares another compression with what is that already")
    jobs = {"kvwire": job_of(options, options.nbytes, BUFFER_BYTES)}
    for name in options.vs:
        if name in _settings():
            compression.check(name, jobs["kvwire"].specs)
        if name != "iperf3" and not isinstance(name, int):
            jobs[name] = jobs["kvwire"]
    if pages:
        jobs["page"] = synthetic(options.nbytes, pages[0], BUFFER_BYTES, options.content)
        compression.check(options.compression, jobs["page"].specs)
    return jobs


def command(options: argparse.Namespace) -> int:
    """Measures and prints. Exit status 1 where a byte was wrong."""
    jobs = jobs_of(options)
    congestion = machine.congestion(options.cc)
    compared = {"iperf3": iperf3.version()} if "iperf3" in options.vs else {}
    machine.check_memory(2 * sum(job.transfer_bytes for job in jobs.values()))
    job, here = jobs["kvwire"], machine.describe()
    if not options.json:
        what = f"{job.model}, {job.tokens} tokens: " if options.model else ""
        print(
            f"{what}{show_size(job.transfer_bytes)} in {job.segments} segments, {job.transfers} times a run; "
            f"{options.runs} runs, {options.lanes} lanes, {sealing.mode(options.plain)}, {congestion}, "
            f"compression {options.compression}"
        )
        print(", ".join([machine.show(here), *compared.values()]), flush=True)
    rounds = Rounds(jobs, options)
    with contextlib.ExitStack() as stack:
        config = kvwire.Config(
            lanes=options.lanes,
            congestion=congestion,
            plain=options.plain,
            compression=compression.choice(options.compression),
        )
        rounds.measure(stack, config)
    result = rounds.summary() | compared
    if options.json:
        record.show(record.record("loopback", {"here": here}, result))
    else:
        for name, value in result.items():
            if isinstance(value, float):
                print(f"{name:>20}  {value:.4g}")
        for sentence in result["damage"]:
            print(f"WRONG: {sentence}")
        print("every byte was right" if result["verified"] else "NOT VERIFIED: bytes were wrong")
    return 0 if result["verified"] else 1


class Rounds:
    """What was measured: in each round all that are compared, one after the other, so that a slow minute of the
    machine meets them alike."""

    def __init__(self, jobs: dict[str, Job], options: argparse.Namespace) -> None:
        self.jobs, self.options = jobs, options
        self.runs: dict[str, list[Run]] = {name: [] for name in jobs}
        self.warm_up: list[Run] = []
        self.streamed: list[Run] = []
        self.streams: dict[int, list[float]] = {n: [] for n in IPERF3_STREAMS if "iperf3" in options.vs}
        self.loops: busy.Comparison | None = None
        self.congestion = ""
        self.settings = [name for name in options.vs if name in _settings()]
        self.automatic: dict[str, Any] = {}

    def measure(self, stack: contextlib.ExitStack, config: kvwire.Config) -> None:
        """Runs all rounds; processes end with `stack`."""
        options = self.options
        progress = stack.enter_context(Progress())
        configs = {name: self._config(config, name) for name in self.jobs}
        pairs = {name: stack.enter_context(Pair(each)) for name, each in configs.items()}
        mine = pairs["kvwire"]
        self.congestion = mine.congestion
        if options.busy_host:
            self.loops = busy.Comparison(mine)
        for name, job in self.jobs.items():
            pairs[name].allocate(job.specs, job.tokens, scatter=options.scatter, content=job.content)
            # Checked but not measured: memory is touched and lanes are warm after it.
            self.warm_up.append(pairs[name].run(1))
            if self.settings and compression.is_automatic(compression.spoken(configs[name].compression)):
                progress.say(f"warming up: {name}")
                self._warm_up(pairs[name])
        for number in range(1, options.runs + 1):
            said = f"round {number} of {options.runs}"
            for name, job in self.jobs.items():
                progress.say(f"{said}: {name}")
                self.runs[name].append(pairs[name].run(job.transfers))
            if options.prefill:
                progress.say(f"{said}: streaming")
                self.streamed.append(mine.run(1, options.prefill))
            for streams, seen in self.streams.items():
                progress.say(f"{said}: iperf3 -P {streams}")
                seen.append(iperf3.goodput_GBps(streams, config.congestion or self.congestion))
            if self.loops is not None:
                progress.say(f"{said}: busy host")
                self.loops.measure(self.jobs["kvwire"].transfers)
        self.automatic = mine.sender.call("automatic")

    def _config(self, config: kvwire.Config, name: str) -> kvwire.Config:
        """What is compared has, in the place of what is measured."""
        if name in self.settings:
            return replace(config, compression=name)
        return replace(config, plain=True) if name == "plain" else config

    def _warm_up(self, pair: Pair) -> None:
        until = time.monotonic() + compression.SETTLED_S
        while time.monotonic() < until:
            self.warm_up.append(pair.run(1))

    def summary(self) -> dict[str, Any]:
        """The JSON object."""
        job, mine = self.jobs["kvwire"], self.runs["kvwire"]
        goodput = statistics.median(run.goodput_GBps for run in mine)
        checked = [*self.warm_up, *self.streamed, *(run for runs in self.runs.values() for run in runs)]
        checked += self.loops.runs if self.loops else []
        damage = [sentence for run in checked for sentence in run.damage]
        result: dict[str, Any] = {
            "goodput_GBps": goodput,
            "goodput_GBps_runs": [round(run.goodput_GBps, 4) for run in mine],
            "runs": self.options.runs,
            "bytes": mine[0].nbytes,
            "transfer_bytes": job.transfer_bytes,
            "segments": job.segments,
            "lanes": self.options.lanes,
            "page_bytes": max(spec.block_bytes for spec in job.specs),
            "scatter": self.options.scatter,
            **sealing.facts(self.options.plain),
            "verified": not damage,
            "damage": damage,
            "congestion": self.congestion,
            "cpu_s_per_GB": statistics.median(run.cpu_s_per_GB for run in mine),
            "tail_s": statistics.median(run.tail_s for run in self.streamed or mine),
            "gil_entries": max(run.gil_entries for run in mine),
            "compression": self.options.compression,
            "content": job.content,
            **sum((run.coding for run in mine), Coding()).facts(),
            **self.automatic,
        }
        if self.options.model:
            result |= {"model": job.model, "tokens": job.tokens}
        if self.streamed:
            result |= self._tail(goodput * GB, result["tail_s"])
        for name in self.runs:
            if name == "plain" or name in self.settings:
                other = statistics.median(run.goodput_GBps for run in self.runs[name])
                result |= {f"ratio_vs_{name}": goodput / other, f"{name}_GBps": other}
                rounds = zip(mine, self.runs[name], strict=True)
                ratios = [round(one.goodput_GBps / beside.goodput_GBps, 4) for one, beside in rounds]
                result |= {f"ratio_vs_{name}_runs": ratios}
        if "page" in self.runs:
            other = statistics.median(run.goodput_GBps for run in self.runs["page"])
            result |= {
                "ratio_vs_page": goodput / other,
                "other_page_bytes": self.jobs["page"].specs[0].block_bytes,
                "other_page_GBps": other,
            }
        if self.streams:
            medians = {f"iperf3_P{n}_GBps": statistics.median(seen) for n, seen in self.streams.items()}
            result |= medians | {"ratio_vs_iperf3": goodput / max(medians.values())}
        return result | (self.loops.summary() if self.loops else {})

    def _tail(self, goodput_Bps: float, tail_s: float) -> dict[str, Any]:
        """The tail beside the time that the last layer's bytes need at the measured goodput."""
        job = self.jobs["kvwire"]
        last = last_layer_bytes(job.specs, job.tokens)
        allowed_s = 1.2 * last / goodput_Bps + TAIL_SLACK_S
        return {
            "prefill_s": self.options.prefill,
            "last_layer_bytes": last,
            "last_layer_s": last / goodput_Bps,
            "tail_s_runs": [round(run.tail_s, 6) for run in self.streamed],
            "tail_allowed_s": allowed_s,
            "ratio_tail": tail_s / allowed_s,
        }
