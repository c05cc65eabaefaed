"""What a link tells whoever listens: reports of what it sends, and how to get them to a scheduler or a dashboard."""

from kvwire.telemetry.builder import HEADER_BYTES, HEADER_BYTES_IPV6, CompressionState, LinkState, ReportBuilder
from kvwire.telemetry.listeners import Callback, Listeners, Remove, Reports
from kvwire.telemetry.reports import EgressReport, LaneReport, ListenerCounts, PerClass, Totals
from kvwire.telemetry.streams import Telemetry

__all__ = [
    "HEADER_BYTES",
    "HEADER_BYTES_IPV6",
    "Callback",
    "CompressionState",
    "EgressReport",
    "LaneReport",
    "LinkState",
    "ListenerCounts",
    "Listeners",
    "PerClass",
    "Remove",
    "ReportBuilder",
    "Reports",
    "Telemetry",
    "Totals",
]
