"""Rate, RTT and queue over time under each controller, at a modelled bottleneck, for docs/congestion.md.

PYTHONPATH=. python bench/controllers.py [--out docs/plots], from the root of the repository, as the model is the tests'
own. Virtual time and no randomness: it draws the same each time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from kvwire.cli.report.charts import DARK, LIGHT, linear_ticks
from kvwire.cli.report.markup import Markup, element
from kvwire.congestion import Budget, Controller, make_controller
from tests.unit.bottleneck import Bottleneck, Moment, Sender
from tests.unit.tcp_flows import Cubic

GBIT, RTT_S, SECONDS = 1e9, 0.04, 30.0
LANES = 16
WIDTH, PANEL, GAP, LEFT, RIGHT, TOP = 720, 120, 34, 56, 16, 52

STYLE = f"""
svg {{ font: 12px system-ui, sans-serif; --ink: #1b1f24; --faint: #59636e; --rule: #d1d9e0; --ground: #ffffff;
{"".join(f"--line-{n}: {color};" for n, color in enumerate(LIGHT))} }}
@media (prefers-color-scheme: dark) {{ svg {{ --ink: #e6edf3; --faint: #9198a1; --rule: #3d444d; --ground: #0d1117;
{"".join(f"--line-{n}: {color};" for n, color in enumerate(DARK))} }} }}
.ground {{ fill: var(--ground); }} text {{ fill: var(--ink); }} .tick {{ fill: var(--faint); font-size: 11px; }}
.title {{ font-weight: 600; font-size: 14px; }} .grid {{ stroke: var(--rule); }}
path {{ fill: none; stroke-width: 1.6; stroke-linejoin: round; }} .dashed {{ stroke-dasharray: 5 4; }}
"""


def path(ours: Controller, rates: Sequence[tuple[float, float]], others: Sequence[Sender] = ()) -> Bottleneck:
    sender = Sender([Cubic() for _ in range(LANES)], ours)
    return Bottleneck([sender, *others], rates, rtt_s=RTT_S, queue_bytes=GBIT * RTT_S / 8)


def alone(name: str) -> list[Moment]:
    return path(make_controller(name), STEPS).run(SECONDS).trace


def budgeted() -> list[Moment]:
    controller = make_controller("budget")
    link = path(controller, ((0.0, GBIT),))
    for at, budget in BUDGETS:
        link.run(at - link.now)
        controller.on_budget(at, budget)
    return link.run(SECONDS - link.now).trace


def beside_cubic() -> list[Moment]:
    others = [Sender([Cubic()], starts=5.0, ends=45.0), Sender([Cubic()], starts=6.0, ends=45.0)]
    return path(make_controller("delay"), ((0.0, GBIT),), others).run(2 * SECONDS).trace


STEPS = ((0.0, GBIT), (10.0, 0.2 * GBIT), (20.0, GBIT))
BUDGETS = (
    (5.0, Budget(max_bps=6e8, min_bps=1e8, lease_s=20.0)),
    (10.0, Budget(max_bps=3e8, min_bps=1e8, lease_s=8.0)),
    (24.0, Budget(max_bps=8e8, min_bps=1e8, lease_s=20.0)),
)
SCENES: dict[str, tuple[str, Callable[[], list[Moment]]]] = {
    "none": ("none", lambda: alone("none")),
    "fixed": ("fixed, 500 Mbit/s", lambda: alone("fixed:pace_bps=500e6")),
    "aimd": ("aimd", lambda: alone("aimd")),
    "delay": ("delay", lambda: alone("delay")),
    "budget": ("budget: 600; from 10 s 300, the lease ends at 18 s, floor 100; from 24 s 800 Mbit/s", budgeted),
    "delay-beside-cubic": ("delay, beside two CUBIC flows from 5 s to 45 s", beside_cubic),
}


def panel(
    top: float, caption: str, seconds: float, series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]]
) -> list[Markup]:
    """One set of axes: (name, class, points) each, names in the corner."""
    bottom, end = top + PANEL, WIDTH - RIGHT
    ticks = linear_ticks(0.0, max((y for *_, points in series for _, y in points), default=1.0) or 1.0, 4)
    marks = [element("text", caption, x=LEFT, y=top - 8)]
    for tick in ticks:
        y = bottom - tick / ticks[-1] * PANEL
        marks.append(element("line", x1=LEFT, x2=end, y1=y, y2=y, class_="grid"))
        marks.append(element("text", f"{tick:.4g}", x=LEFT - 6, y=y + 4, class_="tick", text_anchor="end"))
    for second in range(0, round(seconds) + 1, 5):
        x = LEFT + second / seconds * (end - LEFT)
        marks.append(element("text", str(second), x=x, y=bottom + 14, class_="tick", text_anchor="middle"))
    x = end
    for number, (name, class_, points) in reversed(list(enumerate(series))):
        stroke = f"stroke:var(--line-{number})"
        places = (f"{LEFT + at / seconds * (end - LEFT):.1f} {bottom - y / ticks[-1] * PANEL:.1f}" for at, y in points)
        marks.append(element("path", d="M" + "L".join(places), class_=class_, style=stroke))
        if len(series) > 1:
            marks.append(element("text", name, x=x, y=top - 8, text_anchor="end", style=f"fill:var(--line-{number})"))
            x -= 7 * len(name) + 16
    return marks


def drawn(title: str, trace: Sequence[Moment]) -> str:
    """Three panels over one time: rates, RTT, queue."""
    seconds = trace[-1].now
    every = trace[4::5]  # means over 100 ms
    means = [trace[start : start + 5] for start in range(0, len(trace), 5)]
    rates = [
        (name, "line", [(m[-1].now, sum(x.rates_bps[sender] for x in m) / len(m) / 1e6) for m in means])
        for sender, name in zip(range(len(trace[0].rates_bps)), ("goodput", "CUBIC 1", "CUBIC 2"), strict=False)
    ]
    caps = [(m.now, min(m.paces_bps[0], 1.6 * GBIT) / 1e6) for m in every if m.paces_bps[0] is not None]
    link = ("link", "dashed", [(m.now, m.link_bps / 1e6) for m in every])
    series = [rates[0], *([("cap", "line", caps)] if caps and len(rates) == 1 else []), *rates[1:], link]
    rtts = [(m.now, m.rtt_s * 1e3) for m in every]
    queues = [(m.now, m.queue_s * 1e3) for m in every]
    tops = [TOP + number * (PANEL + GAP + 10) for number in range(3)]
    marks = [
        *panel(tops[0], "rate, Mbit/s", seconds, series),
        *panel(tops[1], "smoothed RTT, ms", seconds, [("RTT", "line", rtts)]),
        *panel(tops[2], "queue at the bottleneck, ms", seconds, [("queue", "line", queues)]),
    ]
    height = tops[-1] + PANEL + 40
    caption = element("text", "time, s", x=(LEFT + WIDTH) / 2, y=height - 6, class_="tick", text_anchor="middle")
    ground = element("rect", x=0, y=0, width=WIDTH, height=height, class_="ground")
    head = element("text", title, x=LEFT, y=20, class_="title")
    box = f"0 0 {WIDTH} {height:g}"
    svg = element(
        "svg", element("title", title), element("style", STYLE), ground, head, *marks, caption,
        xmlns="http://www.w3.org/2000/svg", viewBox=box, width=WIDTH, height=height, role="img",
    )  # fmt: skip
    return str(svg) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/plots"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, (title, run) in SCENES.items():
        trace = run()
        (out / f"{name}.svg").write_text(drawn(title, trace))
        waits = sorted(moment.queue_s for moment in trace if moment.now > 2)
        share = sum(m.rates_bps[0] for m in trace if m.now > 2) / sum(m.link_bps for m in trace if m.now > 2)
        print(f"{name}: {share:.2f} of the link, queue p50 {waits[len(waits) // 2] * 1e3:.1f} ms", end="")
        print(f", p95 {waits[int(0.95 * len(waits))] * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
