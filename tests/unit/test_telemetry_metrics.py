"""The table of metrics, and its two exporters against the packages that users have."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition, parser

from kvwire.errors import ConfigError
from kvwire.telemetry import ReportBuilder, metrics, opentelemetry, prometheus
from kvwire.telemetry.metrics import MOST_LANES, MOST_LINKS, TABLE
from tests.unit.telemetry_kit import ALink, ANode, full_report, made


def series(node: ANode) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What a scrape would give: by name and labels."""
    registry = CollectorRegistry()
    prometheus.export(node, registry)
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(node: ANode, name: str, **labels: str) -> float | None:
    where = {"link": "a", "peer": "10.0.0.2 port 7878"} | labels
    return series(node).get((name, frozenset(where.items())))


# --- the table --------------------------------------------------------------------------------------------------------


def test_names_and_units_are_as_conventions_have_them() -> None:
    names = [it.prometheus for it in TABLE]
    assert len(set(names)) == len(names) == len({it.name for it in TABLE})
    for metric in TABLE:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*(\.[a-z]+(_[a-z]+)*)?", metric.name), metric.name
        assert re.fullmatch(r"By|s|bit/s|1||\{[a-z]+\}", metric.unit), metric.name
        assert (metric.of is None) != (metric.node is None), metric.name
        # No name is another one's namespace.
        assert not any(other.name.startswith(metric.name + ".") for other in TABLE), metric.name
    assert "kvwire_landed_bytes_total" in names
    assert "kvwire_retransmission_ratio" in names


def test_every_metric_has_something_to_say_of_a_link_that_has_all() -> None:
    told = {name for name, _ in series(ANode([ALink(full_report())]))}
    assert told == {it.prometheus for it in TABLE}


def test_values_are_the_reports() -> None:
    found = full_report()
    node = ANode([ALink(found)])
    assert value(node, "kvwire_goodput_bits_per_second") == found.goodput_bps > 0
    assert value(node, "kvwire_landed_bytes_total") == found.totals.landed_bytes
    assert value(node, "kvwire_rtt_seconds", stat="p99") == found.rtt_p99_s == 0.04
    assert value(node, "kvwire_capacity_is_lower_bound") == 0
    assert value(node, "kvwire_transfers", direction="out", **{"class": "background"}) == 1
    assert value(node, "kvwire_lane_landed_bytes_total") is None
    assert value(node, "kvwire_lane_goodput_bits_per_second", lane="1") == found.lanes[1].goodput_bps
    assert value(node, "kvwire_lanes_by_congestion", congestion="cubic") == 2
    assert value(node, "kvwire_budget_lease_left_seconds") == 12.5
    assert value(node, "kvwire_link_info", tenant="acme") == 1
    assert value(node, "kvwire_compression_info", reason="worth it") == value(node, "kvwire_compressing") == 1
    assert value(node, "kvwire_encode_rate_bits_per_second") == 1.2e10


def test_what_is_not_known_is_absent() -> None:
    node = ANode([ALink(made(ReportBuilder(), 0.0))])
    absent = {it.prometheus for it in TABLE} - {name for name, _ in series(node)}
    assert absent == {it.prometheus for it in TABLE if it.labels[:1] == ("lane",)} | {
        "kvwire_capacity_bits_per_second", "kvwire_path_bits_per_second", "kvwire_path_age_seconds",
        "kvwire_eta_gib_seconds", "kvwire_controller_pace_bits_per_second", "kvwire_controller_peak_bits_per_second",
        "kvwire_controller_inflight_cap_bytes", "kvwire_budget_max_bits_per_second",
        "kvwire_budget_min_bits_per_second", "kvwire_budget_lease_left_seconds", "kvwire_lanes_by_congestion",
        "kvwire_rtt_seconds", "kvwire_compression_ratio", "kvwire_encode_rate_bits_per_second",
        "kvwire_decode_rate_bits_per_second", "kvwire_peer_decode_rate_bits_per_second",
        "kvwire_link_rate_bits_per_second",
    }  # fmt: skip


def test_cardinality_is_bounded_and_what_is_left_out_is_counted() -> None:
    one, two = full_report(lanes=1), full_report(lanes=2)
    per_link = len(series(ANode([ALink(one)])))
    per_lane = len(series(ANode([ALink(two)]))) - per_link
    most = [ALink(full_report(f"link-{number}", lanes=8)) for number in range(MOST_LINKS + 40)]
    found = series(ANode(most))
    assert len(found) <= (per_link - per_lane) * MOST_LINKS + per_lane * MOST_LANES < metrics.MOST_SERIES
    assert found["kvwire_links", frozenset()] == MOST_LINKS + 40
    assert found["kvwire_links_left_out", frozenset()] == 40
    assert found["kvwire_lanes_left_out", frozenset()] == 8 * MOST_LINKS - MOST_LANES
    ups = sum(number for (name, _), number in found.items() if name == "kvwire_lanes_up")
    assert ups == 8 * MOST_LINKS  # sums of a link know all of its lanes


# --- Prometheus -------------------------------------------------------------------------------------------------------


def test_series_vanish_with_their_link() -> None:
    node = ANode([ALink(full_report("a")), ALink(full_report("b")), ALink(None)])

    def links() -> set[str]:
        return {dict(labels)["link"] for _, labels in series(node) if labels}

    assert links() == {"a", "b"}
    node.links.pop(0)
    assert links() == {"b"}
    node.links.clear()
    assert series(node)["kvwire_links", frozenset()] == 0


def test_a_link_that_has_fallen_silent_is_not_believed() -> None:
    old = replace(full_report("old"), time_s=time.time() - 6)
    found = series(ANode([ALink(full_report("a")), ALink(old), ALink(None)]))
    assert {dict(labels)["link"] for _, labels in found if labels} == {"a"}
    assert (found["kvwire_links", frozenset()], found["kvwire_links_silent", frozenset()]) == (3, 2)


@pytest.mark.parametrize("export", [lambda node: prometheus.export(node, CollectorRegistry()), opentelemetry.export])
def test_links_are_looked_at_while_they_are_exported(export: Callable[[ANode], Any]) -> None:
    node = ANode()
    exporter = export(node)
    assert node.listeners.counts.listening == 1
    exporter.close()
    assert node.listeners.counts.listening == 0


def test_both_text_forms_are_well_formed() -> None:
    registry = CollectorRegistry()
    prometheus.export(ANode([ALink(full_report('a "quoted"\nlink'))]), registry)
    text = generate_latest(registry).decode()
    assert "# TYPE kvwire_landed_bytes_total counter" in text
    assert "# TYPE kvwire_goodput_bits_per_second gauge" in text
    openmetrics = exposition.generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    families = list(parser.text_string_to_metric_families(openmetrics))  # type: ignore[no-untyped-call]
    assert Counter(it.type for it in families) == Counter(it.kind for it in TABLE)


def test_one_node_a_registry_and_out_again() -> None:
    registry = CollectorRegistry()
    exporter = prometheus.export(ANode(), registry)
    second = ANode()
    with pytest.raises(ConfigError, match="already"):
        prometheus.export(second, registry)
    exporter.close()
    exporter.close()
    assert list(registry.collect()) == []
    assert second.listeners.counts.listening == 0
    prometheus.export(ANode(), registry).close()


# --- OpenTelemetry ----------------------------------------------------------------------------------------------------


def observed(reader: InMemoryMetricReader) -> dict[str, list[tuple[dict[str, Any], float]]]:
    data = reader.get_metrics_data()
    found: dict[str, list[tuple[dict[str, Any], float]]] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            assert scope.scope.name == "kvwire"
            for metric in scope.metrics:
                points = [it for it in metric.data.data_points if isinstance(it, NumberDataPoint)]
                found[metric.name] = [(dict(it.attributes or {}), it.value) for it in points]
    return found


def test_opentelemetry_says_the_same_as_prometheus() -> None:
    node, reader = ANode([ALink(full_report("a")), ALink(full_report("b"))]), InMemoryMetricReader()
    provider = MeterProvider([reader])
    exporter = opentelemetry.export(node, provider)
    told = observed(reader)
    assert told.keys() == {f"kvwire.{it.name}" for it in TABLE}
    same = {
        (it.prometheus, frozenset((name.removeprefix("kvwire."), text) for name, text in attributes.items())): number
        for it in TABLE
        for attributes, number in told[f"kvwire.{it.name}"]
    }
    assert same == series(node)
    node.links.pop(0)
    assert {it["kvwire.link"] for it, _ in observed(reader)["kvwire.goodput"]} == {"b"}
    exporter.close()
    exporter.close()
    assert observed(reader) == {}
    provider.shutdown()


def test_counters_only_grow_in_opentelemetry() -> None:
    link, reader = ALink(full_report()), InMemoryMetricReader()
    provider = MeterProvider([reader])
    opentelemetry.export(ANode([link]), provider)
    before = observed(reader)["kvwire.landed"][0][1]
    assert link.report is not None
    link.report = replace(link.report, totals=replace(link.report.totals, landed_bytes=int(before) + 7))
    assert observed(reader)["kvwire.landed"][0][1] == before + 7
    provider.shutdown()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("export", "package"), [(prometheus.export, "prometheus_client"), (opentelemetry.export, "opentelemetry")]
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    export: Callable[[Any], object], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'kvwire[metrics]'")):
        export(ANode())


@pytest.mark.parametrize("export", [prometheus.export, opentelemetry.export])
def test_what_is_no_node_is_refused(export: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match=r"kvwire\.Node"):
        export("node")


def test_a_link_that_has_not_reported_yet_only_counts() -> None:
    assert {name for name, _ in series(ANode([ALink(None)]))} == {
        "kvwire_links", "kvwire_links_silent", "kvwire_links_left_out", "kvwire_lanes_left_out",
    }  # fmt: skip
