"""Deliberately broken builds of what seals a link: keys, tickets, hand-shakes. See `mutations`."""

from __future__ import annotations

import ssl
from types import SimpleNamespace
from typing import Any
from unittest import mock

from kvwire.errors import LinkLost
from kvwire.security import schedule, tls
from kvwire.wire import session as wire_session
from kvwire.wire import tickets
from kvwire.wire.keys import LaneSecrets
from kvwire.wire.preamble import Join
from tests.sim.engine import SimEngineLink

NO_RANDOM = bytes(32)


def finished_unheeded() -> list[Any]:
    return [mock.patch.object(wire_session, "hmac", SimpleNamespace(compare_digest=lambda ours, theirs: True))]


def first_keys_kept() -> list[Any]:
    real = wire_session.Session._greet

    def greet(self: Any, now: float, random: bytes, agreement: Any) -> None:
        first = getattr(self, "_keys", None)
        real(self, now, random, agreement)
        if first is not None:
            agreement.agree = lambda *_: first

    return [mock.patch.object(wire_session.Session, "_greet", greet)]


def ticket_left_out() -> list[Any]:
    """By the acceptor, of what makes a lane's secrets."""
    real = tickets.Tickets.redeem

    def redeem(self: tickets.Tickets, now: float, join: Join, join_secret: bytes) -> bytes:
        real(self, now, join, join_secret)
        return NO_RANDOM

    return [mock.patch.object(tickets.Tickets, "redeem", redeem)]


def lane_left_out() -> list[Any]:
    """Which lane it is, and both randoms, of what makes its secrets."""
    real = schedule.Keys.lane

    def lane(self: schedule.Keys, lane: int, incarnation: int, acceptor: bytes, dialler: bytes) -> LaneSecrets:
        return real(self, 0, 0, NO_RANDOM, NO_RANDOM)

    return [mock.patch.object(schedule.Keys, "lane", lane)]


def directions_alike() -> list[Any]:
    real = schedule.Keys.lane

    def lane(self: schedule.Keys, *of_what: Any) -> LaneSecrets:
        one = min(real(self, *of_what))
        return one, one

    return [mock.patch.object(schedule.Keys, "lane", lane)]


def lanes_in_the_clear() -> list[Any]:
    real = SimEngineLink.add_lane

    def add_lane(self: SimEngineLink, fd: int, lane: int, incarnation: int, secrets: Any = None) -> None:
        real(self, fd, lane, incarnation, None)

    return [mock.patch.object(SimEngineLink, "add_lane", add_lane)]


def joins_believed() -> list[Any]:
    return [mock.patch.object(tickets, "verify_join", return_value=None)]


def tickets_kept() -> list[Any]:
    real = tickets.Tickets.redeem

    def redeem(self: tickets.Tickets, now: float, join: Join, join_secret: bytes) -> bytes:
        out = dict(self._out)
        random = real(self, now, join, join_secret)
        self._out = out
        return random

    return [mock.patch.object(tickets.Tickets, "redeem", redeem)]


def control_in_the_clear() -> list[Any]:
    """From the end of the hand-shake on."""
    real = tls.Tls.receive

    def receive(self: tls.Tls, data: bytes) -> bytes:
        return data or real(self, data)

    return [
        mock.patch.object(tls.Tls, "receive", receive),
        mock.patch.object(tls.Tls, "send", lambda self, data: data),
    ]


def damage_unheeded() -> list[Any]:
    """Records that do not open are skipped, as if nothing had been said; and then none can be sealed."""

    def calmly(real: Any) -> Any:
        def call(self: tls.Tls, data: bytes) -> Any:
            try:
                return real(self, data)
            except (LinkLost, ssl.SSLError):
                return b""

        return call

    return [mock.patch.object(tls.Tls, name, calmly(getattr(tls.Tls, name))) for name in ("receive", "send")]
