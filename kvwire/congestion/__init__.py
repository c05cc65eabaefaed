"""Congestion controllers, what they are told, and how many lanes a link wants. Pure: no clock, socket, randomness."""

from kvwire.congestion.aimd import Aimd
from kvwire.congestion.bounds import FLOOR_BPS, check_budget
from kvwire.congestion.budgeted import Budgeted
from kvwire.congestion.delay import Delay
from kvwire.congestion.fixed import Fixed
from kvwire.congestion.guarded import Guarded
from kvwire.congestion.lanes import LanePlanner
from kvwire.congestion.registry import ControllerFactory, controllers, make_controller, register_controller
from kvwire.congestion.samples import CLASSES, Budget, Controller, Decision, LaneSample, PathSample
from kvwire.congestion.stragglers import Stragglers, lost, misled, stalled
from kvwire.congestion.tcp_info import TcpInfo, parse
from kvwire.congestion.uncapped import Uncapped

__all__ = [
    "CLASSES",
    "FLOOR_BPS",
    "Aimd",
    "Budget",
    "Budgeted",
    "Controller",
    "ControllerFactory",
    "Decision",
    "Delay",
    "Fixed",
    "Guarded",
    "LanePlanner",
    "LaneSample",
    "PathSample",
    "Stragglers",
    "TcpInfo",
    "Uncapped",
    "check_budget",
    "controllers",
    "lost",
    "make_controller",
    "misled",
    "parse",
    "register_controller",
    "stalled",
]
