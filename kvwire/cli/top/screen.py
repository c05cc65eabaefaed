"""Tables of what nodes say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvwire.cli.top.scrape import LinkView, NodeView
from kvwire.cli.units import show_rate, show_size, show_time

CLASSES = ("urgent", "demand", "background")
LIMITS = ("application", "pacing", "receiver", "buffer")
MUCH = 0.01
"""Retransmitted share from which it is shown in red: where loss-based congestion control loses its rate."""


def show(nodes: Sequence[NodeView]) -> RenderableType:
    """All of it: of each node its links, their queues and their lanes."""
    return Group(*(part for node in nodes for part in _node(node)))


def _node(node: NodeView) -> Iterator[RenderableType]:
    if node.error:
        yield Text(f"{node.url}: {node.error}\n", "bold red")
        return
    lanes = sum(len(link.lanes) for link in node.links)
    beside = f", {node.left_out:.0f} more left out" if node.left_out else ""
    yield Text(f"{node.url}: {len(node.links)} links, {lanes} lanes{beside}\n", "bold")
    if node.links:
        yield _links(node.links)
        yield _queues(node.links)
        yield _lanes(node.links)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("link", "peer") else "right", overflow="fold")
    return table


def _links(links: Iterable[LinkView]) -> Table:
    table = _table(
        "link", "peer", "goodput", "capacity", "used", "sent again", "RTT p50/p99/min", "queue", "lanes", "held back by"
    )
    for it in links:
        tenant = it.label("link_info", "tenant")
        again = it.get("retransmission_ratio")
        bound = "≥ " if it.get("capacity_is_lower_bound") else ""
        capacity = _of(show_rate, it.get("capacity_bits_per_second"))
        rtts = "/".join(_of(show_time, it.get("rtt_seconds", stat=stat)) for stat in ("p50", "p99", "min"))
        table.add_row(
            Text(it.link[:8]),
            Text(f"{it.peer} ({tenant})" if tenant else it.peer),
            _of(show_rate, it.get("goodput_bits_per_second")),
            capacity if capacity == "-" else bound + capacity,
            _of(_percent, it.get("utilisation_ratio")),
            Text(_of(_percent, again), "red" if again >= MUCH else ""),
            rtts,
            _of(show_time, it.get("queue_delay_seconds")),
            f"{_of(_number, it.get('lanes_up'))}/{_of(_number, it.get('lanes_wanted'))}",
            _held_back({by: it.get("limited_ratio", by=by) for by in LIMITS}),
        )
    return table


def _queues(links: Iterable[LinkView]) -> Table:
    queues = (f"queued {name}" for name in CLASSES)
    table = _table("link", *queues, "sending u/d/b", "receiving u/d/b", "controller", "pace", "budget", "a further GiB")
    for it in links:
        queued = []
        for name in CLASSES:
            size, oldest = (it.get(metric, **{"class": name}) for metric in ("queued_bytes", "oldest_seconds"))
            queued.append(_of(show_size, size) + (f" for {show_time(oldest)}" if oldest > 0 else ""))
        lease = it.get("budget_lease_left_seconds")
        budget = _of(show_rate, it.get("budget_max_bits_per_second"))
        table.add_row(
            Text(it.link[:8]),
            *queued,
            _transfers(it, "out"),
            _transfers(it, "in"),
            Text(it.label("controller_info", "controller") or "-"),
            _of(show_rate, it.get("controller_pace_bits_per_second")),
            budget if math.isnan(lease) else f"{budget} for {show_time(lease)}",
            _of(show_time, it.get("eta_gib_seconds")),
        )
    return table


def _lanes(links: Iterable[LinkView]) -> Table:
    table = _table(
        "link", "lane", "under it", "goodput", "sent again", "timeouts", "RTT", "in flight", "unacked", "stalled",
        "held back by",
    )  # fmt: skip
    for it in links:
        for lane in it.lanes:
            again = it.get("lane_retransmission_ratio", lane=lane)
            table.add_row(
                Text(it.link[:8]),
                lane,
                Text(it.label("lane_info", "congestion", lane=lane)),
                _of(show_rate, it.get("lane_goodput_bits_per_second", lane=lane)),
                Text(_of(_percent, again), "red" if again >= MUCH else ""),
                _of(_number, it.get("lane_timeouts_total", lane=lane)),
                _of(show_time, it.get("lane_rtt_seconds", lane=lane)),
                _of(show_size, it.get("lane_inflight_bytes", lane=lane)),
                _of(show_size, it.get("lane_unacked_bytes", lane=lane)),
                _of(show_time, it.get("lane_stalled_seconds", lane=lane)),
                _held_back({by: it.get("lane_limited_ratio", lane=lane, by=by) for by in ("receiver", "buffer")}),
            )
    return table


def _transfers(link: LinkView, direction: str) -> str:
    """By class, as "0/2/1"."""
    return "/".join(_of(_number, link.get("transfers", direction=direction, **{"class": name})) for name in CLASSES)


def _held_back(shares: dict[str, float]) -> str:
    """The largest, as "receiver 40%"."""
    by, share = max(shares.items(), key=lambda item: -1.0 if math.isnan(item[1]) else item[1])
    return f"{by} {share:.0%}" if share >= 0.005 else "-"


def _of(show: Callable[[float], str], value: float) -> str:
    return "-" if math.isnan(value) else show(value)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _number(value: float) -> str:
    return f"{value:.0f}"
