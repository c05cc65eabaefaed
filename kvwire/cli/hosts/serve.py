"""kvwire-bench serve: the other end of `kvwire-bench run`, for any number of clients."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import Sequence
from typing import Any

import kvwire
from kvwire.cli import exported, machine, sealing
from kvwire.cli.arguments import DEFAULT_PORT, Subparsers, add_address_arguments, local_address, parsed, within
from kvwire.cli.failure import Failure
from kvwire.cli.hosts.channel import Channel
from kvwire.cli.hosts.flow import Sink, Source
from kvwire.cli.hosts.order import LONGEST_S, Order
from kvwire.cli.hosts.tasks import finish, in_thread, together
from kvwire.cli.units import parse_size, show_bytes, show_rate, show_size

FIRST_WORD_S = 30.0
"""How long a client may be connected before it orders something."""
LAST_WORD_S = 5.0
"""How long a client may stay when it has its results."""
LOOK_S = 1.0
MOST_MEMORY_BYTES = 1 << 50


def add_command(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("serve", help="wait for kvwire-bench run on another host", description=__doc__)
    add = parser.add_argument
    add("-p", "--port", type=within(0, 65535, int), default=DEFAULT_PORT, help=f"port to listen on ({DEFAULT_PORT})")
    add_address_arguments(parser, "address to listen at; every address without")
    add("-1", "--one-off", action="store_true", help="end after one client")
    add("--max-memory", metavar="BYTES", type=parsed(parse_size), help="for all clients; half of what is free without")
    add("--cc", metavar="NAME", help="congestion control of what this side sends; chosen by round-trip time without")
    sealing.add_arguments(parser)
    add("--audit", metavar="FILE", help="append who came, who was refused and why, and what moved (kvwire-audit)")
    exported.add_argument(parser)
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    """Serves until it is interrupted or terminated, which is no failure."""
    if options.cc is not None:
        machine.congestion(options.cc)
    return kvwire.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    host = local_address(options)
    identity = sealing.two_way_identity_of(options)
    config = kvwire.Config(plain=options.plain, congestion=options.cc, transfer_timeout_s=LONGEST_S, resume_timeout_s=0)
    async with contextlib.AsyncExitStack() as stack:
        audit = stack.enter_context(kvwire.AuditLog(options.audit)) if options.audit else None
        made = await kvwire.Node.serve(host, options.port, config, identity=identity, audit=audit)
        node = await stack.enter_async_context(made)
        await stack.enter_async_context(exported.exported(node, options.metrics))
        memory_bytes = options.max_memory or machine.available_bytes() // 2
        if memory_bytes > MOST_MEMORY_BYTES:
            raise Failure("this host does not say how much memory is free; say how much clients may have: --max-memory")
        serving = asyncio.ensure_future(Server(node, memory_bytes).run(once=options.one_off))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        who = f"sealed, as {identity.subject}" if identity else "plain: anybody may connect, and nothing is encrypted"
        _say(f"listening at {host or 'every address'}, port {node.port}; {show_size(memory_bytes)} for clients; {who}")
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    return 0


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more; clients are served all the same
        print(text, flush=True)


class Server:
    """Takes offers from all links and gives each link's to its session."""

    def __init__(self, node: kvwire.Node, memory_bytes: int) -> None:
        self.node = node
        self.memory_bytes = memory_bytes
        self._given_back = 0
        self._sessions: dict[kvwire.Link, Session] = {}
        self._first_seen: dict[kvwire.Link, float] = {}

    async def run(self, *, once: bool) -> None:
        """Until it is cancelled; `once`: until the first session is over."""
        tasks: set[asyncio.Future[None]] = {asyncio.ensure_future(self._look())}
        accepting: asyncio.Future[Any] = asyncio.ensure_future(self.node.accept())
        try:
            while True:
                await asyncio.wait({accepting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                if accepting.done():
                    self._take(accepting.result(), tasks)
                    accepting = asyncio.ensure_future(self.node.accept())
                over = {task for task in tasks if task.done()}
                tasks -= over
                for task in over:
                    task.result()
                if over:
                    self._sessions = {link: session for link, session in self._sessions.items() if not session.over}
                    self._free()
                    if once:
                        return
        finally:
            await finish(accepting, *tasks)

    def _take(self, incoming: kvwire.Incoming, tasks: set[asyncio.Future[None]]) -> None:
        if incoming.link not in self._sessions:
            self._sessions[incoming.link] = Session(self, incoming.link)
            tasks.add(asyncio.ensure_future(self._sessions[incoming.link].run()))
        self._sessions[incoming.link].channel.take(incoming)

    def _free(self) -> None:
        """Sessions are over: their memory is free once it has been collected, and only then others may have it.

        What a session leaves is full of cycles, and a server that waits for clients collects nothing by itself.
        """
        given_back, self._given_back = self._given_back, 0
        gc.collect()
        self.memory_bytes += given_back

    async def _look(self) -> None:
        """Closes links that have ordered nothing for too long."""
        while True:
            await self._close_silent()
            await asyncio.sleep(LOOK_S)

    async def _close_silent(self) -> None:
        now = time.monotonic()
        self._first_seen = {link: self._first_seen.get(link, now) for link in self.node.links}
        for link, since in self._first_seen.items():
            if link not in self._sessions and now - since > FIRST_WORD_S:
                _say(f"{link.peer}: said nothing for {FIRST_WORD_S:.0f} s")
                await link.close()

    def reserve(self, nbytes: int) -> None:
        """Takes memory out of what clients may have. `Failure` where there is not so much."""
        if nbytes > self.memory_bytes:
            has = show_size(self.memory_bytes)
            raise Failure(f"this needs {show_size(nbytes)} of memory at the server, which has {has} for it")
        self.memory_bytes -= nbytes

    def give_back(self, nbytes: int) -> None:
        """Ends what `reserve` began, once the session is over."""
        self._given_back += nbytes


class Session:
    """One client: its order, the flows, the results."""

    def __init__(self, server: Server, link: kvwire.Link) -> None:
        self.channel = Channel(link)
        self.over = False
        self._server = server

    async def run(self) -> None:
        """Raises nothing, whatever the client brings about: the others are to be served. Closes the link in the end."""
        channel = self.channel
        try:
            _, (manifest, wish) = await channel.while_open(channel.hear("order", within_s=FIRST_WORD_S))
            await channel.while_open(self._take_order(manifest, wish))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(channel.link.wait_closed(), LAST_WORD_S)
        except (Failure, kvwire.KvwireError) as error:
            self._say(str(error))
        except Exception as error:
            self._say(f"internal error: {error!r}")
        finally:
            await channel.link.close()
            self.over = True

    async def _take_order(self, manifest: kvwire.Manifest, wish: object) -> None:
        specs = [group.spec for group in manifest.groups]
        try:
            order = Order.from_wire(wish)
            order.check_compression(specs)
            needed = order.memory_bytes(specs, manifest.tokens, sends=order.down, receives=order.up)
            self._server.reserve(needed)
        except Failure as failure:
            self._say(f"refused: {failure}")
            await self.channel.say("refused", str(failure))
            return
        who = self.channel.link.identity
        self._say(f"{order.show()}, by {who.subject}" if who else order.show())
        try:
            await self._carry_out(order, specs, manifest.tokens)
        finally:
            self.channel.on_data = None
            self._server.give_back(needed)

    async def _carry_out(self, order: Order, specs: Sequence[kvwire.GroupSpec], tokens: int) -> None:
        channel = self.channel
        source, sink = await in_thread(order.flows, channel.link, specs, tokens, sends=order.down, receives=order.up)
        if sink is not None:
            channel.on_data = sink.take
        await channel.say("ready", machine.describe())
        parts = [self._send(source, order)] if source else []
        parts += [self._receive(sink)] if sink else []
        await order.unless_stalled(together(*parts), [flow for flow in (source, sink) if flow])

    async def _send(self, source: Source, order: Order) -> None:
        async def stop() -> None:
            await self.channel.hear("stop", within_s=None)
            source.stop()

        stopping = asyncio.ensure_future(stop())
        try:
            await source.run(order.seconds, order.transfers)
        finally:
            await finish(stopping)
        await self.channel.say("sent", source.result())
        self._report("sent", source.measured_bytes, source.seconds)

    async def _receive(self, sink: Sink) -> None:
        _, (_, sent) = await self.channel.hear("sent", within_s=None)
        await sink.end()
        await self.channel.say("received", await in_thread(sink.check))
        self._report("received", sent["bytes"], sent["seconds"])

    def _report(self, what: str, nbytes: int, seconds: float) -> None:
        rate = show_rate(8 * nbytes / seconds if seconds else 0.0)
        self._say(f"{what} {show_bytes(nbytes)} in {seconds:.1f} s, {rate}")

    def _say(self, text: str) -> None:
        _say(f"{self.channel.link.peer}: {text}")
