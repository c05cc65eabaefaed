"""docs/grafana/kvwire.json: its queries ask for what the exporter says, by labels that it has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kvwire.telemetry import prometheus
from tests.unit.telemetry_kit import ALink, ANode, full_report

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs/grafana/kvwire.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES: list[dict[str, Any]] = DASHBOARD["templating"]["list"]
OF_SCRAPES = {"instance", "job"}
"""Labels that Prometheus itself adds."""
OF_GRAFANA = {"__rate_interval"}


def exported() -> dict[str, set[str]]:
    """Labels by name of series, as a scrape has them."""
    registry = CollectorRegistry()
    prometheus.export(ANode([ALink(full_report())]), registry)
    return {sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples}


def queries() -> Iterator[tuple[str, str]]:
    """Every expression and the legend that goes with it; those of variables have none."""
    for panel in PANELS:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]
    for variable in VARIABLES:
        if variable["type"] == "query":
            yield variable["query"]["query"], ""


QUERIES = list(queries())


@pytest.mark.parametrize(("expression", "legend"), QUERIES, ids=[expression[:60] for expression, _ in QUERIES])
def test_a_query_asks_for_what_there_is(expression: str, legend: str) -> None:
    known = exported()
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"kvwire_\w+", without_strings))
    assert names
    assert names <= known.keys()
    labels = set.intersection(*(known[name] for name in names)) | OF_SCRAPES
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", " ".join(re.findall(r"\{([^}]*)\}", without_strings)))
    grouped = re.findall(r"\w+", " ".join(re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", without_strings)))
    of_variable = re.findall(r"label_values\(.*,\s*(\w+)\)", without_strings)
    assert {*matched, *grouped, *of_variable} <= labels
    shown = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", legend))
    assert shown <= (set(grouped) if grouped else labels)
    for opening, closing in ("()", "[]", "{}"):
        assert without_strings.count(opening) == without_strings.count(closing)


@pytest.mark.parametrize("expression", [expression for expression, _ in QUERIES if "_total" in expression])
def test_counters_are_asked_for_their_growth(expression: str) -> None:
    for name in re.findall(r"kvwire_\w+_total", expression):
        assert re.search(rf"\b(rate|increase)\({name}\{{[^}}]*\}}\[\$__rate_interval\]\)", expression)


def test_variables_that_are_used_exist() -> None:
    defined = {it["name"] for it in VARIABLES} | OF_GRAFANA
    assert set(re.findall(r"\$\{?(\w+)", json.dumps([PANELS, VARIABLES]))) - {"__all"} <= defined


def test_panels_have_room_and_names_of_their_own() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken.get((x, y)))
                taken[x, y] = panel["title"]
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
