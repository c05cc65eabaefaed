"""A control session under asyncio: its connection, its timer, its events. `Link` says what the events mean."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from kvwire import wire
from kvwire.control import Control, Stream
from kvwire.errors import KvwireError, LinkLost


class Driver(ABC):
    """Feeds the session, acts on its events, minds its timer, and outlives its connections as the session does."""

    def __init__(self, session: wire.Session, peer: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.peer = peer
        self._session = session
        self._control: Control | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed: asyncio.Future[None] = self.loop.create_future()

    @property
    def closed(self) -> bool:
        """True once the link is closed or lost."""
        return self._closed.done()

    @property
    def suspended(self) -> bool:
        """True while its control connection is lost and not yet resumed. Transfers wait; offers may be made."""
        return not self.closed and self._control is None

    # --- connections ----------------------------------------------------------------------------------------------

    def _connect(self, stream: Stream, heard: bytes) -> None:
        self._control = Control(self, stream)
        self._session.receive_data(time.monotonic(), heard)
        self._pump()

    def _connection_lost(self, control: Control | None, error: LinkLost) -> None:
        """This connection of the link's is gone."""
        if control is not None and control is self._control:
            self._session.lost(time.monotonic(), error)
            self._pump()

    def _resume(
        self, stream: Stream, agreement: wire.KeyAgreement | None, heard: bytes = b"", *, may_restart: bool = True
    ) -> None:
        """Another connection for a suspended link; `may_restart`: to the host that had answered."""
        self._session.resume(time.monotonic(), secrets.token_bytes(32), agreement, may_restart=may_restart)
        self._connect(stream, heard)

    def _hang_up(self) -> None:
        if self._control is not None:
            self._control.close()
            for task in self._control.tasks:
                self._keep(task)
            self._control = None

    # --- driving --------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Act on what the session has to tell, let the writer look, set the timer anew."""
        while not self.closed:
            event = self._session.next_event()
            if event is None:
                break
            self._on_event(event)
        if self.closed:
            return
        if self._control is not None:
            self._control.wake()
        if self._timer is not None:
            self._timer.cancel()
        due = self._session.next_timer()
        self._timer = None if due is None else self.loop.call_at(self.loop.time() + due - time.monotonic(), self._tick)

    def _tick(self) -> None:
        if not self.closed:
            self._session.handle_timer(time.monotonic())
            self._pump()

    @abstractmethod
    def _on_event(self, event: wire.Event) -> None:
        """The session has something to tell."""

    @abstractmethod
    def _lose(self, error: KvwireError) -> None:
        """The session has ended."""

    # --- tasks ----------------------------------------------------------------------------------------------------

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._keep(self.loop.create_task(coroutine))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _stop(self) -> None:
        """Nothing runs any more after this, once `_finish_tasks` is over."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            if task is not asyncio.current_task(self.loop):
                task.cancel()
        self._hang_up()

    async def _finish_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        if tasks:
            await asyncio.wait(tasks)
