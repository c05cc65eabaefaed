"""Sections of what was measured over emulated links: `wan`, one cell, and `wan-grid`, all of a grid's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kvwire.cli.report.charts import Axis, Bar, Line, bars, lines
from kvwire.cli.report.fields import Fields
from kvwire.cli.report.markup import Markup
from kvwire.cli.report.measured import GOODPUT_BITS, KVWIRE, MILLISECONDS, OTHER
from kvwire.cli.report.section import (
    RIGHT,
    TIMES,
    WRONG,
    Kind,
    Section,
    compressed,
    compression,
    damage_list,
    mode,
    show_maybe,
    show_number,
)
from kvwire.cli.report.webpage import Figure, table, terms
from kvwire.cli.units import show_rate, show_share, show_size, show_time

UTILISATION = Axis(unit="%", show=lambda share: show_number(100 * share))
SECONDS = Axis("seconds")

Parts = tuple[list[Figure], list[Markup]]


def _ratio(record: Fields, name: str, meaning: str) -> Figure:
    return Figure(f"{record.number(name):.2f} {TIMES}", meaning)


def _mine(record: Fields, label: str = "kvwire") -> Bar:
    return Bar(label, record.number("goodput_bps"), record.numbers("goodput_bps_runs"))


# --- each scenario's own ----------------------------------------------------------------------------------------------


def _transfer(record: Fields) -> Parts:
    figures, rows, waits = [], [_mine(record)], []
    if record.has("ratio_vs_iperf3"):
        figures.append(_ratio(record, "ratio_vs_iperf3", "of the best of iperf3"))
        rows += [
            Bar(f"iperf3 -P {flows.number('flows'):.0f}", flows.number("bps"), flows.numbers("bps_runs"), OTHER)
            for flows in record.objects("iperf3_flows")
        ]
    for name in compressed(record):
        figures.append(_ratio(record, f"ratio_vs_{name}", f"of the goodput with compression {name}"))
        rows.append(
            Bar(
                f"kvwire, compression {name}",
                record.number(f"{name}_bps"),
                record.numbers(f"{name}_bps_runs"),
                OTHER,
            )
        )
    if record.has("ratio_vs_ideal"):
        figures.append(_ratio(record, "ratio_vs_ideal", "of a round trip and the bytes at the link's rate"))
    if record.has("queue_p95_s"):
        figures.append(Figure(show_time(record.number("queue_p95_s")), "in the queue, 95 % of packets at most"))
        waits.append(Bar("kvwire", record.number("queue_p95_s")))
    if record.has("iperf3_queue_p95_s"):
        waits.append(Bar("iperf3", record.number("iperf3_queue_p95_s"), series=OTHER))
    charts = [bars("Goodput: the median, and each run", rows, GOODPUT_BITS)]
    if len(waits) > 1:
        charts.append(bars("Wait in the bottleneck's queue, 95 % of packets", waits, MILLISECONDS))
    return figures, charts


def _back(record: Fields) -> Figure:
    share = show_share(record.number("back_share"))
    return Figure(show_maybe(record.maybe_number("back_after_s"), show_time), f"until goodput was back at {share}")


def _over_time(record: Fields, offered: Sequence[tuple[float, float]]) -> Markup:
    intervals = record.objects("intervals")
    points = [(one.number("start_s"), one.number("goodput_bps")) for one in intervals]
    until = intervals[-1].number("end_s") if intervals else 0.0
    shown = [Line("kvwire", points, until)] + ([Line("the link", offered, until)] if offered else [])
    return lines("Goodput over time, the last run", shown, SECONDS, GOODPUT_BITS)


def _step(record: Fields) -> Parts:
    share = Figure(show_share(record.number("share_of_offered")), "of what the link offered over the run")
    offered = [(one.number("start_s"), one.number("bps")) for one in record.objects("offered")]
    return [share, _back(record)], [_over_time(record, offered)]


def _black_hole(record: Fields) -> Parts:
    payload, at_s = record.number("link_payload_bps"), record.number("hole_at_s")
    if record.choice("black_hole", ("lane", "all")) == "lane":
        offered = [(0.0, payload)]
    else:
        offered = [(0.0, payload), (at_s, 0.0), (at_s + record.number("hole_s"), payload)]
    during = Figure(show_rate(record.number("during_hole_bps")), "goodput meanwhile")
    return [_back(record), during], [_over_time(record, offered)]


def _urgent(record: Fields) -> Parts:
    rows = [
        Bar("idle link, median", record.number("urgent_idle_s"), series=OTHER),
        Bar("full link, median", record.number("urgent_p50_s")),
        Bar("full link, 99 % at most", record.number("urgent_p99_s")),
        Bar("full link, all at most", record.number("urgent_max_s")),
    ]
    size = show_size(record.number("urgent_bytes"))
    figures = [
        Figure(show_time(record.number("urgent_p99_s")), f"99 % of urgent transfers of {size} at most"),
        _ratio(record, "ratio_urgent_p99", "of their time over an idle link"),
    ]
    return figures, [bars(f"Urgent transfers of {size}", rows, MILLISECONDS)]


def _beside(record: Fields) -> Parts:
    flows = record.numbers("beside_bps_flows")
    rows = [_mine(record), *(Bar(f"TCP flow {at}", bps, series=OTHER) for at, bps in enumerate(flows, 1))]
    rows.append(Bar("a fair share", record.number("fair_share_bps"), series=OTHER + 1))
    fair = _ratio(record, "ratio_vs_fair_share", f"of a fair share, beside {record.text('beside')}")
    return [fair], [bars("Goodput of each", rows, GOODPUT_BITS), _over_time(record, [])]


def _model(record: Fields) -> Parts:
    rows = [
        Bar("from the grant to the receipt", record.number("total_s")),
        Bar("prefill, or the bytes at the link's rate", record.number("ideal_s"), series=OTHER),
    ]
    figures = [
        Figure(show_time(record.number("tail_s")), "tail, from the last layer to the receipt"),
        _ratio(record, "ratio_vs_ideal", "of the longer of prefill and the bytes at the link's rate"),
    ]
    return figures, [bars(f"{record.text('model')}, {record.number('tokens'):,.0f} tokens", rows, MILLISECONDS)]


SCENARIOS: Mapping[str, tuple[str, Callable[[Fields], Parts]]] = {
    "transfer": ("single transfers", _transfer),
    "step": ("a rate that steps", _step),
    "black_hole": ("a black hole", _black_hole),
    "urgent": ("urgent transfers", _urgent),
    "beside": ("beside plain TCP", _beside),
    "model": ("during prefill", _model),
}


# --- what all have ----------------------------------------------------------------------------------------------------


def _place(record: Fields) -> str:
    """Which link it was, in a few words."""
    words = [show_rate(record.number("rate_bps")), f"{show_time(record.number('rtt_s'))} RTT"]
    words += [f"{show_share(record.number('loss'))} loss"] * (not record.has("burst"))
    words += ["bursty loss"] * record.has("burst")
    return ", ".join([*words, record.text("congestion")])


def _settings(record: Fields) -> list[tuple[str, str]]:
    found = [
        ("Link", _place(record)),
        ("Its payload", show_rate(record.number("link_payload_bps"))),
        ("Its queue", show_size(record.number("queue_bytes"))),
        ("Jitter", show_time(record.number("jitter_s"))),
        ("Reordered", show_share(record.number("reorder"))),
        ("Emulator", record.text("emulator")),
        ("Runs", show_number(record.number("runs"))),
        ("Refused: the emulator was late", show_number(record.number("late_runs_refused"))),
        ("A transfer", show_size(record.number("transfer_bytes"))),
        ("Lanes", show_number(record.number("lanes"))),
        ("Controller", record.maybe_text("controller") or "none"),
        ("Socket buffers", record.text("buffers")),
        ("Mode", mode(record)),
        *compression(record),
    ]
    if record.has("retransmitted_share"):
        found.append(("Retransmitted", show_share(record.number("retransmitted_share"))))
    if record.has("iperf3"):
        found.append(("Compared with", record.text("iperf3")))
    return found


def wan(record: Fields) -> Section:
    name, parts = SCENARIOS[record.choice("scenario", SCENARIOS)]
    figures, charts = parts(record)
    goodput, share = record.number("goodput_bps"), show_share(record.number("utilisation"))
    return Section(
        f"Emulated link, {name}: {_place(record)}",
        RIGHT if record.flag("verified") else WRONG,
        [Figure(show_rate(goodput), f"goodput, {share} of what the link can carry"), *figures],
        [*charts, terms(_settings(record))],
        damage_list(record.texts("damage")),
        [("", record.text("command"))],
        [_mine(record, "")],
    )


def grid(record: Fields) -> Section:
    cells = record.objects("cells")
    rows, listed = [], []
    for cell in cells:
        rows.append(Bar(_cell(cell), cell.number("utilisation"), series=KVWIRE))
        if cell.has("iperf3_bps"):
            best = cell.number("iperf3_bps") / cell.number("link_payload_bps", low=1.0)
            rows.append(Bar("best iperf3", best, series=OTHER))
        listed.append(
            [
                _cell(cell),
                show_rate(cell.number("goodput_bps")),
                show_share(cell.number("utilisation")),
                show_maybe(cell.maybe_number("iperf3_bps"), show_rate),
                show_maybe(cell.maybe_number("ratio_vs_iperf3")),
                show_maybe(cell.maybe_number("retransmitted_share"), show_share),
                show_number(cell.number("lanes")),
            ]
        )
    missing = [f"{_cell(cell)} was not measured: {cell.text('why')}" for cell in record.objects("missing")]
    least = record.number("least_utilisation")
    size, rate = show_size(record.number("transfer_bytes")), show_rate(record.number("rate_bps"))
    head = ("Cell", "Goodput", "Of the link", "Best iperf3", "kvwire / iperf3", "Retransmitted", "Lanes")
    return Section(
        f"Grid of {len(cells)} emulated links of {rate}",
        RIGHT if record.flag("verified") else WRONG,
        [
            Figure(show_share(least), "of what the link can carry, in the cell that has least"),
            Figure(size, f"a transfer, medians of {record.number('runs'):.0f} runs"),
        ],
        [bars("Share of what the link can carry", rows, UTILISATION, ("kvwire", "the best of iperf3"))],
        [*damage_list([*record.texts("damage"), *missing]), table("Cells", head, listed, numbers=True)],
        [("", record.text("command"))],
    )


def _cell(cell: Fields) -> str:
    return f"{show_time(cell.number('rtt_s'))}, {show_share(cell.number('loss'))} loss, {cell.text('congestion')}"


WAN = Kind(
    ("emulated link", "emulated links"),
    wan,
    "Goodput of each measurement: the median, and each run",
    GOODPUT_BITS,
)
GRID = Kind(("grid of emulated links", "grids of emulated links"), grid)
