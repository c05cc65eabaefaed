"""The network between hosts: connections as pairs of byte streams, with everything that a path can do to them.

Within a stream bytes keep their order, as TCP has it; between streams nothing is in order. What the kernels do
(acknowledging, resetting, giving up after TCP_USER_TIMEOUT) is here, and goes on while a process stands still.
"""

from __future__ import annotations

import errno
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests.sim.clock import Clock
from tests.sim.path import Flow, Path
from tests.sim.records import record_at

if TYPE_CHECKING:
    from tests.sim.links import SimLink
    from tests.sim.loop import SimLoop

SYN_RETRY_S = 1.0
SYN_TRIES = 8

Kind = Literal["control", "lane", "stranger"]
MAGIC: dict[bytes, Kind] = {b"KVWC": "control", b"KVWL": "lane"}


class End:
    """One end of a connection, as its kernel has it."""

    flow: Flow
    peer: End

    def __init__(self, host: Host, fd: int, connection: Connection) -> None:
        self.host = host
        self.fd = fd
        self.connection = connection
        self.rx = bytearray()
        self.rx_eof = False
        self.read_bytes = 0
        self.error = 0
        self.closed = False
        self.forgotten = False
        """The kernel has given it up, and repeats nothing of what did not arrive."""
        self.accepted_at: float | None = None
        """When the application that listens took it; before that it waits in a backlog."""
        self.closed_at: float | None = None
        self.starved = False
        self.user_timeout_s = 60.0
        self._shut = False
        self._on_readable: Callable[[], None] | None = None
        self._on_writable: Callable[[], None] | None = None

    @property
    def dead(self) -> bool:
        return self.closed or bool(self.error)

    def watch(self, on_readable: Callable[[], None] | None, on_writable: Callable[[], None] | None) -> None:
        """Whom to tell, edge-triggered; if something is there already, at once."""
        self._on_readable = on_readable
        self._on_writable = on_writable

    def wake_reader(self) -> None:
        if self._on_readable is not None:
            self._on_readable()

    def wake_writer(self) -> None:
        if self._on_writable is not None:
            self._on_writable()

    def recv(self, count: int) -> bytes:
        if self.rx:
            data = bytes(self.rx[:count])
            del self.rx[:count]
            self.read_bytes += len(data)
            self.peer.flow.read(len(data))
            return data
        if self.error:
            raise OSError(self.error, "connection lost")
        if self.rx_eof:
            return b""
        raise BlockingIOError(errno.EAGAIN, "nothing there")

    def send(self, data: bytes) -> int:
        if self.error or self._shut:
            raise OSError(self.error or errno.EPIPE, "connection lost")
        if not self.connection.named and data:
            self.connection.name(data)
        return self.flow.send(data)

    def shutdown(self) -> None:
        if self.error:
            raise OSError(errno.ENOTCONN, "not connected")
        if not self._shut:
            self._shut = True
            self.flow.finish()
        self.rx_eof = True
        self.wake_reader()

    def fail(self, error: int) -> None:
        """The kernel has given the connection up."""
        if not self.dead:
            self.error = error
            self.forgotten = True
            self.wake_reader()
            self.wake_writer()

    def close(self) -> None:
        if self.closed:
            return
        self._gone()
        if not self.error and self.rx:  # unread bytes: the other side is told that they are lost
            self.flow.behind(self._reset_peer)
        elif not self.error and not self._shut:
            self.flow.finish()

    def vanish(self) -> None:
        """The host is gone, without a word."""
        self.forgotten = True
        self._gone()

    def _gone(self) -> None:
        self.closed = True
        self.closed_at = self.flow.net.clock.now
        self._on_readable = self._on_writable = None
        self.host.ends.pop(self.fd, None)

    def _reset_peer(self, _: object) -> None:
        if not self.flow.blocked:
            self.peer.fail(errno.ECONNRESET)


class Connection:
    """A connection between two hosts, and what has been done to it."""

    def __init__(self, dialler: Host, acceptor: Host, fds: tuple[int, int], net: Network, path: Path) -> None:
        self.hosts = (dialler, acceptor)
        self.born_at = net.clock.now
        self.kind: Kind = "stranger"
        self.named = False
        self.first = b""
        """What the dialler said first; of a lane, its preamble and JOIN."""
        self.faults: list[tuple[float, str]] = []
        self.links: list[SimLink] = []
        """The two ends of the link that it carries, as far as there are any."""
        self.uninvited = False
        """Made by somebody who will never say who they are."""
        self.ends = (End(dialler, fds[0], self), End(acceptor, fds[1], self))
        for one, other in (self.ends, self.ends[::-1]):
            one.peer = other
            one.flow = Flow(net, path, one, other)

    def name(self, first: bytes) -> None:
        """What it is for, by its first bytes, which are the dialler's."""
        self.named = True
        self.first = first
        self.kind = MAGIC.get(first[:4], "stranger")
        net = self.ends[0].flow.net
        if self.kind == "control" and net.on_control is not None:
            net.on_control(self)
        if self.kind == "lane" and net.on_lane is not None and not self.uninvited:
            net.on_lane(self)

    @property
    def secret(self) -> bool:
        """Whether TLS protects it."""
        return self.kind == "control" and self.ends[0].flow.net.sealed

    @property
    def tainted(self) -> bool:
        """Bytes of a control connection were changed, and nobody can know: those of a plain one; and those of the
        length of a TLS record, as more of it may be on its way."""
        return self.kind == "control" and any(self._tainted(end.flow) for end in self.ends)

    def _tainted(self, flow: Flow) -> bool:
        if flow.damaged_at is None or not self.secret:
            return flow.damaged_at is not None
        record = record_at(flow.said, flow.damaged_at)
        return record is not None and record.is_length(flow.damaged_at)

    @property
    def alive(self) -> bool:
        return not any(end.dead for end in self.ends)

    def fault(self, now: float, what: str) -> None:
        self.faults.append((now, what))


class Host:
    """A machine: an address, a clock, and at most one life of a node's process at a time."""

    def __init__(self, net: Network, number: int) -> None:
        self.net = net
        self.number = number
        self.address = f"10.0.0.{number}"
        self.ends: dict[int, End] = {}
        self.listeners: dict[int, Listener] = {}
        self.down = False
        self.refuses_until = 0.0
        self.loop: SimLoop | None = None

    def __repr__(self) -> str:
        return f"host {self.number}"


class Listener:
    """A listening socket of a host: connections that its kernel has taken."""

    def __init__(self, host: Host, port: int) -> None:
        self.host = host
        self.port = port
        self.backlog: deque[End] = deque()
        self.on_readable: Callable[[], None] | None = None

    def close(self) -> None:
        if self.host.listeners.get(self.port) is self:
            del self.host.listeners[self.port]
        for end in self.backlog:
            end.close()
        self.backlog.clear()


@dataclass
class Dial:
    """A connection that is being made."""

    source: Host
    target: Host
    fd: int
    port: int
    path: Path
    answer: Callable[[int, End | None], None]
    tries: int = 0


class Network:
    """All hosts, the paths between them and every connection."""

    def __init__(self, clock: Clock, rng: random.Random, hosts: int, *, sealed: bool = False) -> None:
        self.clock = clock
        self.rng = rng
        self.sealed = sealed
        """Whether control connections speak TLS."""
        self.counts: Counter[str] = Counter()
        self.hosts = [Host(self, number + 1) for number in range(hosts)]
        self.connections: list[Connection] = []
        self._paths = {(a, b): Path(rng) for b in range(hosts) for a in range(b + 1)}
        self._fd = 1000
        self.on_control: Callable[[Connection], None] | None = None
        """Called with each connection whose first bytes say that it is a control connection."""
        self.on_lane: Callable[[Connection], None] | None = None
        """Called with each lane that a node dials, before its first bytes leave."""
        self.on_damage: Callable[[Connection], object] = lambda _: None
        """Called as a bit of this connection is changed."""
        self.crc = 0
        """Over every byte that anybody ever sent, in the order of sending."""

    def count(self, what: str) -> None:
        """Something happened that a run is worth for."""
        self.counts[what] += 1

    def new_fd(self) -> int:
        self._fd += 1
        return self._fd

    def path(self, one: Host, other: Host) -> Path:
        a, b = sorted((one.number - 1, other.number - 1))
        return self._paths[a, b]

    def paths(self) -> Iterable[Path]:
        return self._paths.values()

    def alive(self, kind: Kind | None = None) -> list[Connection]:
        """Connections that are up at both ends."""
        return [c for c in self.connections if c.alive and kind in (None, c.kind)]

    def between(self, one: Host, other: Host) -> Iterator[Connection]:
        """Connections of which at least one end is not closed."""
        for connection in self.connections:
            if set(connection.hosts) == {one, other} and not all(end.closed for end in connection.ends):
                yield connection

    def release(self) -> None:
        """A hole was closed, a partition healed, a host came back: let go of what may pass now."""
        for connection in self.connections:
            for end in connection.ends:
                end.flow.release()

    def connect(
        self, source: Host, fd: int, address: tuple[str, int], answer: Callable[[int, End | None], None]
    ) -> None:
        """Dial; `answer` gets an errno and, if that is 0, this side's end, which has this descriptor."""
        found = [host for host in self.hosts if host.address == address[0]]
        if found:
            self._syn(Dial(source, found[0], fd, address[1], self.path(source, found[0]), answer))
        else:
            answer(errno.EHOSTUNREACH, None)

    def _syn(self, dial: Dial) -> None:
        if not dial.path.parted and not dial.target.down:
            self.clock.at(self.clock.now + dial.path.latency_s, self._syn_arrives, dial)
        elif dial.tries == SYN_TRIES:
            dial.answer(errno.ETIMEDOUT, None)
        else:
            dial.tries += 1
            self.clock.at(self.clock.now + SYN_RETRY_S, self._syn, dial)

    def _syn_arrives(self, dial: Dial) -> None:
        source, target = dial.source, dial.target
        listener = target.listeners.get(dial.port)
        code, mine = errno.ECONNREFUSED, None
        if self.clock.now < target.refuses_until:
            self.count("refused connection")
        elif listener is not None:
            connection = Connection(source, target, (dial.fd, self.new_fd()), self, dial.path)
            self.connections.append(connection)
            mine, theirs = connection.ends
            source.ends[mine.fd] = mine
            target.ends[theirs.fd] = theirs
            listener.backlog.append(theirs)
            if listener.on_readable is not None:
                listener.on_readable()
            code = 0
        self.clock.at(self.clock.now + dial.path.latency_s, lambda _: dial.answer(code, mine))
