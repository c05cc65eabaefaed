"""The tests of links run as those of sockets do."""

from tests.net.conftest import nothing_left, uvloop_started

__all__ = ["nothing_left", "uvloop_started"]
