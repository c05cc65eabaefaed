"""Sections of what needs no link: `doctor`, `models` and `codecs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvwire.cli.report.charts import Axis, Line, lines
from kvwire.cli.report.fields import Fields
from kvwire.cli.report.markup import Markup
from kvwire.cli.report.section import TIMES, Kind, Section, show_fact, show_maybe, show_tokens
from kvwire.cli.report.webpage import LEVELS, Figure, Verdict, badge, folded, table
from kvwire.cli.units import GB, show_rate, show_size, show_time

TOKENS = Axis("tokens", show=show_tokens, log_base=2)
SIZE = Axis("KV cache", show=show_size, log_base=2)
USUAL_TOKENS = 32768
"""The length whose times are not folded, where it is among them."""

LINK = Axis("link", show=show_rate, log_base=10)
GAIN = Axis("gain")

COUNTED = {"fault": "faults", "warning": "warnings", "note": "notes", "ok": "all right"}


def doctor(record: Fields) -> Section:
    findings = [(found.choice("level", LEVELS), found) for found in record.objects("findings")]
    findings.sort(key=lambda pair: LEVELS.index(pair[0]))
    levels = [level for level, _ in findings]
    rows = [
        [
            found.text("area"),
            badge(Verdict(level, level)),
            found.text("found"),
            found.maybe_text("change"),
            found.maybe_text("gain"),
        ]
        for level, found in findings
    ]
    parts = [table("Findings", ("Area", "", "Found", "To change", "What it would give"), rows)]
    for name, title in (("path", "The path"), ("facts", "The host")):
        if record.has(name):
            leaves = [(key, show_fact(key, value)) for key, value in record.object(name).leaves()]
            parts.append(folded(title, table("", (), leaves)))
    gravest = levels[0] if levels else "ok"
    urgent = gravest in ("fault", "warning")
    return Section(
        "Doctor",
        Verdict(gravest, f"{levels.count(gravest)} {gravest}") if urgent else Verdict("ok", "all right"),
        [Figure(str(levels.count(level)), COUNTED[level]) for level in LEVELS],
        [],
        parts,
        [("", record.text("command"))],
    )


def models(record: Fields) -> Section:
    found = {model.text("name"): model for model in record.objects("models")}
    sizes = {name: numbers(model.object("bytes")) for name, model in found.items()}
    # The largest first, in tables as in the chart.
    sizes = dict(sorted(sizes.items(), key=lambda pair: -max(pair[1].values(), default=0)))
    found = {name: found[name] for name in sizes}
    lengths = sorted({length for by_length in sizes.values() for length in by_length})
    curves = [Line(name, list(by_length.items())) for name, by_length in sizes.items() if by_length]
    rows = [
        [name, *(show_maybe(by_length.get(length), show_size) for length in lengths)]
        for name, by_length in sizes.items()
    ]
    head = ("Model", *(f"{show_tokens(length)} tokens" for length in lengths))
    return Section(
        f"KV cache of {len(found)} models" if len(found) != 1 else f"KV cache of {next(iter(found))}",
        None,
        _outstanding(curves),
        [
            lines("KV cache by length", curves, TOKENS, SIZE),
            table("Size", head, rows, numbers=True),
        ],
        [
            *_times(found, lengths),
            folded("What the caches consist of", *_groups(found)),
        ],
        [("", record.text("command"))],
    )


def _outstanding(curves: Sequence[Line]) -> list[Figure]:
    """Of one model all sizes, of several the largest and the smallest. `curves`: the largest first."""
    if len(curves) == 1:
        return [Figure(show_size(size), f"at {show_tokens(length)} tokens") for length, size in curves[0].points]
    ends = [(curve.name, *curve.points[-1]) for curve in (*curves[:1], *curves[-1:])]
    return [Figure(show_size(size), f"{name} at {show_tokens(length)} tokens") for name, length, size in ends]


def _times(found: Mapping[str, Fields], lengths: Sequence[int]) -> list[Markup]:
    """A table for each length, that of the usual one open."""
    times = {
        name: {rate: numbers(model.object("seconds").object(key)) for rate, key in model.object("seconds").by_number()}
        for name, model in found.items()
    }
    rates = sorted({rate for by_rate in times.values() for rate in by_rate})
    head = ("Model", *(f"{rate} Gbit/s" for rate in rates))
    tables = {}
    for length in lengths:
        rows = [
            [name, *(show_maybe(by_rate.get(rate, {}).get(length), show_time) for rate in rates)]
            for name, by_rate in times.items()
        ]
        tables[length] = table(f"Time to move it at {show_tokens(length)} tokens", head, rows, numbers=True)
    usual = USUAL_TOKENS if USUAL_TOKENS in tables else max(tables, default=0)
    others = [shown for length, shown in tables.items() if length != usual]
    shown = [tables[usual]] if tables else []
    return [*shown, folded("Time to move it at other lengths", *others)] if others else shown


def _groups(found: Mapping[str, Fields]) -> list[Markup]:
    rows = [
        [
            name,
            group.text("name"),
            group.text("kind"),
            f"{group.number('layers'):g}",
            show_size(group.number("bytes_per_token")),
            show_size(group.number("fixed_bytes")),
            show_maybe(group.maybe_number("window"), show_tokens),
        ]
        for name, model in found.items()
        for group in model.objects("groups")
    ]
    sources = [[name, model.text("kind"), model.text("source")] for name, model in found.items()]
    head = ("Model", "Group", "Kind", "Layers", "Per token", "Fixed", "Window")
    return [table("", head, rows), table("", ("Model", "Kind", "Source"), sources)]


def codecs(record: Fields) -> Section:
    rows = record.objects("codecs")
    gains = [(codec.number("ratio"), codec.text("name")) for codec in rows if codec.flag("lossless")]
    best = sorted(gains, reverse=True)[:2]
    curves = [Line(codec.text("name"), list(numbers(codec.object("speed_up")).items())) for codec in rows]
    head = ("Codec", "Ratio", "Encode, GB/s", "Decode, GB/s", "Error", "Wins up to")
    cells = [
        [
            codec.text("name"),
            f"{codec.number('ratio'):.2f}",
            f"{codec.number('encode_bps') / 8 / GB:.2f}",
            show_maybe(codec.maybe_number("decode_bps"), lambda bps: f"{bps / 8 / GB:.2f}"),
            "none" if codec.flag("lossless") else show_maybe(codec.maybe_number("relative_error"), "{:.2g}".format),
            show_rate(codec.number("wins_below_bps")) if codec.number("wins_below_bps") else "never",
        ]
        for codec in rows
    ]
    left_out = [[name, record.object("left_out").text(name)] for name in record.object("left_out").names()]
    return Section(
        f"Codecs on {record.text('dtypes')}",
        None,
        [Figure(f"{ratio:.2f}{TIMES}", f"fewer bytes by {name}, nothing lost") for ratio, name in best],
        [lines("How many times faster a link is", curves, LINK, GAIN), table("On one core", head, cells, numbers=True)],
        [folded("Left out", table("", ("Codec", "Why"), left_out))] if left_out else [],
        [("", record.text("command"))],
    )


def numbers(fields: Fields) -> dict[int, float]:
    """Numbers by the integers that name them."""
    return {number: fields.number(name) for number, name in fields.by_number()}


DOCTOR = Kind(("diagnosis", "diagnoses"), doctor)
MODELS = Kind(("table of models", "tables of models"), models)
CODECS = Kind(("table of codecs", "tables of codecs"), codecs)
