"""A real node's metrics, scraped over HTTP: what the engine counted, and gone with the link."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from prometheus_client.parser import text_string_to_metric_families

from kvwire import Config, EgressReport, Link
from kvwire.cli.top import scrape
from kvwire.telemetry import opentelemetry
from tests.net import kit
from tests.net.metrics_kit import scraped

pytestmark = pytest.mark.usefixtures("nothing_left")


def read(url: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Series by name."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


async def a_report_of(link: Link, landed: int) -> EgressReport:
    """The first that knows of so many bytes."""
    async with asyncio.timeout(kit.PATIENCE_S):
        async for report in link.telemetry():
            if report.totals.landed_bytes >= landed and not any(report.outgoing):
                return report
    raise AssertionError


async def test_a_scrape_says_what_the_engine_counted() -> None:
    async with kit.joined(client=Config(lanes=2)) as pair:
        with scraped(pair.client) as url:
            await kit.eventually(lambda: pair.link.report, "the first report")
            for number in range(5):
                await kit.move(pair.link, pair.server, f"r{number}")
            # The receipt may be faster than the last acknowledgements.
            await kit.eventually(lambda: not any(it["unacked_bytes"] for it in pair.link.lane_stats()), "them")
            counted = pair.link.lane_stats()
            report = await a_report_of(pair.link, sum(lane["acked_bytes"] for lane in counted))
            found = await asyncio.to_thread(read, url)
            ((labels, landed),) = found["kvwire_landed_bytes_total"]
            assert labels == {"link": report.link, "peer": pair.link.peer}
            assert landed == sum(lane["acked_bytes"] for lane in counted)
            assert found["kvwire_lanes_up"][0][1] == 2
            by_lane = {labels["lane"] for labels, _ in found["kvwire_lane_rtt_seconds"]}
            assert by_lane == {str(lane["lane"]) for lane in counted}
            ((_, sent),) = found["kvwire_sent_bytes_total"]
            ((_, wire),) = found["kvwire_wire_bytes_total"]
            assert landed < sent <= sum(lane["sent_bytes"] for lane in pair.link.lane_stats())
            assert sent <= wire * 1.01
            (rtt,) = (value for labels, value in found["kvwire_rtt_seconds"] if labels["stat"] == "p50")
            assert 0 < rtt < 1
            (top,) = scrape.look([scrape.Endpoint(url)])
            assert (top.error, [view.link for view in top.links]) == ("", [report.link])


async def test_both_ends_and_the_end_of_a_link() -> None:
    async with kit.joined() as pair:
        with scraped(pair.client) as ours, scraped(pair.server) as theirs:
            await kit.eventually(lambda: pair.link.report and pair.back.report, "reports at both ends")
            there = await asyncio.gather(asyncio.to_thread(read, ours), asyncio.to_thread(read, theirs))
            names = [found["kvwire_link_info"][0][0]["link"] for found in there]
            assert names[0] == names[1]
            await pair.link.close()
            await kit.eventually(lambda: not pair.server.links, "the server's link to end")
            for url in (ours, theirs):
                found = await asyncio.to_thread(read, url)
                assert found["kvwire_links"] == [({}, 0.0)]
                assert "kvwire_landed_bytes_total" not in found


async def test_opentelemetry_of_a_real_node() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    async with kit.joined() as pair:
        exporter = opentelemetry.export(pair.client, provider)
        await kit.move(pair.link, pair.server, "r")
        await kit.eventually(lambda: pair.link.report, "the first report")
        data = reader.get_metrics_data()
        assert data is not None
        metrics = {it.name: it for it in data.resource_metrics[0].scope_metrics[0].metrics}
        (point,) = metrics["kvwire.lanes.up"].data.data_points
        assert isinstance(point, NumberDataPoint)
        assert point.value == 2
        assert metrics["kvwire.landed"].unit == "By"
        exporter.close()
    provider.shutdown()


async def test_the_page_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of its snippets, on a node whose link ends after a while; on a port that is free."""
    servers: list[Any] = []
    start = prometheus_client.start_http_server
    monkeypatch.setattr(prometheus_client, "start_http_server", lambda port: servers.append(start(0, "127.0.0.1")))
    page = (Path(__file__).parents[2] / "docs/telemetry.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 4
    noted: list[tuple[str, float]] = []
    scheduler = SimpleNamespace(note=lambda peer, headroom_bps: noted.append((peer, headroom_bps)))
    async with kit.joined() as pair:
        peer, running, exporters = pair.link.peer, [], []
        for snippet in snippets:
            names: dict[str, Any] = {"node": pair.client, "link": pair.link, "scheduler": scheduler}
            ran = eval(compile(snippet, "telemetry.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
            if inspect.isawaitable(ran):
                running.append(asyncio.ensure_future(ran))
            elif "exporter" in names:
                exporters.append(names["exporter"])
        await kit.move(pair.link, pair.server, "r")
        await kit.eventually(lambda: noted, "the callback to be called")
        ((server, thread),) = servers
        found = await asyncio.to_thread(read, f"http://127.0.0.1:{server.server_port}/metrics")
        assert found["kvwire_links"] == [({}, 1.0)]
        server.shutdown()
        server.server_close()
        thread.join()
        for exporter in exporters:
            exporter.close()
        await pair.link.close()
        await asyncio.gather(*running)
    assert noted[0][0] == peer
    assert re.search(r"^\d+ Mbit/s, \d+\.\d ms of queue$", capsys.readouterr().out, re.MULTILINE)
