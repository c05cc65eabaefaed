"""The lanes of a link: who may open one, which are up, and why one has ended. What they carry is the engine's."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvwire import sockets, wire
from kvwire._ext.lanes import DRAINED, EOF, FAULTS, TAG_FAILURE, EngineLink
from kvwire.errors import Closed, IntegrityError, LimitExceeded, LocalError

if TYPE_CHECKING:
    from kvwire._ext.lanes import LaneStats
    from kvwire.link import Link

LANE_FAULTS, FAULTS_S = 3, 60.0
"""So many damaged or dishonest lanes in this time end the link: the path, or the peer, is not to be trusted."""
NOTE_S = 1.0
MOST_LANES = 64
"""Lanes of one link, as Config.lanes has it."""


class Lanes:
    """Of one link."""

    def __init__(self, link: Link, engine_link: EngineLink) -> None:
        self._link = link
        self._engine_link = engine_link
        # By lane and incarnation: the epochs that the log knows, and since when.
        self._epochs: dict[tuple[int, int], tuple[tuple[int, int], float]] = {}
        self._closed_there: set[tuple[int, int]] = set()  # by the peer, as it says, and not ended here yet
        self.faults: deque[float] = deque(maxlen=LANE_FAULTS)  # when lanes went wrong
        self.congestion: dict[int, str] = {}

    def issue_tickets(self, count: int) -> None:
        """Let the dialler open so many lanes, as far as a link and a tenant may have them."""
        session, now = self._link._session, time.monotonic()
        most = MOST_LANES - self._engine_link.lanes_open - session.tickets_out(now)
        with contextlib.suppress(LimitExceeded, Closed):  # a peer that uses none of its tickets gets no more
            for _ in range(min(count, most, self._link._node._lanes_left(self._link))):
                session.issue_ticket(now, secrets.token_bytes(32))

    def add(self, sock: socket.socket, lane: int, incarnation: int, keys: wire.LaneSecrets | None) -> None:
        """Hand a joined socket to the engine."""
        try:
            if (keys is None) != self._link.config.plain:  # never: what was to be sealed would leave in the clear
                raise LocalError("a lane without keys on a sealed link, or with keys on a plain one")
            congestion = sockets.tune_lane(sock, self._link.config)
            self._engine_link.add_lane(sock.detach(), lane, incarnation, keys)
        except BaseException as error:
            self._link._session.lane_closed(time.monotonic(), lane, incarnation, str(error), 0)
            raise
        self.congestion[lane] = congestion
        self._link._egress.lane_up(lane)

    def close(self, lane: int, incarnation: int) -> None:
        """The peer's end is gone. Where its kernel could not say so, this one would wait for it for ever."""
        if any(
            (stats["lane"], stats["incarnation"]) == (lane, incarnation) for stats in self._engine_link.lane_stats()
        ):
            self._closed_there.add((lane, incarnation))
            self._engine_link.close_lane(lane)

    def take_ended(self) -> None:
        """Lanes that have ended: say so, replace them, and lose patience with a peer whose lanes go wrong."""
        link, now = self._link, time.monotonic()
        for lane, incarnation, code, reason, acked in self._engine_link.take_closed():
            self.congestion.pop(lane, None)
            self._epochs.pop((lane, incarnation), None)
            closed_there = code == EOF or (lane, incarnation) in self._closed_there
            self._closed_there.discard((lane, incarnation))
            if link.closed:
                continue
            link._session.lane_closed(now, lane, incarnation, reason, acked)
            # An acceptor's ends when the dialler has closed it: its kernel or its control connection says so first.
            expected = code == DRAINED or (closed_there and link._dialler is None)
            link._egress.lane_down(lane, reason, lost=not expected)
            if code in FAULTS:
                event = "tag_failure" if code == TAG_FAILURE else "lane_fault"
                link.journal.note(event, lane=lane, incarnation=incarnation, reason=reason)
                self.faults.append(now)
                if len(self.faults) == LANE_FAULTS and now - self.faults[0] < FAULTS_S:
                    link._lose(IntegrityError(f"{LANE_FAULTS} lanes to {link.peer} went wrong, the last by {reason}"))
            if link._dialler is not None:
                link._dialler.ended(lane, heard=acked > 0)

    def note_keys(self, lanes: Sequence[LaneStats]) -> None:
        """Have it logged where a lane goes on with another key: once a second, should a peer do so all the time."""
        now = time.monotonic()
        for stats in lanes:
            lane, incarnation = stats["lane"], stats["incarnation"]
            epochs = stats["sent_epoch"], stats["received_epoch"]
            before, noted_at = self._epochs.get((lane, incarnation), ((1, 1), -NOTE_S))
            if epochs == before or now < noted_at + NOTE_S:
                continue
            self._epochs[lane, incarnation] = epochs, now
            for direction, old, new in zip(("out", "in"), before, epochs, strict=True):
                if new > old:
                    self._link.journal.note("rekey", lane=lane, incarnation=incarnation, direction=direction, epoch=new)
