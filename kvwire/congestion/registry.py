"""Controllers by name: those that come with kvwire, and an application's own."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable

from kvwire.congestion.aimd import Aimd
from kvwire.congestion.budgeted import Budgeted
from kvwire.congestion.delay import Delay
from kvwire.congestion.fixed import Fixed
from kvwire.congestion.samples import Controller
from kvwire.congestion.uncapped import Uncapped
from kvwire.errors import ConfigError

ControllerFactory = Callable[..., Controller]
"""Makes a controller, one for each link; a class is one. Its keyword parameters, if any, are numbers."""

METHODS = ("on_sample", "on_landed", "on_lane", "on_budget", "decide")

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_factories: dict[str, ControllerFactory] = {
    "none": Uncapped,
    "fixed": Fixed,
    "aimd": Aimd,
    "delay": Delay,
    "budget": lambda: Budgeted(Uncapped()),
}


def controllers() -> tuple[str, ...]:
    """The names that `make_controller` knows."""
    return tuple(sorted(_factories))


def register_controller(name: str, factory: ControllerFactory) -> None:
    """Let `factory` make the controllers of this name. ConfigError where the name is taken or is no name (lower case,
    digits, "_", "-", "."), or a class lacks a controller's methods."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r:.80} is no name of a controller; expected lower case, digits, '_', '-' and '.'")
    if name in _factories:
        raise ConfigError(f"there is a controller {name!r} already")
    if not callable(factory):
        raise ConfigError(f"the factory of controller {name!r} is {factory!r:.80}, which cannot be called")
    if isinstance(factory, type):
        _check_methods(factory, factory.__name__)
    _factories[name] = factory


def make_controller(name_or_factory: str | ControllerFactory) -> Controller:
    """A controller, new: by name, by name with parameters ("fixed:pace_bps=500e6", "delay:target_s=0.01"; numbers in
    the units that the names carry), or from a factory.

    ConfigError for an unknown name or parameter, one that is missing or out of its range, or what is no controller.
    """
    if not isinstance(name_or_factory, str):
        if not callable(name_or_factory):
            raise ConfigError(f"controller is {name_or_factory!r:.80}; expected a name or what makes one")
        return _make(getattr(name_or_factory, "__name__", repr(name_or_factory)), name_or_factory, {})
    name, colon, rest = name_or_factory.partition(":")
    if name not in _factories:
        raise ConfigError(f"there is no controller {name!r:.80}", hint=f"known: {', '.join(controllers())}")
    return _make(name, _factories[name], _parameters(name, rest) if colon else {})


def _parameters(name: str, text: str) -> dict[str, float]:
    """Of "key=number,key=number"."""
    found: dict[str, float] = {}
    for part in text.split(","):
        key, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not key.isidentifier() or key in found or not math.isfinite(value):
            raise ConfigError(
                f"controller {name!r}: {part!r:.80} is not key=number, each key once",
                hint="for example fixed:pace_bps=500e6,peak_bps=1e9",
            )
        found[key] = value
    return found


def _make(name: str, factory: ControllerFactory, parameters: dict[str, float]) -> Controller:
    try:
        inspect.signature(factory).bind(**parameters)
    except (TypeError, ValueError) as error:  # ValueError: of a few built-in types nobody knows what they take
        raise ConfigError(f"controller {name!r:.80}: {error}", hint=_takes(factory)) from None
    try:
        controller = factory(**parameters)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"what makes controller {name!r:.80} raised {type(error).__name__}: {error}") from error
    _check_methods(controller, f"what makes {name!r:.80} made {type(controller).__name__}, which")
    return controller


def _takes(factory: ControllerFactory) -> str | None:
    try:
        names = ", ".join(inspect.signature(factory).parameters)
    except ValueError:
        return None
    return f"it takes {names}" if names else "it takes no parameters"


def _check_methods(made: object, what: str) -> None:
    missing = [method for method in METHODS if not callable(getattr(made, method, None))]
    if missing:
        raise ConfigError(f"{what} is no controller: it lacks {', '.join(missing)}")
