"""An event loop on virtual time, one for each life of a node's process. No thread, no descriptor, no wall clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from tests.sim.clock import Clock

if TYPE_CHECKING:
    from tests.sim.network import Host, Listener
    from tests.sim.sockets import SimSocket
    from tests.sim.world import Process

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SimTask(asyncio.Task[T]):
    """A task whose hash is a serial number: a set of tasks has the same order whenever a seed is replayed."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], *, serial: int, **more: Any) -> None:
        self.serial = serial
        super().__init__(coroutine, **more)

    def __hash__(self) -> int:
        return self.serial


class SimLoop(asyncio.AbstractEventLoop):
    """`epoch_s`: what this process's monotonic clock said at virtual time 0; whole, and different on every host.

    `pace_s`: how long Python takes for a callback. Frozen, it takes none; dead, never again.
    """

    def __init__(self, clock: Clock, host: Host, process: Process, epoch_s: int, pace_s: float) -> None:
        self.clock = clock
        self.host = host
        self.process = process
        self.pace_s = pace_s
        self.frozen = False
        self.dead = False
        self.tasks: dict[SimTask[Any], None] = {}
        self.complaints: list[str] = []
        """What reached the exception handler: there is no such thing as an expected one."""
        self._epoch_s = epoch_s
        self._free_at = 0.0
        self._held: deque[asyncio.Handle] = deque()
        self._frozen_s = 0.0
        self._frozen_at = 0.0
        self.timers: dict[int, asyncio.TimerHandle] = {}
        """Those that are neither due nor cancelled."""
        self._readers: dict[int, Callable[[], Any]] = {}
        self.listening: dict[int, Listener] = {}
        self._writers: dict[int, Callable[[], Any]] = {}

    # --- driving ------------------------------------------------------------------------------------------------

    def _run(self, handle: asyncio.Handle) -> None:
        if self.dead or handle.cancelled():
            return
        if self.frozen:
            self._held.append(handle)
            return
        with self.entered():
            handle._run()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Python of this process runs."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def freeze(self) -> None:
        """From now on Python stands still; the kernel and the engine's threads go on."""
        self.frozen = True
        self._frozen_at = self.clock.now

    def frozen_s(self) -> float:
        """How long it has stood still, all times together."""
        return self._frozen_s + (self.clock.now - self._frozen_at if self.frozen else 0.0)

    def thaw(self) -> None:
        """Go on; what was due meanwhile comes first."""
        self._frozen_s = self.frozen_s()
        self.frozen = False
        while self._held:
            self.clock.at(self.clock.now, self._run, self._held.popleft())

    def die(self) -> None:
        """The process is gone. Its coroutines are closed, so that nothing of them runs when they are collected."""
        self.dead = True
        for task in list(self.tasks):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._held.clear()

    def bury(self) -> None:
        """Close the coroutines of a dead process; what they do on their way out reaches nobody."""
        with self.entered():
            for task in list(self.tasks):
                with contextlib.suppress(RuntimeError):  # it awaits on its way out
                    task.get_coro().close()
        self.tasks.clear()

    def native(self, delay_s: float, run: Callable[[], None]) -> None:
        """Call what a thread of this process does by itself, frozen or not, outside of the loop."""
        self.clock.at(self.clock.now + delay_s, self._native, run)

    def _native(self, run: Callable[[], None]) -> None:
        if not self.dead:
            try:
                run()
            except Exception as error:
                self.complaints.append(f"in a worker: {error!r}")

    def signal(self, fd: int) -> None:
        """A descriptor has become readable: the engine's eventfd, or a listening socket."""
        if fd in self._readers and not self.dead:
            self.call_soon(self._fire, self._readers, fd)

    def signal_writable(self, fd: int) -> None:
        """A socket is connected, or cannot be."""
        if fd in self._writers:
            self.call_soon(self._fire, self._writers, fd)

    def _fire(self, watched: dict[int, Callable[[], Any]], fd: int) -> None:
        if fd in watched:
            watched[fd]()

    def _line_up(self, handle: asyncio.Handle) -> None:
        """Its turn comes after everything that was ready before."""
        if not handle.cancelled():
            self._free_at = max(self._free_at, self.clock.now) + self.pace_s
            self.clock.at(self._free_at, self._run, handle)

    # --- what asyncio asks for ----------------------------------------------------------------------------------

    def time(self) -> float:
        return self.clock.now + self._epoch_s

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._line_up(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.timers[id(handle)] = handle
        self.clock.at(when - self._epoch_s, self._due, handle)
        return handle

    def _due(self, handle: asyncio.TimerHandle) -> None:
        self.timers.pop(id(handle), None)
        self._line_up(handle)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays in the heap until it is due, and does nothing then."""
        self.timers.pop(id(handle), None)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> SimTask[Any]:
        task: SimTask[Any] = SimTask(coro, serial=self.clock.serial(), loop=self, name=name, context=context)
        self.tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)  # type: ignore[call-overload]

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return self.dead

    # --- sockets ------------------------------------------------------------------------------------------------

    def add_reader(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        self._readers[fd] = lambda: callback(*args)
        if fd in self.listening and self.listening[fd].backlog:
            self.signal(fd)  # who is there already is no less heard than who comes

    def remove_reader(self, fd: Any) -> bool:
        return self._readers.pop(fd, None) is not None

    def add_writer(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        self._writers[fd] = lambda: callback(*args)

    def remove_writer(self, fd: Any) -> bool:
        return self._writers.pop(fd, None) is not None

    async def sock_recv(self, sock: SimSocket, nbytes: int) -> bytes:  # type: ignore[override]
        while True:
            try:
                return sock.recv(nbytes)
            except BlockingIOError:
                await sock.readable(self.create_future())

    async def sock_sendall(self, sock: SimSocket, data: bytes) -> None:  # type: ignore[override]
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[sock.send(bytes(rest)) :]
            except BlockingIOError:
                await sock.writable(self.create_future())
