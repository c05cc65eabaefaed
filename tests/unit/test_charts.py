"""Charts: marks lie where their values are, whatever the values; read as a browser would, from the SVG."""

import re
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire.cli.report.charts import BAR, DARK, DASHES, LIGHT, LINE, WIDTH, Axis, Bar, Line, apart, bars, lines
from kvwire.cli.report.charts import linear_ticks as linear
from kvwire.cli.report.charts import log_ticks as log
from kvwire.cli.report.markup import Markup
from kvwire.cli.report.webpage import STYLE

SECONDS = Axis("time", "s")
RATE = Axis(unit="GB/s")


def svg_of(figure: Markup) -> ElementTree.Element:
    svg = ElementTree.fromstring(figure).find("svg")
    assert svg is not None
    return svg


def numbers(elements: Sequence[ElementTree.Element], name: str) -> list[float]:
    return [float(element.attrib[name]) for element in elements]


def marks(figure: Markup, tag: str, class_: str) -> list[ElementTree.Element]:
    return [element for element in svg_of(figure).iter(tag) if class_ in element.get("class", "").split()]


def titles(elements: Sequence[ElementTree.Element]) -> list[str]:
    return [element.findtext("title", "") for element in elements]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 9.4, [0, 2, 4, 6, 8, 10]),
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 0.25, [0, 0.05, 0.1, 0.15, 0.2, 0.25]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 5.9e9, [0, 1e9, 2e9, 3e9, 4e9, 5e9, 6e9]),
        (3, 61, [0, 10, 20, 30, 40, 50, 60, 70]),
    ],
)
def test_linear_ticks_are_round_and_enclose_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert linear(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "base", "ticks"),
    [
        (1024, 131072, 2, [2**n for n in range(10, 18)]),
        (1000, 1000, 10, [1000, 10000]),
        (2e-6, 0.03, 10, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]),
        (1, 1 << 20, 2, [2**n for n in (0, 3, 6, 9, 12, 15, 18, 21)]),
    ],
)
def test_log_ticks_are_powers_and_enclose_the_values(low: float, high: float, base: int, ticks: list[float]) -> None:
    assert log(low, high, base) == pytest.approx(ticks)


def test_bars_are_as_long_as_their_values() -> None:
    chart = bars("Goodput", [Bar("a", 4.0, dots=(3.0, 5.0)), Bar("b", 2.0, series=1), Bar("c", 0)], RATE)
    widths = numbers(marks(chart, "rect", "bar"), "width")
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    assert widths[2] == 1.0  # nothing is still a mark to point at
    grid = numbers(marks(chart, "line", "grid"), "x1")
    assert widths[:2] == pytest.approx([grid[4], grid[2]], abs=0.2)
    dots = numbers(marks(chart, "circle", "dot"), "cx")
    assert dots == pytest.approx([widths[0] * 3 / 4, widths[0] * 5 / 4], abs=0.2)
    assert titles(marks(chart, "rect", "bar")) == ["a: 4 GB/s", "b: 2 GB/s", "c: 0 GB/s"]
    assert titles(marks(chart, "circle", "dot")) == ["a, one of 2: 3 GB/s", "a, one of 2: 5 GB/s"]
    assert [mark.text for mark in marks(chart, "text", "tick")] == ["0", "1", "2", "3", "4", "5 GB/s"]


def test_a_legend_where_colours_mean_something() -> None:
    rows = [Bar("x", 1), Bar("x", 2, series=1)]
    words = [text.text for text in svg_of(bars("Goodput", rows, RATE, ("up", "down"))).iter("text")]
    assert words[:2] == ["up", "down"]
    assert "up" not in [text.text for text in svg_of(bars("Goodput", rows, RATE)).iter("text")]


def test_a_stair_holds_each_value_until_the_next() -> None:
    chart = lines("Goodput", [Line("up", [(0, 4), (1, 8), (2, 6)], until=4)], SECONDS, RATE)
    (path,) = (mark.attrib["d"] for mark in marks(chart, "path", "line") if "H" in mark.attrib["d"])
    found = re.fullmatch(r"M(\S+) (\S+)H(\S+)V(\S+)H(\S+)V(\S+)H(\S+)", path)
    assert found
    start, at_4, one, at_8, two, at_6, four = map(float, found.groups())
    assert [one - start, two - start] == pytest.approx([(four - start) / 4, (four - start) / 2], abs=0.2)
    assert at_6 == pytest.approx((at_4 + at_8) / 2, abs=0.2)
    assert at_8 < at_4  # y grows downwards
    assert numbers(marks(chart, "circle", "point"), "cx") == pytest.approx(
        [(start + one) / 2, (one + two) / 2, (two + four) / 2], abs=0.2
    )
    assert titles(marks(chart, "circle", "point"))[1] == "up, 1 s: 8 GB/s"


def test_on_a_log_axis_equal_ratios_are_equal_distances() -> None:
    axis = Axis(log_base=10)
    chart = lines("Loss", [Line("a", [(1, 1e-4), (10, 1e-3), (100, 1e-2), (1000, 0)])], axis, axis)
    xs, ys = (numbers(marks(chart, "circle", "point"), name) for name in ("cx", "cy"))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert ys[3] == ys[0]  # zero has no place; it lies at the lower end


def test_names_at_the_ends_do_not_overlap() -> None:
    assert apart([50, 52, 10, 51], 15, 100) == [50, 80, 10, 65]
    assert apart([99, 98], 15, 100) == [100, 85]  # none below the chart
    chart = lines("Sizes", [Line(f"model-{n}", [(0, 5), (1, 5 + n / 100)]) for n in range(30)], SECONDS, RATE)
    ys = sorted(float(t.attrib["y"]) for t in svg_of(chart).iter("text") if (t.text or "").startswith("model-"))
    assert min(after - before for before, after in pairwise(ys)) >= LINE - 0.2
    assert ys[0] > 0


def test_more_lines_than_colours_are_dashed() -> None:
    chart = lines("Sizes", [Line(str(n), [(0, n), (1, n)]) for n in range(len(LIGHT) * len(DASHES))], SECONDS, RATE)
    drawn = marks(chart, "path", "line")[::2]  # each is followed by its leader to the name
    looks = {(path.attrib["style"], path.get("stroke-dasharray")) for path in drawn}
    assert len(looks) == len(LIGHT) * len(DASHES)


def test_a_long_line_shows_no_points_but_answers_the_pointer() -> None:
    short, long = (lines("", [Line("up", [(x, 1) for x in range(n)])], SECONDS, RATE) for n in (60, 61))
    assert (len(marks(short, "circle", "point")), len(marks(short, "circle", "unseen"))) == (60, 0)
    assert len(marks(long, "circle", "unseen")) == 61


def test_a_reader_of_screens_gets_title_and_values() -> None:
    for chart in (
        bars("Goodput", [Bar("kvwire", 2.5)], RATE),
        lines("Goodput", [Line("kvwire", [(0, 1), (3, 2.5)])], SECONDS, RATE),
    ):
        svg = svg_of(chart)
        assert (svg.get("role"), svg.get("aria-label"), svg.findtext("title")) == ("img", "Goodput", "Goodput")
        assert (svg.findtext("desc") or "").startswith("kvwire: 2.5 GB/s")


def test_words_are_words_and_long_ones_are_cut() -> None:
    hostile = "</svg><script>alert('x')</script>\x00\ud800" + "m" * 200
    for chart in (
        bars(hostile, [Bar(hostile, 1)], Axis(hostile, hostile), (hostile,)),
        lines(hostile, [Line(hostile, [(0, 1)])], Axis(hostile, hostile), Axis(hostile, hostile)),
    ):
        tags = {element.tag for element in ElementTree.fromstring(chart).iter()}
        assert tags <= {"figure", "figcaption", "svg", "title", "desc", "text", "line", "path", "rect", "circle"}
    label = next(
        text for text in svg_of(bars("", [Bar("m" * 200, 1)], RATE)).iter("text") if text.find("title") is not None
    )
    assert (label.text or "").endswith("…")
    assert label.findtext("title") == "m" * 200


VALUES = st.one_of(st.floats(0, 1e18), st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1e18]))
AXES = st.builds(Axis, log_base=st.sampled_from([None, 2, 10]))


@given(st.lists(st.builds(Bar, st.text(max_size=5), VALUES, st.lists(VALUES, max_size=3)), max_size=4))
def test_any_bars_stay_in_the_frame(rows: list[Bar]) -> None:
    chart = svg_of(bars("", rows, RATE))
    height = float(chart.attrib["viewBox"].split()[3])
    for rect in chart.iter("rect"):
        assert 0 <= float(rect.attrib["width"]) <= WIDTH
        assert 0 <= float(rect.attrib["y"]) <= height - BAR
    assert all(0 <= cx <= WIDTH for cx in numbers(list(chart.iter("circle")), "cx"))


@given(st.lists(st.lists(st.tuples(VALUES, VALUES), max_size=4), max_size=3), st.booleans(), AXES, AXES)
def test_any_lines_stay_in_the_frame(points: list[list[tuple[float, float]]], stair: bool, x: Axis, y: Axis) -> None:
    series = [Line("line", sorted(some), until=max(some)[0] if stair and some else None) for some in points]
    chart = svg_of(lines("", series, x, y))
    height = float(chart.attrib["viewBox"].split()[3])
    circles = list(chart.iter("circle"))
    assert len(circles) == sum(map(len, points))
    assert all(0 <= cx <= WIDTH for cx in numbers(circles, "cx"))
    assert all(0 <= cy <= height for cy in numbers(circles, "cy"))


def luminance(color: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear_parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear_parts, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("theme", "series"), [(0, LIGHT), (1, DARK)], ids=["light", "dark"])
def test_colours_can_be_seen(theme: int, series: Sequence[str]) -> None:
    named = re.findall(r"--([a-z]+):(#[0-9a-f]+)", STYLE)
    colors = dict(named[: len(named) // 2] if theme == 0 else named[len(named) // 2 :])
    assert all(contrast(color, colors["ground"]) >= 3 for color in series)
    for name in ("ink", "faint", "link", "ok", "note", "warning", "fault"):
        for behind in ("ground", "card"):
            assert contrast(colors[name], colors[behind]) >= 4.5, name
