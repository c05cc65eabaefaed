"""Controllers by name: parameters, an application's own, and everything that is no controller."""

import re
from pathlib import Path
from typing import Any

import pytest

from kvwire.congestion import (
    Budgeted,
    Controller,
    Decision,
    Uncapped,
    controllers,
    make_controller,
    register_controller,
    registry,
)
from kvwire.errors import ConfigError
from tests.unit.path_samples import path_sample


class Mine(Controller):
    def __init__(self, *, rate: float = 5e6) -> None:
        self.rate = rate

    def decide(self, now: float) -> Decision:
        return Decision(pace_bps=self.rate)


class OnlyDecides:
    def decide(self, now: float) -> Decision:
        return Decision()


@pytest.fixture(autouse=True)
def names_of_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))


def test_every_name_that_needs_no_parameter_makes_a_controller() -> None:
    made = {name: make_controller(name) for name in controllers() if name != "fixed"}
    assert isinstance(made["none"], Uncapped)
    assert isinstance(made["budget"], Budgeted)
    for controller in made.values():
        assert isinstance(controller.decide(0.0), Decision)


def test_a_name_carries_parameters() -> None:
    assert make_controller("fixed:pace_bps=500e6").decide(0.0) == Decision(pace_bps=5e8)
    made = make_controller("fixed:pace_bps=500e6,peak_bps=1e9").decide(0.0)
    assert made == Decision(pace_bps=5e8, peak_bps=1e9)


def test_one_line_registers_another() -> None:
    register_controller("mine", Mine)
    assert "mine" in controllers()
    assert make_controller("mine").decide(0.0).pace_bps == 5e6
    assert make_controller("mine:rate=7e6").decide(0.0).pace_bps == 7e6


def test_what_the_documentation_shows_works() -> None:
    page = (Path(__file__).parents[2] / "docs" / "congestion.md").read_text()
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    cautious = make_controller("cautious")
    assert isinstance(cautious, names["Cautious"])
    assert cautious.decide(0.0) == Decision()
    cautious.on_sample(0.1, path_sample(0.1, delivered_bytes=10**6, segments=700, marked_segments=100))
    assert cautious.decide(0.1) == Decision(pace_bps=4e7)


def test_a_factory_makes_a_new_one_each_time() -> None:
    made = [make_controller(lambda: Mine(rate=3e6)) for _ in range(2)]
    assert made[0] is not made[1]
    assert make_controller(Mine).decide(0.0).pace_bps == 5e6


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cubic", "there is no controller 'cubic' .known: .*fixed.*none"),
        ("", "there is no controller ''"),
        ("None", "there is no controller 'None'"),
        ("fixed", "missing a required .*'pace_bps'.*it takes pace_bps, peak_bps"),
        ("none:rate=1", "unexpected keyword argument 'rate'.*takes no parameters"),
        ("budget:inner=1", "unexpected keyword argument 'inner'"),
        ("fixed:", "'' is not key=number"),
        ("fixed:pace_bps", "'pace_bps' is not key=number"),
        ("fixed:pace_bps=", "is not key=number"),
        ("fixed:pace_bps=500M", "'pace_bps=500M' is not key=number"),
        ("fixed:pace_bps=nan", "is not key=number"),
        ("fixed:pace_bps=1e9,pace_bps=1e9", "each key once"),
        ("fixed:pace_bps=1e9,", "'' is not key=number"),
        ("fixed:pace_bps=-5", "pace_bps is -5.0; expected 1000 to 1e.13"),
        ("fixed:pace_bps=1e9,peak_bps=1e8", "peak_bps is 100000000.0; expected 1e.09"),
    ],
)
def test_a_name_that_means_nothing_says_why(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_controller(name)


def test_what_makes_no_controller_says_what_is_missing() -> None:
    lacks = "lacks on_sample, on_landed, on_lane, on_budget$"
    with pytest.raises(ConfigError, match=lacks):
        make_controller(OnlyDecides)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=lacks):
        register_controller("mine", OnlyDecides)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a name or what makes one"):
        make_controller(Mine())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"made NoneType.* lacks"):
        make_controller(lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="raised ZeroDivisionError"):
        make_controller(lambda: 1 // 0)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("name", ["none", "aimd:x", "Mine", "", "a b", 5])
def test_a_name_that_is_taken_or_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"already|is no name"):
        register_controller(name, Mine)


def test_a_factory_has_to_be_callable() -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        register_controller("mine", Mine())  # type: ignore[arg-type]
