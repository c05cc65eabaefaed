"""Congestion controllers and what they are told. Pure: no clock, no socket, no randomness."""

from kvwire.congestion.samples import CLASSES, Budget, Controller, Decision, LaneSample, PathSample
from kvwire.congestion.tcp_info import TcpInfo, parse

__all__ = ["CLASSES", "Budget", "Controller", "Decision", "LaneSample", "PathSample", "TcpInfo", "parse"]
