"""Configuration: what is out of range is refused at once, by name."""

import copy
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path
from typing import Any

import pytest

import kvwire.config
from kvwire.config import KIB, MIB, Config
from kvwire.errors import ConfigError
from kvwire.types import ModelTag

RANGES: dict[str, tuple[float, float]] = {
    "lanes": (1, 64),
    "workers": (2, 64),
    "max_transfers": (1, 65536),
    "max_message_bytes": (64 * KIB, 64 * MIB),
    "max_links": (1, 1 << 20),
    "max_handshakes": (1, 1 << 16),
    "handshake_timeout_s": (0.001, 7 * 86400.0),
    "connect_timeout_s": (0.001, 7 * 86400.0),
    "offer_timeout_s": (0.001, 7 * 86400.0),
    "transfer_timeout_s": (0.001, 7 * 86400.0),
    "ping_interval_s": (0.05, 3600.0),
    "tcp_user_timeout_s": (0.1, 3600.0),
}
WHOLE = [name for name, (low, _) in RANGES.items() if isinstance(low, int)]


def config(**changes: Any) -> Config:
    return Config(**changes)


@pytest.mark.parametrize("name", list(RANGES))
def test_ranges(name: str) -> None:
    low, high = RANGES[name]
    for value in (low, high):
        assert getattr(config(**{name: value}), name) == value
    step = 1 if name in WHOLE else 1e-4
    wrong: list[Any] = [low - step, high + step, math.nan, math.inf, True, "4", None]
    for value in wrong if name != "lanes" else wrong[:-1]:  # None: as many as the path is worth
        with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
            config(**{name: value})


@pytest.mark.parametrize("name", [*WHOLE, "cell_bytes", "stream_bytes"])
def test_counts_are_whole(name: str) -> None:
    value = float(getattr(Config(), name) or 4)
    with pytest.raises(ConfigError, match=f"{name} is {value}; expected an integer"):
        config(**{name: value})


@pytest.mark.parametrize("value", [4 * KIB, 128 * KIB, 256 * KIB])
def test_cells(value: int) -> None:
    assert config(cell_bytes=value).cell_bytes == value


@pytest.mark.parametrize(("value", "message"), [(4095, "expected 4096"), (257 * KIB, "to 262144"), (5000, "multiple")])
def test_cells_that_cannot_be(value: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"cell_bytes is {value}; .*{message}"):
        config(cell_bytes=value)


def test_a_stream_buffer_holds_two_cells() -> None:
    assert config(cell_bytes=256 * KIB, stream_bytes=512 * KIB).stream_bytes == 512 * KIB
    with pytest.raises(ConfigError, match="stream_bytes is 524287; expected 524288"):
        config(cell_bytes=256 * KIB, stream_bytes=512 * KIB - 1)


def test_the_rest_is_typed() -> None:
    assert config(models=(ModelTag("m"),), congestion="cubic").models == (ModelTag("m"),)
    with pytest.raises(ConfigError, match="plain is 1"):
        config(plain=1)
    with pytest.raises(ConfigError, match="models"):
        config(models=("m",))


def test_frozen_and_by_name_only() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().lanes = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Config(2)  # type: ignore[call-arg]


@pytest.mark.parametrize("compression", ["auto", "zstd", {"full": "int8", "recurrent": "zstd"}])
def test_it_can_be_handed_to_another_process(compression: str | dict[str, str]) -> None:
    config = Config(lanes=3, compression=compression, models=(ModelTag("m"),))
    for again in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert again == config
        assert hash(again) == hash(config)
        assert again.compression == compression
        with pytest.raises(TypeError):
            again.compression["mla"] = "off"  # type: ignore[index]
    assert json.loads(json.dumps(asdict(config)))["compression"] == compression


def test_a_pickle_names_its_fields() -> None:
    """So that one of another version is taken, or refused, by name, and nothing lands in the wrong field."""
    made, _ = Config(workers=3).__reduce__()
    assert made.keywords == {each.name: getattr(Config(workers=3), each.name) for each in fields(Config)}


class Mine(Config):
    """As a user may derive one."""


def test_one_that_is_derived_stays_what_it_is() -> None:
    config = Mine(compression={"full": "int8"})
    again = pickle.loads(pickle.dumps(config))
    assert type(again) is Mine
    assert again.compression == {"full": "int8"}


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.update(mla="off"),
        lambda it: it.pop("full"),
        lambda it: it.popitem(),
        lambda it: it.clear(),
        lambda it: it.setdefault("mla", "off"),
        lambda it: it.__delitem__("full"),
        lambda it: it.__ior__({"mla": "off"}),
    ],
)
def test_codecs_by_kind_do_not_change(change: Callable[[Any], object]) -> None:
    config = Config(compression={"full": "int8"})
    with pytest.raises(TypeError, match="it does not change"):
        change(config.compression)
    assert config.compression == {"full": "int8"}


def test_every_field_says_what_it_is() -> None:
    lines = Path(kvwire.config.__file__).read_text().splitlines()
    for field in fields(Config):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {field.name}: "))
        assert lines[at + 1].startswith('    """'), f"{field.name} has no docstring"
