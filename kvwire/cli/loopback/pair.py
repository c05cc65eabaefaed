"""Two processes joined by a link, and transfers between them."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import kvwire
from kvwire.cli import compression, sealing
from kvwire.cli.compression import Coding
from kvwire.cli.content import NOISE
from kvwire.cli.loopback.peer import Mark, Peer, Process, Receiver, Sender, Sent
from kvwire.cli.units import GB

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Moved:
    """One checked transfer."""

    sent: Sent
    received_before: Mark
    received_after: Mark
    damage: list[str]
    watched: list[tuple[Mark, Mark]]
    """The processes that were watched, just before and just after."""

    @property
    def cpu_s(self) -> float:
        """CPU seconds of both processes from before the first byte was offered until after the receipt."""
        here = self.sent.after.cpu_s - self.sent.before.cpu_s
        return here + self.received_after.cpu_s - self.received_before.cpu_s

    @property
    def gil_entries(self) -> int:
        """Entries into the engine in the same time, the larger of the two sides."""
        here = self.sent.after.gil_entries - self.sent.before.gil_entries
        return max(here, self.received_after.gil_entries - self.received_before.gil_entries)


@dataclass(frozen=True, slots=True)
class Run:
    """Several transfers, one after the other."""

    moved: list[Moved]

    @property
    def nbytes(self) -> int:
        return sum(m.sent.nbytes for m in self.moved)

    @property
    def goodput_GBps(self) -> float:
        """Bytes over the time from the first byte offered to the receipt, of all transfers."""
        return self.nbytes / sum(m.sent.elapsed_s for m in self.moved) / GB

    @property
    def cpu_s_per_GB(self) -> float:
        return sum(m.cpu_s for m in self.moved) / self.nbytes * GB

    @property
    def tail_s(self) -> float:
        """From the last layer ready to the receipt, median."""
        return statistics.median(m.sent.tail_s for m in self.moved)

    @property
    def gil_entries(self) -> int:
        """Of the transfer that had most."""
        return max(m.gil_entries for m in self.moved)

    @property
    def coding(self) -> Coding:
        return sum((m.sent.coding for m in self.moved), Coding())

    @property
    def damage(self) -> list[str]:
        return [sentence for m in self.moved for sentence in m.damage]


def marks(peers: Sequence[Peer]) -> list[Mark]:
    """All processes, marked at about the same moment."""
    for peer in peers:
        peer.start("mark")
    return [peer.result() for peer in peers]


class Pair:
    """A sender and a receiver process and the link between them. A context manager: on exit both have ended.

    The link is sealed, with keys made for it, unless `config.plain`.
    """

    def __init__(
        self, config: kvwire.Config, receiver: type[Receiver] = Receiver, sender: type[Sender] = Sender
    ) -> None:
        self._transfers = 0
        self._compression = compression.spoken(config.compression)
        self._processes: list[Peer] = []
        self._keys = contextlib.ExitStack()
        try:
            keys = None if config.plain else self._keys.enter_context(sealing.fresh_keys())
            self.receiver = self.add(receiver)
            self.sender = self.add(sender)
            port = self.receiver.call("listen", config, keys and keys / "decode")
            self.congestion: str = self.sender.call("connect", port, config, keys and keys / "prefill")
        except BaseException:
            self.close()
            raise

    def add(self, role: type[Process]) -> Peer:
        """One more process, which ends with this pair."""
        self._processes.append(Peer(role))
        return self._processes[-1]

    def allocate(
        self, specs: Sequence[kvwire.GroupSpec], tokens: int, *, scatter: bool = False, content: str = NOISE
    ) -> None:
        """Memory for one transfer on both sides; `scatter`: its blocks lie in random order, another one per side."""
        for seed, peer in ((1, self.sender), (2, self.receiver)):
            peer.start("allocate", tuple(specs), tokens, seed if scatter else None, content)
        for peer in (self.sender, self.receiver):
            peer.result()

    def move(
        self,
        model: str = "bench",
        prefill_s: float = 0.0,
        watch: Sequence[Peer] = (),
        landed: Callable[[int], None] | None = None,
    ) -> Moved:
        """One transfer, checked.

        `watch`: processes to be marked before and after it. `landed`: called every now and then with the number of
        segments that are complete.
        """
        self._transfers += 1
        number = self._transfers
        self.receiver.start("accept", landed is not None)
        self.sender.start("offer", number, model)
        self.sender.result()
        self.receiver.result()
        received_before = self.receiver.call("mark")
        before = marks(watch)
        self.sender.start("send", prefill_s)
        while landed is not None and not self.sender.done(within_s=POLL_S):
            landed(self.receiver.call("landed"))
        sent = self.sender.result()
        received_after = self.receiver.call("committed")
        watched = list(zip(before, marks(watch), strict=True))
        damage = self.receiver.call("damage", number, self._compression)
        return Moved(sent, received_before, received_after, damage, watched)

    def run(self, transfers: int, prefill_s: float = 0.0, watch: Sequence[Peer] = ()) -> Run:
        """`transfers` transfers, one after the other."""
        return Run([self.move(prefill_s=prefill_s, watch=watch) for _ in range(transfers)])

    def close(self) -> None:
        for peer in self._processes:
            peer.hang_up()
        for peer in self._processes:
            peer.close()
        self._keys.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
