"""What stood between hosts, and for how long: what a link may be lost for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.links import SimLink, Spell
    from tests.sim.network import Connection, Host
    from tests.sim.world import World

AT_ONCE_S = 1.5
"""A link whose connection is reset, and no more, is back within this: the first redial leaves at once."""


@dataclass
class Trouble:
    """Something stands between two hosts, or between one and all others. `heals`: peace ends it."""

    began_at: float
    until: float
    hosts: frozenset[Host]
    heals: bool

    @property
    def lasts(self) -> bool:
        return self.until > self.began_at


def between(world: World, hosts: frozenset[Host]) -> Iterable[Trouble]:
    """All that ever stood between these two, strangers included that take up all hand-shakes."""
    yield from (trouble for trouble in world.troubles if trouble.hosts <= hosts)
    for connection in world.network.connections:
        target = connection.hosts[1]
        if connection.uninvited and target in hosts:
            yield Trouble(connection.born_at, _left_at(world, connection), frozenset((target,)), heals=False)


def _left_at(world: World, connection: Connection) -> float:
    closed_at = connection.ends[1].closed_at
    return world.clock.now if closed_at is None else closed_at


def return_s(world: World) -> float:
    """How long a link may be gone when nothing is in its way any more.

    Until the side that heard nothing of the loss says something and is told; until an attempt that was under way is
    given up, and its pause is over; one attempt more.
    """
    config = world.config
    slack_s = max(process.slack_s for process in world.processes)
    return config.ping_interval_s + 2 * config.handshake_timeout_s + 2.0 + slack_s


def kept_apart(world: World, link: SimLink, spell: Spell) -> bool:
    """Whether something explains that there was no connection all that time."""
    assert spell.ended_at is not None
    for trouble in between(world, link.hosts):
        grace_s = return_s(world) if trouble.lasts else AT_ONCE_S
        if trouble.began_at <= spell.ended_at < trouble.until + grace_s:
            return True
    return False
