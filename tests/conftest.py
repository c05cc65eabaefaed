"""A hard time limit for every test, one hypothesis profile, and codecs that tests register."""

import faulthandler
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import hypothesis
import pytest

from kvwire.codecs import registry

LIMIT_S = 60.0
GRACE_S = 30.0  # from the limit to the end of the whole run, for a test that sits in native code

# Shared CI machines stall, so no example has a deadline; and a unit test has no unseeded randomness.
hypothesis.settings.register_profile("kvwire", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("kvwire")

stderr_fd = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    capture = config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        config.stash[stderr_fd] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[stderr_fd])


def limit_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker else LIMIT_S


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Past the grace the process ends with the stacks of all threads: no Python has to run for that."""
    faulthandler.dump_traceback_later(limit_s(item) + GRACE_S, exit=True, file=item.config.stash[stderr_fd])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    seconds = limit_s(item)

    def ring(signum: int, frame: FrameType | None) -> NoReturn:
        pytest.fail(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    # Again every 5 s: what the handler raises may end up in a background task that nobody awaits.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def codecs_forgotten() -> Iterator[None]:
    """The codecs that a test registers are gone after it."""
    before = dict(registry._codecs)
    yield
    registry._codecs.clear()
    registry._codecs.update(before)
