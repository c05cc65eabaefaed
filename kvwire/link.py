"""A link: one authenticated session between two nodes, its control connection and its lanes.

Drives the pure session (`kvwire.wire`): feed bytes, act on events, send what it has to say, mind its timer. Cells
never pass through here; they go from the engine's lanes straight into registered memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Coroutine, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from kvwire import sockets, wire
from kvwire._ext.lanes import FAULTS, EngineLink
from kvwire.errors import Closed, IntegrityError, KvwireError, LimitExceeded, LinkLost
from kvwire.incoming import Incoming
from kvwire.lanedialler import LaneDialler
from kvwire.outgoing import Outgoing, check_source
from kvwire.pool import Slots
from kvwire.transfer import Transfer
from kvwire.types import Grant, Manifest

if TYPE_CHECKING:
    from kvwire._ext.lanes import LaneStats
    from kvwire.node import Node

log = logging.getLogger("kvwire")

RECEIVE_BYTES = 64 * 1024
LANE_FAULTS = 3
"""Damaged or dishonest lanes after which the link is ended: the path, or the peer, is not to be trusted."""
MOST_LANES = 64
"""Lanes of one link, as Config.lanes has it."""


class Link:
    """Made by `Node.connect`, or by a node that is dialled; either side may offer transfers."""

    def __init__(
        self, node: Node, sock: socket.socket, session: wire.Session, peer: str, dialled: tuple[str, int] | None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.peer = peer
        self.engine_link = EngineLink(node.engine)
        self._node = node
        self.config = node.config
        self._sock = sock
        self._session = session
        self._dialler = None if dialled is None else LaneDialler(self, dialled)
        self._outgoing: dict[int, Outgoing] = {}
        self._incoming: dict[int, Incoming] = {}
        self._offers: dict[int, tuple[asyncio.Future[Outgoing], Manifest, Mapping[str, Slots], int, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._faults = 0
        self._error: KvwireError | None = None
        self._greeted: asyncio.Future[None] = self.loop.create_future()
        self._closed: asyncio.Future[None] = self.loop.create_future()
        self.lane_congestion: dict[int, str] = {}
        """Kernel congestion control of each lane, by lane number."""

    def __repr__(self) -> str:
        return f"<Link {self.peer} {'closed' if self.closed else f'{self.lanes} lanes'}>"

    # --- what users see -------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True once the link is closed or lost."""
        return self._closed.done()

    @property
    def lanes(self) -> int:
        """Lanes that are up."""
        return self.engine_link.lanes_open

    async def wait_closed(self) -> KvwireError:
        """Wait until the link is closed or lost; says why."""
        await asyncio.shield(self._closed)
        assert self._error is not None
        return self._error

    def lane_stats(self) -> list[LaneStats]:
        """Totals of each lane that is up."""
        return self.engine_link.lane_stats()

    async def offer(
        self,
        manifest: Manifest,
        source: Mapping[str, Slots],
        *,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        klass: int = 1,
    ) -> Outgoing:
        """Offer a transfer, best before prefill starts; returns when the receiver has granted it.

        `source`: where each group's blocks lie, `{"group": pages.at(slots)}`. `timeout_s`: longest wait for the
        grant. `deadline_s`: longest life of the transfer. `klass`: 0 urgent, 1 demand, 2 background.
        Raises SpecError, PlacementError, DuplicateTransfer, LimitExceeded before anything is sent; OfferRefused,
        ModelMismatch, DeadlineExceeded or LinkLost afterwards.
        """
        self._check_open()
        check_source(manifest, source)
        config = self.config
        transfer = self._session.offer(
            time.monotonic(),
            manifest,
            timeout_s=config.offer_timeout_s if timeout_s is None else timeout_s,
            deadline_s=config.transfer_timeout_s if deadline_s is None else deadline_s,
            klass=klass,
        )
        future: asyncio.Future[Outgoing] = self.loop.create_future()
        # Only a deadline that somebody named orders what leaves first.
        deadline_ns = 0 if deadline_s is None else time.monotonic_ns() + int(deadline_s * 1e9)
        self._offers[transfer] = (future, manifest, source, klass, deadline_ns)
        self._pump()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().abort_nowait("the offering task was cancelled")
            elif self._offers.pop(transfer, None) is not None and not self.closed:
                self._session.abort(time.monotonic(), transfer, "cancelled", "the offering task was cancelled")
                self._pump()
            raise

    async def close(self) -> None:
        """Close the link. Transfers under way end with an error; waits for local workers only."""
        if not self._closed.done():
            self._session.close(time.monotonic(), "closed")
            self._flush_now()
            self._shut(Closed("the link was closed"))
        await self._finish_tasks()

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- transfers ------------------------------------------------------------------------------------------------

    def cell_bytes(self, wanted: int | None) -> int:
        """Cell size for a grant of this side."""
        return self.config.cell_bytes if wanted is None else wanted

    def _granted(self, transfer: int, grant: Grant) -> None:
        waiting = self._offers.pop(transfer, None)
        if waiting is None:  # the offering task was cancelled meanwhile
            return
        future, manifest, source, klass, deadline_ns = waiting
        try:
            outgoing = Outgoing(self, transfer, manifest, source, grant, klass, deadline_ns)
        except KvwireError as error:
            with contextlib.suppress(Closed):  # the peer may have said good-bye in the same breath
                self._session.abort(time.monotonic(), transfer, "failed", str(error))
            if not future.done():
                future.set_exception(error)
            return
        self._outgoing[transfer] = outgoing
        self._node._watch(outgoing._handle, outgoing._engine_changed)
        if future.cancelled():
            outgoing.abort_nowait("the offering task was cancelled")
        else:
            future.set_result(outgoing)

    def _offer_failed(self, transfer: int, error: KvwireError) -> None:
        waiting = self._offers.pop(transfer, None)
        if waiting is not None and not waiting[0].done():
            waiting[0].set_exception(error)

    def _send_grant(self, incoming: Incoming, grant: Grant) -> None:
        self._session.grant(time.monotonic(), incoming.transfer_id, grant)
        self._node._watch(incoming._handle, incoming._engine_changed)
        self._pump()

    def _send_refuse(self, incoming: Incoming, reason: str) -> None:
        if not self.closed:
            self._session.refuse(time.monotonic(), incoming.transfer_id, "refused", reason)
            self._pump()

    def _send_abort(self, transfer: Transfer, reason: str) -> None:
        if not self.closed and self._forget(transfer):
            with contextlib.suppress(Closed):
                self._session.abort(time.monotonic(), transfer.transfer_id, "aborted", str(reason))
                self._pump()

    def _forget(self, transfer: Transfer) -> bool:
        gone = self._outgoing.pop(transfer.transfer_id, None) or self._incoming.pop(transfer.transfer_id, None)
        return gone is not None

    def _transfer_over(self, transfer: Transfer) -> None:
        """The transfer has ended on this side, however; a commit needs no word from the control plane."""
        if transfer._handle is not None:
            self._node._unwatch(transfer._handle)
        if self._forget(transfer) and not self.closed and transfer.state == "committed":
            self._session.transfer_done(transfer.transfer_id)

    # --- lanes ----------------------------------------------------------------------------------------------------

    def _add_lane(self, sock: socket.socket, lane: int, incarnation: int) -> None:
        """Hand a joined socket to the engine."""
        try:
            congestion = sockets.tune_lane(sock, self.config)
            self.engine_link.add_lane(sock.detach(), lane, incarnation)
        except BaseException as error:
            self._session.lane_closed(time.monotonic(), lane, incarnation, str(error), 0)
            raise
        self.lane_congestion[lane] = congestion

    def _engine_changed(self) -> None:
        """A lane has ended: say so, replace it, and lose patience with a peer whose lanes go wrong."""
        for lane, incarnation, code, reason, acked in self.engine_link.take_closed():
            self.lane_congestion.pop(lane, None)
            if self.closed:
                continue
            self._session.lane_closed(time.monotonic(), lane, incarnation, reason, acked)
            self._faults += code in FAULTS
            if self._faults >= LANE_FAULTS:
                self._lose(IntegrityError(f"{self._faults} lanes to {self.peer} went wrong, the last by {reason}"))
                return
            if self._dialler is not None:
                self._dialler.want()
        self._pump()

    # --- the control connection -----------------------------------------------------------------------------------

    def _start(self) -> None:
        self._node._watch(self.engine_link, self._engine_changed)
        self._spawn(self._read())
        self._spawn(self._write())
        self._pump()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_over)

    def _task_over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self.closed and not self._tasks:
            self._sock.close()  # not before: a loop that still watches it would watch whatever takes its number

    async def _read(self) -> None:
        try:
            while not self.closed:
                data = await self.loop.sock_recv(self._sock, RECEIVE_BYTES)
                if data:
                    self._session.receive_data(time.monotonic(), data)
                else:
                    self._session.eof(time.monotonic())
                self._pump()
        except OSError as error:
            self._lose(LinkLost(f"control connection to {self.peer}: {error.strerror or error}"))
        except Exception as error:  # a bug; better no link than one that nobody reads
            log.exception("while reading from %s", self.peer)
            self._lose(LinkLost(f"internal error on the link to {self.peer}: {error!r}"))

    async def _write(self) -> None:
        try:
            while not self.closed:
                await self._outbox.wait()
                self._outbox.clear()
                data = self._session.data_to_send()
                if data:
                    await self.loop.sock_sendall(self._sock, data)
                    self._outbox.set()
        except OSError as error:
            self._lose(LinkLost(f"control connection to {self.peer}: {error.strerror or error}"))

    def _flush_now(self) -> None:
        """Say good-bye if the socket takes it at once."""
        with contextlib.suppress(OSError):
            self._sock.send(self._session.data_to_send())

    def _pump(self) -> None:
        """Act on what the session has to tell, let the writer look, set the timer anew."""
        while not self.closed:
            event = self._session.next_event()
            if event is None:
                break
            self._on_event(event)
        if self.closed:
            return
        self._outbox.set()
        if self._timer is not None:
            self._timer.cancel()
        due = self._session.next_timer()
        self._timer = None if due is None else self.loop.call_at(self.loop.time() + due - time.monotonic(), self._tick)

    def _tick(self) -> None:
        if not self.closed:
            self._session.handle_timer(time.monotonic())
            self._pump()

    def _on_event(self, event: wire.Event) -> None:
        match event:
            case wire.HelloDone():
                if not self._greeted.done():
                    self._greeted.set_result(None)
                if self._dialler is None:
                    self._issue_tickets(event.peer.lanes)
            case wire.Ticket():
                if self._dialler is not None:
                    self._dialler.take(event)
            case wire.LanesWanted():
                self._issue_tickets(event.count)
            case wire.Offered():
                incoming = Incoming(self, event.transfer, event.manifest)
                self._incoming[event.transfer] = incoming
                self._node._offered(incoming)
            case wire.Granted():
                self._granted(event.transfer, event.grant)
            case wire.Refused() | wire.OfferTimedOut():
                self._offer_failed(event.transfer, event.error)
            case wire.Aborted() | wire.TransferTimedOut():
                self._offer_failed(event.transfer, event.error)
                transfer = self._outgoing.get(event.transfer) or self._incoming.get(event.transfer)
                if transfer is not None:
                    transfer._fail(event.error)
                if isinstance(event, wire.Aborted):
                    self._session.drained(time.monotonic(), event.transfer)
            case wire.Closed():
                self._lose(event.error)
            case _:
                pass  # DRAINED and LANE_CLOSED tell nothing that the engine does not know by itself

    def _issue_tickets(self, count: int) -> None:
        with contextlib.suppress(LimitExceeded, Closed):  # a peer that uses none of its tickets gets no more
            for _ in range(min(count, MOST_LANES - self.lanes)):
                self._session.issue_ticket(time.monotonic(), secrets.token_bytes(32))

    # --- the end --------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise Closed(f"the link to {self.peer} is closed" + (f": {self._error}" if self._error else ""))

    def _lose(self, error: KvwireError) -> None:
        """The link has failed: every transfer on it ends with this error."""
        if not self.closed:
            self._flush_now()
            self._shut(error)

    def _shut(self, error: KvwireError) -> None:
        self._error = error
        self._closed.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._dialler is not None:
            self._dialler.stop()
        for task in self._tasks:
            if task is not asyncio.current_task(self.loop):
                task.cancel()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if not self._greeted.done():
            self._greeted.set_exception(copy(error))
            self._greeted.exception()  # nobody may be waiting
        for future, *_ in list(self._offers.values()):
            if not future.done():
                future.set_exception(copy(error))
        self._offers.clear()
        for transfer in [*self._outgoing.values(), *self._incoming.values()]:
            transfer._fail(error)
        self._outgoing.clear()
        self._incoming.clear()
        self.engine_link.close()
        self._node._unwatch(self.engine_link)
        self._node._link_gone(self)

    async def _finish_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        if tasks:
            await asyncio.wait(tasks)
