"""Sections of measurements: `loopback` and `run`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvwire.cli.arguments import DEFAULT_PORT
from kvwire.cli.report.charts import Axis, Bar, Line, bars, lines
from kvwire.cli.report.fields import Fields
from kvwire.cli.report.markup import Markup
from kvwire.cli.report.section import (
    RIGHT,
    TIMES,
    WRONG,
    Kind,
    Section,
    coded,
    compressed,
    compression,
    damage_list,
    mode,
    show_maybe,
    show_number,
)
from kvwire.cli.report.webpage import Figure, Verdict, table, terms
from kvwire.cli.units import show_bytes, show_rate, show_size, show_time

GOODPUT = Axis(unit="GB/s", show=show_number)
GOODPUT_BITS = Axis(unit="Gbit/s", show=lambda bps: show_number(bps / 1e9))
MILLISECONDS = Axis(unit="ms", show=lambda seconds: show_number(seconds * 1e3))

KVWIRE, OTHER, BUSY, CONTROL = range(4)
"""Colours of what is compared."""

DIRECTIONS = {"up": "client to server", "down": "server to client"}
MOST_STEPS = 300
"""Of a line over time; intervals of a longer run are shown together."""


def _settings(record: Fields) -> list[tuple[str, str]]:
    """What both kinds were told."""
    model = [("Model", f"{record.text('model')}, {record.number('tokens'):,.0f} tokens")] if record.has("model") else []
    order = ", in random order" if record.has("scatter") and record.flag("scatter") else ""
    return [
        *model,
        ("A transfer", show_size(record.number("transfer_bytes"))),
        ("Pages", show_size(record.number("page_bytes")) + order),
        ("Lanes", show_number(record.number("lanes"))),
        ("Mode", mode(record)),
        *compression(record),
        ("Congestion control", record.text("congestion")),
    ]


def loopback(record: Fields) -> Section:
    goodput, runs = record.number("goodput_GBps"), record.numbers("goodput_GBps_runs")
    mine = Bar("kvwire", goodput, runs)
    figures = [Figure(f"{show_number(goodput)} GB/s", f"goodput, median of {len(runs)} runs")]
    beside: list[Bar] = []
    charts: list[Markup] = []
    if record.has("ratio_vs_iperf3"):
        figures.append(_ratio(record, "ratio_vs_iperf3", "of the best of iperf3"))
        named = ((name.removeprefix("iperf3_P").removesuffix("_GBps"), name) for name in record.names())
        beside += [
            Bar(f"iperf3 -P {streams}", record.number(name), series=OTHER)
            for streams, name in named
            if name == f"iperf3_P{streams}_GBps"
        ]
    if record.has("ratio_vs_plain"):
        figures.append(_ratio(record, "ratio_vs_plain", "of the goodput of a plain link"))
        beside.append(Bar("kvwire, plain", record.number("plain_GBps"), series=OTHER))
    for name in compressed(record):
        figures.append(_ratio(record, f"ratio_vs_{name}", f"of the goodput with compression {name}"))
        beside.append(Bar(f"kvwire, compression {name}", record.number(f"{name}_GBps"), series=OTHER))
    if record.has("ratio_vs_page"):
        other = show_size(record.number("other_page_bytes"))
        figures.append(_ratio(record, "ratio_vs_page", f"of the goodput with pages of {other}"))
        beside.append(Bar(f"kvwire, pages of {other}", record.number("other_page_GBps"), series=OTHER))
    if record.has("ratio_busy"):
        figures.append(_ratio(record, "ratio_busy", "of the goodput beside the same loops in processes of their own"))
        beside.append(Bar("a Python loop in both processes", record.number("goodput_busy_GBps"), series=BUSY))
        beside.append(Bar("the loops in processes of their own", record.number("goodput_control_GBps"), series=CONTROL))
        charts.append(_busy_tails(record))
    if record.has("ratio_tail"):
        share = record.number("ratio_tail")
        figures.append(Figure(show_time(record.number("tail_s")), f"tail, {share:.0%} of what is allowed"))
        charts.append(_streamed_tail(record))
    figures.append(Figure(f"{show_number(record.number('cpu_s_per_GB'))} s", "CPU time per GB, both ends together"))
    settings = [
        ("Bytes a run", show_size(record.number("bytes"))),
        *_settings(record),
        ("Segments", show_number(record.number("segments"))),
        ("Entries of the GIL", show_number(record.number("gil_entries"))),
    ]
    if beside and record.has("iperf3"):
        settings.append(("Compared with", record.text("iperf3")))
    moved = record.text("model") if record.has("model") else show_size(record.number("bytes"))
    goodputs = bars("Goodput: the median, and each run", [mine, *beside], GOODPUT)
    return Section(
        f"Loopback: {moved} over {show_number(record.number('lanes'))} lanes",
        RIGHT if record.flag("verified") else WRONG,
        figures,
        [goodputs, *charts, terms(settings)],
        damage_list(record.texts("damage")),
        [("", record.text("command"))],
        [mine],
    )


def _ratio(record: Fields, name: str, meaning: str) -> Figure:
    return Figure(f"{record.number(name):.2f} {TIMES}", meaning)


def _busy_tails(record: Fields) -> Markup:
    states = {"idle": KVWIRE, "busy": BUSY, "control": CONTROL}
    labels = ("an idle host", "a Python loop in both processes", "the loops in processes of their own")
    rows = [
        Bar(label, record.number(f"tail_{state}_s"), series=series)
        for label, (state, series) in zip(labels, states.items(), strict=True)
    ]
    return bars("Tail: from the last layer ready to the receipt", rows, MILLISECONDS)


def _streamed_tail(record: Fields) -> Markup:
    allowed = f"allowed: 1.2 {TIMES} the last layer's {show_time(record.number('last_layer_s'))}, and 5 ms"
    rows = [
        Bar("kvwire", record.number("tail_s"), record.numbers("tail_s_runs")),
        Bar(allowed, record.number("tail_allowed_s"), series=OTHER),
    ]
    return bars(f"Tail after a prefill of {show_time(record.number('prefill_s'))}", rows, MILLISECONDS)


def run(record: Fields) -> Section:
    flows = record.objects("flows")
    directions = [flow.choice("direction", DIRECTIONS) for flow in flows]
    goodputs_bps = [flow.number("goodput_bps") for flow in flows]
    figures = [
        Figure(show_rate(bps), f"goodput, {DIRECTIONS[direction]}")
        for direction, bps in zip(directions, goodputs_bps, strict=True)
    ]
    figures += [
        Figure(show_time(flow.number("tail_s")), f"tail of a transfer, {DIRECTIONS[direction]}")
        for direction, flow in zip(directions, flows, strict=True)
        if flow.has("tail_s")
    ]
    figures.append(Figure(show_maybe(record.maybe_number("rtt_s"), show_time), "round-trip time"))
    over_time = [
        _over_time(DIRECTIONS[direction], flow.objects("intervals"))
        for direction, flow in zip(directions, flows, strict=True)
        if flow.objects("intervals")
    ]
    chart = [lines("Goodput over time", over_time, Axis("seconds"), GOODPUT_BITS)] if over_time else []
    host, port = record.text("host"), f"{record.number('port'):.0f}"
    settings = [
        ("Server", f"{host}, port {port}"),
        ("Measured for", show_time(record.number("seconds"))),
        *_settings(record),
    ]
    ended = Verdict("warning", "interrupted") if record.flag("interrupted") else Verdict("ok", "verified")
    serve = "kvwire-bench serve" + (f" -p {port}" if port != str(DEFAULT_PORT) else "")
    damage = [sentence for flow in flows for sentence in flow.texts("damage")]
    return Section(
        f"Run: {host} over {show_number(record.number('lanes'))} lanes",
        ended if record.flag("verified") else WRONG,
        figures,
        [*chart, terms(settings)],
        [*damage_list(damage), _flows(directions, flows)],
        [("on the server", serve), ("on the client", record.text("command"))],
        [
            Bar("", bps, series=list(DIRECTIONS).index(direction))
            for direction, bps in zip(directions, goodputs_bps, strict=True)
        ],
    )


def _flows(directions: Sequence[str], flows: Sequence[Fields]) -> Markup:
    rows = [
        [
            DIRECTIONS[direction],
            show_rate(flow.number("goodput_bps")),
            show_bytes(flow.number("bytes")),
            show_time(flow.number("seconds")),
            show_number(flow.number("transfers")),
            show_number(flow.number("aborted")),
            show_number(flow.number("checked")),
            show_maybe(flow.maybe_number("tail_s"), show_time),
            coded(flow),
            show_maybe(flow.maybe_number("sender_cpu_s_per_GB")),
            show_maybe(flow.maybe_number("receiver_cpu_s_per_GB")),
        ]
        for direction, flow in zip(directions, flows, strict=True)
    ]
    head = ("", "Goodput", "Moved", "In", "Transfers", "Aborted", "Checked", "Tail", "Went coded")
    return table("Directions", (*head, "Sender CPU s/GB", "Receiver CPU s/GB"), rows, numbers=True)


def _over_time(name: str, intervals: Sequence[Fields]) -> Line:
    """Goodput of each interval, or of as many together as leave `MOST_STEPS`."""
    together = math.ceil(len(intervals) / MOST_STEPS)
    points = []
    for at in range(0, len(intervals), together):
        part = intervals[at : at + together]
        lengths_s = [max(0.0, one.number("end_s") - one.number("start_s")) for one in part]
        bits = sum(one.number("goodput_bps") * length_s for one, length_s in zip(part, lengths_s, strict=True))
        points.append((part[0].number("start_s"), bits / sum(lengths_s) if sum(lengths_s) else 0.0))
    return Line(name, points, until=intervals[-1].number("end_s"))


LOOPBACK = Kind(
    ("loopback measurement", "loopback measurements"),
    loopback,
    "Goodput of each measurement: the median, and each run",
    GOODPUT,
)
RUN = Kind(
    ("measurement between hosts", "measurements between hosts"),
    run,
    "Goodput of each measurement",
    GOODPUT_BITS,
    tuple(DIRECTIONS.values()),
)
