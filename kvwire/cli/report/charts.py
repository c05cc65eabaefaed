"""Charts as inline SVG: no script, no file, no font from elsewhere. Pure functions of what they show.

A chart is a `<figure>` with its title; marks say their values on hover, and a reader of screens gets them as text.
Colours are CSS variables of `STYLE`, which the page includes once; they follow Okabe and Ito's palette for colour-blind
readers ("Color Universal Design", 2008), shifted until each has a contrast of 3:1 with the ground (WCAG 2.2, 1.4.11).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvwire.cli.report.markup import Markup, element

LIGHT = ("#0072b2", "#d55e00", "#00855f", "#b3558a", "#9a6a00", "#2f8fc4")
DARK = ("#56b4e9", "#f0803c", "#2cc295", "#d98cb8", "#e69f00", "#b9a6ff")
"""Colours of the series in turn, on a light and on a dark ground."""
DASHES = ("", "7 4", "2 3")
"""What tells series of one colour apart."""


def _variables(colors: Sequence[str]) -> str:
    return "".join(f"--chart-{index}:{color};" for index, color in enumerate(colors))


STYLE = f"""
:root {{ {_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
figure {{ margin: 0; min-width: 0; max-width: 36rem; break-inside: avoid; }}
figcaption {{ font-weight: 600; margin-bottom: .4rem; }}
svg {{ display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }}
svg text {{ fill: var(--ink); stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; paint-order: stroke; }}
svg .tick {{ fill: var(--faint); font-size: 11px; }}
svg .value {{ font-weight: 600; }}
svg .grid {{ stroke: var(--rule); }}
svg .line {{ fill: none; stroke-width: 2; stroke-linejoin: round; }}
svg .dot {{ fill: var(--ground); stroke: var(--ink); stroke-width: 1.2; fill-opacity: .8; }}
svg .unseen {{ fill-opacity: 0; }}
"""

WIDTH = 480
"""Of the viewBox. Text stays readable where a telephone shows it 350 pixels wide."""
CHARACTER, BOLD_CHARACTER = 6.4, 7.4
"""Mean width of one, at 12 pixels; SVG does not tell before it is drawn."""
LINE = 15
"""Least distance of two lines of text."""
BAR, DOT = 14, 3.5
MOST_POINTS = 60
"""Points of a series that are drawn; of more, a line remains, and they answer to the pointer only."""
MOST_DECADES = 12
TINY = 1e-30
"""Counts as zero, so that no division comes near what a float cannot hold."""
MOST_LABEL = 24
LEADER = 24
"""From the end of a line to its name."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What is measured, and how its values are shown. With `log_base` it is logarithmic, with ticks at powers of it,
    and has no place for zero; otherwise it is linear."""

    label: str = ""
    unit: str = ""
    show: Callable[[float], str] = "{:.4g}".format
    log_base: int | None = None

    def value(self, value: float) -> str:
        """With its unit."""
        return f"{self.show(value)} {self.unit}".rstrip()

    @property
    def caption(self) -> str:
        return ", ".join(filter(None, (self.label, self.unit)))


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar chart. `dots`: single measurements, drawn over it."""

    label: str
    value: float
    dots: Sequence[float] = ()
    series: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a line chart, through (x, y) in the order of x. With `until`, a value holds until the next x, and
    the last one until `until`: a stair, as means over intervals are."""

    name: str
    points: Sequence[tuple[float, float]]
    until: float | None = None

    @property
    def xs(self) -> list[float]:
        """Every x that the axis has to reach."""
        return [x for x, _ in self.points] + ([] if self.until is None else [self.until])

    def middles(self) -> list[float]:
        """Where the marks of the points go: of a stair, in the middle of each step."""
        if self.until is None:
            return self.xs
        return [(start + end) / 2 for start, end in pairwise(self.xs)]


@dataclass(frozen=True, slots=True)
class Scale:
    """Where values lie between two pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten around `low` to `high`, the ends outside or on them."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float, base: int, most: int = 8) -> list[float]:
    """Powers of `base` around `low` to `high`, each or every so many, the ends outside or on them."""
    first = math.floor(math.log(low, base) + 1e-9)
    last = max(math.ceil(math.log(high, base) - 1e-9), first + 1)
    stride = math.ceil((last - first) / most)
    return [float(base) ** exponent for exponent in range(first, last + stride, stride)]


def _scale(axis: Axis, values: Sequence[float], start: float, end: float, *, tight: bool) -> tuple[Scale, list[float]]:
    """The scale of these values and its ticks. A tight one ends with the values, another one with its ticks."""
    if axis.log_base is not None:
        positive = [value for value in values if value > TINY]
        high = max(positive, default=1.0)
        low = max(min(positive, default=high), high / 10.0**MOST_DECADES)
        ticks = log_ticks(low, high, axis.log_base)
    else:
        low, high = min(values, default=0.0), max(values, default=0.0)
        if high - low <= max(1e-9 * high, TINY):
            high = low + max(low, 1.0)
        ticks = linear_ticks(low, high)
    if not tight or low == high:
        low, high = ticks[0], ticks[-1]
    within = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return Scale(low, high, start, end, axis.log_base is not None), within


def _figure(title: str, said: str, height: float, marks: Sequence[Markup]) -> Markup:
    head = (element("title", title), element("desc", said))
    svg = element("svg", *head, *marks, viewBox=f"0 0 {WIDTH} {math.ceil(height)}", role="img", aria_label=title)
    return element("figure", element("figcaption", title), svg)


def _words(words: str, x: float, y: float, class_: str = "", anchor: str = "start", most: int = 80) -> Markup:
    """A line of text; what is cut of it shows on hover."""
    if len(words) <= most:
        return element("text", words, x=x, y=y, class_=class_, text_anchor=anchor)
    return element(
        "text", words[: most - 1] + "…", element("title", words), x=x, y=y, class_=class_, text_anchor=anchor
    )


def _color(series: int) -> str:
    return f"var(--chart-{series % len(LIGHT)})"


def _legend(names: Sequence[str]) -> Iterator[Markup]:
    x = 0.0
    for series, name in enumerate(names):
        yield element("rect", x=x, y=LINE - 10, width=10, height=10, rx=2, style=f"fill:{_color(series)}")
        yield _words(name, x + 15, LINE - 1)
        x += 15 + len(name) * CHARACTER + 18


def bars(title: str, rows: Sequence[Bar], axis: Axis, names: Sequence[str] = ()) -> Markup:
    """Horizontal bars from zero, each under its label and value. `axis` is linear; `names`: of the series, where their
    colours mean something."""
    top, step = (LINE + 8 if names else 2), LINE + BAR + 10
    bottom, end = top + len(rows) * step, WIDTH - DOT - 1
    scale, ticks = _scale(axis, [0, *(value for row in rows for value in (row.value, *row.dots))], 0, end, tight=True)

    marks = list(_legend(names))
    for tick in ticks:
        x, words = scale(tick), axis.value(tick) if tick == ticks[-1] else axis.show(tick)
        half = len(words) * CHARACTER / 2
        anchor = "start" if x < half else "end" if x > WIDTH - half else "middle"
        marks.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        marks.append(_words(words, x, bottom + LINE, "tick", anchor))
    for number, row in enumerate(rows):
        y, value = top + number * step + LINE, axis.value(row.value)
        marks.append(_words(row.label, 0, y - 3, most=int((end - len(value) * BOLD_CHARACTER) / CHARACTER) - 1))
        marks.append(_words(value, end, y - 3, "value", "end"))
        said = element("title", f"{row.label}: {value}")
        style, width = f"fill:{_color(row.series)}", max(scale(row.value), 1.0)
        marks.append(element("rect", said, x=0, y=y + 1, width=width, height=BAR, rx=2, class_="bar", style=style))
        for dot in row.dots:
            said = element("title", f"{row.label}, one of {len(row.dots)}: {axis.value(dot)}")
            marks.append(element("circle", said, cx=scale(dot), cy=y + 1 + BAR / 2, r=DOT, class_="dot"))
    values = "; ".join(f"{row.label}: {axis.value(row.value)}" for row in rows)
    return _figure(title, values, bottom + LINE + 6, marks)


def lines(title: str, series: Sequence[Line], x_axis: Axis, y_axis: Axis) -> Markup:
    """Lines or stairs over a common x, each with its name at its end. A linear y begins at 0; a linear x where the
    points do. Lines without points are left out."""
    series = [line for line in series if line.points]
    xs = [x for line in series for x in line.xs]
    ys = [y for line in series for _, y in line.points]
    top, bottom = LINE + 10, LINE + 10 + max(210, len(series) * LINE)
    y_scale, y_ticks = _scale(y_axis, ys if y_axis.log_base else [0, *ys], bottom, top, tight=False)
    longest = max((min(len(line.name), MOST_LABEL) for line in series), default=0)
    left = max(len(y_axis.show(tick)) for tick in y_ticks) * CHARACTER + 8
    right = WIDTH - longest * CHARACTER - LEADER
    x_scale, x_ticks = _scale(x_axis, xs, left, right, tight=True)

    marks = [_words(y_axis.caption, 0, LINE - 4, "tick")]
    for tick in y_ticks:
        y = y_scale(tick)
        marks.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        marks.append(_words(y_axis.show(tick), left - 6, y + 4, "tick", "end"))
    marks += [_words(x_axis.show(tick), x_scale(tick), bottom + LINE + 3, "tick", "middle") for tick in x_ticks]
    marks.append(_words(x_axis.caption, (left + right) / 2, bottom + 2 * LINE + 4, "tick", "middle"))
    ends = [y_scale(line.points[-1][1]) for line in series]
    for number, (line, end_y, label_y) in enumerate(zip(series, ends, apart(ends, LINE, bottom), strict=True)):
        stroke = f"stroke:{_color(number)}"
        dash = DASHES[number // len(LIGHT) % len(DASHES)]
        path = _path(line, x_scale, y_scale)
        leader = f"M{right + 4:.1f} {end_y:.1f}L{right + LEADER - 6:.1f} {label_y:.1f}"
        marks.append(element("path", d=path, class_="line", style=stroke, stroke_dasharray=dash))
        marks.append(element("path", d=leader, class_="line", style=stroke, stroke_dasharray=dash))
        marks.append(_words(line.name, right + LEADER, label_y + 4, most=MOST_LABEL))
        seen = "point" if len(line.points) <= MOST_POINTS else "point unseen"
        for (x, y), place in zip(line.points, line.middles(), strict=True):
            said = element("title", f"{line.name}, {x_axis.value(x)}: {y_axis.value(y)}")
            style = f"fill:{_color(number)}"
            marks.append(element("circle", said, cx=x_scale(place), cy=y_scale(y), r=3, class_=seen, style=style))
    values = "; ".join(
        f"{line.name}: {y_axis.value(y)} at {x_axis.value(x)}" for line in series for x, y in line.points[-1:]
    )
    return _figure(title, values, bottom + 2 * LINE + 10, marks)


def _path(line: Line, x_scale: Scale, y_scale: Scale) -> str:
    (x, y), *others = line.points
    path = f"M{x_scale(x):.1f} {y_scale(y):.1f}"
    if line.until is None:
        return path + "".join(f"L{x_scale(x):.1f} {y_scale(y):.1f}" for x, y in others)
    return path + "".join(f"H{x_scale(x):.1f}V{y_scale(y):.1f}" for x, y in others) + f"H{x_scale(line.until):.1f}"


def apart(wanted: Sequence[float], gap: float, bottom: float) -> list[float]:
    """Places close to the wanted ones, in their order, `gap` or more from each other and none below `bottom`."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    places = list(wanted)
    for before, this in pairwise(order):
        places[this] = max(places[this], places[before] + gap)
    limit = bottom
    for this in reversed(order):
        places[this] = limit = min(places[this], limit)
        limit -= gap
    return places
