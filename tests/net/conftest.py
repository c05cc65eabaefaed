"""What a test opens it closes."""

import gc
from collections.abc import Iterator

import pytest

from tests.net.engines import open_things, until


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No descriptor and no thread more at the end than at the start."""
    gc.collect()
    before = open_things()
    yield
    gc.collect()
    until(lambda: open_things() <= before, f"{open_things()} descriptors and threads to be {before} again", 2.0)
