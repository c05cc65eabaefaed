"""What a test opens it closes; the API's main tests run on asyncio's own loop and on uvloop."""

import asyncio
import gc
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from kvwire._ext import cipher
from tests.net.engines import Pair, open_things, until

ON_BOTH_LOOPS = (
    "test_api_transfer",
    "test_api_threads",
    "test_api_ends",
    "test_api_lost",
    "test_api_strangers",
    "test_cancelled",
)


@pytest.fixture(scope="session")
def uvloop_started() -> None:
    """libuv makes a thread pool and two descriptors for its process when they are first needed, and keeps them."""

    async def look_up() -> None:
        await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 0)

    uvloop.run(look_up())


@pytest.fixture(params=["plain", "sealed"])
def sealing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with plain lanes and with sealed ones."""
    if request.param == "sealed":
        monkeypatch.setattr(Pair, "cipher", cipher.find())


@pytest.fixture
def nothing_left(uvloop_started: None) -> Iterator[None]:
    """No descriptor and no thread more at the end than at the start."""
    before = open_things()
    yield

    def nothing_more() -> bool:
        return all(now <= then for now, then in zip(open_things(), before, strict=True))

    if not nothing_more():
        gc.collect()
        until(nothing_more, f"{open_things()} descriptors and threads to be {before} again", 2.0)


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
    if item.path.stem in ON_BOTH_LOOPS:
        loops["uvloop"] = uvloop.new_event_loop
    return loops
