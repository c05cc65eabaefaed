"""kvwire-bench run: moves KV caches to, from, or to and from `kvwire-bench serve` on another host."""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kvwire
from kvwire.cli import compression, exported, machine, record, sealing
from kvwire.cli.arguments import DEFAULT_PORT, Subparsers, add_address_arguments, parsed, resolve, within
from kvwire.cli.failure import Failure
from kvwire.cli.hosts.channel import Channel
from kvwire.cli.hosts.flow import Flow, Sink, Source
from kvwire.cli.hosts.intervals import Intervals, line
from kvwire.cli.hosts.order import LONGEST_S, MOST_AT_ONCE, MOST_TRANSFERS, Order
from kvwire.cli.hosts.tasks import finish, in_thread, together
from kvwire.cli.jobs import Job, add_job_arguments, job_of
from kvwire.cli.units import GB, MIB, parse_size, show_bytes, show_share, show_size, show_time

SECONDS = 10.0
TRANSFER_BYTES = 64 * MIB
AT_ONCE = 2
"""Transfers under way: while one waits for its grant or its receipt, another one fills the lanes."""
HELLOS = 5
"""Round trips on the idle link, of which the shortest counts."""


def add_command(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("run", help="measure against kvwire-bench serve on HOST", description=__doc__)
    add, size = parser.add_argument, parsed(parse_size)
    add("host", metavar="HOST", type=parsed(_host), help="where kvwire-bench serve runs")
    add("-p", "--port", type=within(1, 65535, int), default=DEFAULT_PORT, help=f"its port ({DEFAULT_PORT})")
    add_address_arguments(parser, "address of this host to dial from")
    add(
        "-P",
        "--lanes",
        metavar="LANES",
        type=within(1, 64, int),
        help="TCP lanes; as many as the path is worth without",
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "-t", dest="seconds", metavar="SECONDS", type=within(0.1, LONGEST_S, float), help="for so long (10)"
    )
    amount.add_argument("-n", dest="nbytes", metavar="BYTES", type=size, help="so much, in whole transfers, instead")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("-R", "--reverse", action="store_true", help="the server sends")
    direction.add_argument("--bidir", action="store_true", help="both send")
    add("-i", "--interval", metavar="SECONDS", type=within(0.1, 3600, float), help="of reports (1; none in a pipe)")
    add("--transfer", metavar="BYTES", type=size, default=TRANSFER_BYTES, help="size of one transfer (64MiB)")
    add("--at-once", metavar="N", type=within(1, MOST_AT_ONCE, int), help="transfers at once (2; 1 with --prefill)")
    add_job_arguments(parser)
    add("--cc", metavar="NAME", help="congestion control of what this side sends; chosen by round-trip time without")
    sealing.add_arguments(parser)
    exported.add_argument(parser)
    add("--json", action="store_true", help=record.HELP)
    parser.set_defaults(command=command)


def _host(text: str) -> str:
    if not text.strip():
        raise ValueError("an empty HOST; expected a name or an address")
    return text


def command(options: argparse.Namespace) -> int:
    """Measures and prints. Exit status 0, 1 where a byte was wrong, 130 where it was interrupted."""
    job = job_of(options, options.nbytes or options.transfer, options.transfer)
    seconds = SECONDS if options.seconds is None and options.nbytes is None else options.seconds
    transfers = None if options.nbytes is None else max(1, math.ceil(options.nbytes / job.transfer_bytes))
    if transfers is not None and transfers > MOST_TRANSFERS:
        raise Failure(f"-n asks for {transfers:.3g} transfers of {show_size(job.transfer_bytes)}; at most 2**40 may be")
    order = Order(
        up=not options.reverse,
        down=options.reverse or options.bidir,
        seconds=seconds,
        transfers=transfers,
        at_once=options.at_once or (1 if options.prefill else AT_ONCE),
        prefill_s=options.prefill,
        scatter=options.scatter,
        compression=options.compression,
        content=job.content,
    )
    if options.cc is not None:
        machine.congestion(options.cc)
    machine.check_memory(order.memory_bytes(job.specs, job.tokens, sends=order.up, receives=order.down))
    identity = sealing.two_way_identity_of(options)
    config = kvwire.Config(
        plain=options.plain,
        lanes=options.lanes,
        congestion=options.cc,
        resume_timeout_s=0,  # what was measured over a lost connection says nothing
        transfer_timeout_s=LONGEST_S,
        local_addresses=(resolve(options.bind, options.family),) if options.bind else (),
    )
    client = Client(options, job, order)
    result = kvwire.run(client.measure(config, identity))
    if options.json:
        record.show(record.record("run", client.machines, result))
    else:
        show(result["flows"], "CRC32C" if options.plain else "tag")
        if result["interrupted"]:
            print(f"interrupted after {result['seconds']:.1f} s")
    return 130 if result["interrupted"] else 0 if result["verified"] else 1


class Client:
    """One measurement, from the connection to the result."""

    def __init__(self, options: argparse.Namespace, job: Job, order: Order) -> None:
        self.options, self.job, self.order = options, job, order
        self.machines = {"client": machine.describe()}
        self._interrupted = False
        self._intervals: Intervals | None = None

    async def measure(self, config: kvwire.Config, identity: kvwire.Identity | None) -> dict[str, Any]:
        """The JSON object. `Failure` where the server is not there, will not, or goes away."""
        options = self.options
        host = options.host if options.family is None else resolve(options.host, options.family)
        starting = kvwire.Node.start(config, identity=identity)
        async with await starting as node, exported.exported(node, options.metrics):
            link = await node.connect(host, options.port)
            channel = Channel(link)
            offers = asyncio.ensure_future(_take_offers(node, channel))
            try:
                return await channel.while_open(self._measure(channel))
            except (Failure, kvwire.KvwireError) as error:
                raise Failure(f"{link.peer}: {error}{self._so_far()}") from None
            finally:
                await finish(offers)

    async def _measure(self, channel: Channel) -> dict[str, Any]:
        order, link = self.order, channel.link
        source, sink = await in_thread(
            order.flows, link, self.job.specs, self.job.tokens, sends=order.up, receives=order.down
        )
        flows: dict[str, Flow] = {name: flow for name, flow in (("up", source), ("down", sink)) if flow is not None}
        rtt_s = min([await channel.say("hello") for _ in range(HELLOS)])
        if sink is not None:
            channel.on_data = sink.take
        await channel.say("order", order.to_wire(), next(iter(flows.values())).memories[0])
        word, (_, answer) = await channel.hear("ready", "refused")
        if word == "refused":
            raise Failure(f"refused: {answer}")
        self.machines["server"] = answer
        congestion = ", ".join(sorted(set(link.lane_congestion.values())))
        if not self.options.json:
            self._introduce(link, rtt_s, congestion)

        intervals = self._intervals = Intervals(
            flows, self.options.interval, order.seconds, self._share(flows), quiet=self.options.json
        )
        parts = [self._send(channel, source, intervals)] if source else []
        parts += [self._receive(channel, sink, intervals)] if sink else []
        watching = asyncio.ensure_future(intervals.watch())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt, channel, source)
        try:
            found = await order.unless_stalled(together(*parts), list(flows.values()))
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            await finish(watching)
        return {
            "host": self.options.host,
            "port": self.options.port,
            "lanes": channel.link.lanes,
            "congestion": congestion,
            "rtt_s": rtt_s,
            "transfer_bytes": self.job.transfer_bytes,
            "page_bytes": max(spec.block_bytes for spec in self.job.specs),
            "model": None if self.options.model is None else self.job.model,
            "tokens": self.options.tokens,
            "prefill_s": order.prefill_s,
            "scatter": order.scatter,
            "compression": order.compression,
            "content": order.content,
            **compression.automatic(link),
            "at_once": order.at_once,
            **sealing.facts(self.options.plain),
            "seconds": max(flow["seconds"] for flow in found),
            "verified": all(flow["verified"] for flow in found),
            "interrupted": self._interrupted,
            "flows": found,
        }

    def _introduce(self, link: kvwire.Link, rtt_s: float, congestion: str) -> None:
        job, order = self.job, self.order
        what = f"{job.model}, {job.tokens} tokens: " if self.options.model else ""
        print(
            f"{link.peer}: {link.lanes} lanes, {congestion}, {sealing.mode(self.options.plain)}, compression "
            f"{order.compression}; a round trip of {show_time(rtt_s)}\n{what}{show_size(job.transfer_bytes)} a "
            f"transfer in {job.segments} segments, {order.at_once} at once"
        )
        for part, facts in self.machines.items():
            print(f"{part}: {machine.show(facts)}")
        sys.stdout.flush()

    def _so_far(self) -> str:
        """What to say about a measurement that failed."""
        if self._intervals is None:
            return ""
        return f"; {show_bytes(self._intervals.landed_bytes)} had landed after {self._intervals.elapsed_s:.1f} s"

    def _share(self, flows: Mapping[str, Flow]) -> Callable[[float], float]:
        order = self.order
        if order.seconds is not None:
            return lambda elapsed_s: elapsed_s / (order.seconds or 1)
        whole = (order.transfers or 1) * self.job.transfer_bytes
        return lambda _: min(flow.landed_bytes for flow in flows.values()) / whole

    def _interrupt(self, channel: Channel, source: Source | None) -> None:
        """The first Ctrl-C ends the measurement, and what there is is shown; a second one ends the program."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        self._interrupted = True
        if source is not None:
            source.stop()
        if self.order.down:
            channel.spawn(channel.say("stop"))

    async def _send(self, channel: Channel, source: Source, intervals: Intervals) -> dict[str, Any]:
        await source.run(self.order.seconds, self.order.transfers)
        sent = source.result()
        found = intervals.end("up", sent["seconds"], sent["bytes"])
        await channel.say("sent", sent)
        _, (_, received) = await channel.hear("received")
        return flow_result("up", sent, received, found)

    async def _receive(self, channel: Channel, sink: Sink, intervals: Intervals) -> dict[str, Any]:
        _, (_, sent) = await channel.hear("sent", within_s=None)
        found = intervals.end("down", sent["seconds"], sent["bytes"])
        await sink.end()
        return flow_result("down", sent, await in_thread(sink.check), found)


async def _take_offers(node: kvwire.Node, channel: Channel) -> None:
    while True:
        channel.take(await node.accept())


def flow_result(
    direction: str, sent: Mapping[str, Any], received: Mapping[str, Any], intervals: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One direction, from what its source and its sink found. CPU seconds are of the whole process at either end."""
    moved = sent["bytes"] / GB
    return {
        "direction": direction,
        "bytes": sent["bytes"],
        "seconds": sent["seconds"],
        "goodput_bps": 8 * sent["bytes"] / sent["seconds"] if sent["seconds"] else 0.0,
        "transfers": sent["transfers"],
        "aborted": sent["aborted"],
        "tail_s": sent["tail_s"],
        "coded_share": sent["coded_share"],
        "coded_ratio": sent["coded_ratio"],
        "checked": received["checked"],
        "damage": received["damage"],
        "verified": not received["damage"],
        "sender_cpu_s_per_GB": sent["cpu_s"] / moved if moved else None,
        "receiver_cpu_s_per_GB": received["cpu_s"] / moved if moved else None,
        "intervals": list(intervals),
    }


def show(flows: Sequence[Mapping[str, Any]], check: str) -> None:
    """The sums, for people. `check`: what every cell was checked with."""
    for flow in flows:
        cpu = [flow["sender_cpu_s_per_GB"], flow["receiver_cpu_s_per_GB"]]
        spent = "" if None in cpu else f"; CPU s/GB: sender {cpu[0]:.2f}, receiver {cpu[1]:.2f}"
        tail = "" if flow["tail_s"] is None else f"; tail {show_time(flow['tail_s'])}"
        cut = f", {flow['aborted']} cut off at the end" if flow["aborted"] else ""
        ratio, share = flow["coded_ratio"], show_share(flow["coded_share"])
        coded = "" if ratio is None else f"; {share} coded, {ratio:.2f} times shorter"
        sums = line(flow["direction"], 0.0, flow["seconds"], flow["bytes"])
        print(f"{sums}  {flow['transfers']} transfers{cut}{tail}{coded}{spent}")
        for sentence in flow["damage"]:
            print(f"WRONG: {sentence}")
    if any(flow["damage"] for flow in flows):
        print("NOT VERIFIED: bytes were wrong")
    elif all(flow["checked"] for flow in flows):
        checked = sum(flow["checked"] for flow in flows)
        print(f"every cell had the right {check}; the last {checked} transfers were compared byte by byte: all right")
    else:
        print(f"every cell had the right {check}; no transfer was complete, so none was compared byte by byte")
