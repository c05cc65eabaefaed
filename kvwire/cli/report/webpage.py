"""The page of a report: one HTML file that needs nothing else, and the few things it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvwire.cli.report import charts
from kvwire.cli.report.markup import Markup, element, join

START = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="kvwire-bench report">'
)
"""How every report begins, which tells it from other files."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Even if hostile words got through as markup, the browser would run and load nothing."""

LEVELS = ("fault", "warning", "note", "ok")
"""The gravest first."""

STYLE = """
:root { --ground:#fff; --card:#f7f8fa; --ink:#1a1d21; --faint:#5b6470; --rule:#e1e5ea; --link:#005a9c;
  --ok:#00714f; --note:#005a9c; --warning:#8a5a00; --fault:#b3261e; color-scheme:light; }
@media screen and (prefers-color-scheme: dark) { :root { --ground:#14171b; --card:#1b1f25; --ink:#e8ebef;
  --faint:#9aa4b1; --rule:#2c323a; --link:#7cc0f0; --ok:#4fd1a5; --note:#7cc0f0; --warning:#f0b54a; --fault:#ff8a80;
  color-scheme:dark; } }
* { box-sizing:border-box; }
body { margin:0 auto; max-width:72rem; padding:2rem 1.25rem 4rem; background:var(--ground); color:var(--ink);
  font:16px/1.5 system-ui,sans-serif; font-variant-numeric:tabular-nums; overflow-wrap:anywhere; }
h1 { font-size:1.75rem; line-height:1.2; margin:0; letter-spacing:-.015em; text-wrap:balance; }
h2 { font-size:1.25rem; line-height:1.3; margin:0; letter-spacing:-.01em; }
h3 { font-size:1rem; margin:0 0 .4rem; }
p { margin:.25rem 0; }
a { color:var(--link); text-underline-offset:.15em; }
section { margin-top:2.5rem; padding-top:1.5rem; border-top:1px solid var(--rule); }
.faint { color:var(--faint); font-size:.875rem; }
.heading { display:flex; flex-wrap:wrap; gap:.25rem .75rem; align-items:center; }
.badge { border:1px solid; border-radius:1rem; padding:0 .6rem; font-size:.8125rem; font-weight:600;
  white-space:nowrap; }
.ok { color:var(--ok); } .note { color:var(--note); } .warning { color:var(--warning); } .fault { color:var(--fault); }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr)); gap:.75rem; margin:1.25rem 0; }
.figures>div { background:var(--card); border-radius:.6rem; padding:.8rem 1rem; break-inside:avoid; }
.figures strong { display:block; font-size:1.6rem; font-weight:650; line-height:1.25; letter-spacing:-.02em; }
.figures small { color:var(--faint); font-size:.875rem; }
.beside { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr)); gap:2rem 2.5rem;
  margin:1.5rem 0; }
.beside>dl:nth-child(odd) { grid-column:1/-1; }
.beside>*,.below>* { min-width:0; }
.beside:empty,.below:empty { display:none; }
.summary { gap:1rem 2.5rem; }
.below { display:grid; gap:1.75rem; margin:1.5rem 0; }
dl { display:grid; grid-template-columns:repeat(auto-fill,minmax(10rem,1fr)); gap:.75rem 1.25rem; margin:0;
  align-content:start; }
dt { color:var(--faint); font-size:.8125rem; } dd { margin:0; font-size:.9375rem; }
ul { margin:0; padding-left:1.25rem; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; font-size:.875rem; overflow-wrap:normal; }
.below>div>.scroll>table { min-width:60%; }
th,td { text-align:left; vertical-align:top; padding:.35rem 1.25rem .35rem 0; border-bottom:1px solid var(--rule); }
td { overflow-wrap:break-word; }
thead th { color:var(--faint); font-weight:500; white-space:nowrap; }
tbody th { font-weight:500; white-space:nowrap; }
.number { text-align:right; white-space:nowrap; }
pre { background:var(--card); border-radius:.6rem; padding:.8rem 1rem; margin:.5rem 0;
  font:.8125rem/1.6 ui-monospace,monospace; white-space:pre-wrap; }
summary { cursor:pointer; font-weight:600; }
@media print { body { font-size:11pt; padding:0; max-width:none; } .figures>div,pre { border:1px solid var(--rule); }
  h2,h3 { break-after:avoid; } tr { break-inside:avoid; } }
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number to be seen first, and what it is."""

    value: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of `LEVELS`, and the word for it."""

    level: str
    words: str


def badge(verdict: Verdict) -> Markup:
    return element("span", verdict.words, class_=f"badge {verdict.level}")


def figures(shown: Sequence[Figure]) -> Markup:
    return element(
        "div",
        *(element("div", element("strong", one.value), element("small", one.meaning)) for one in shown),
        class_="figures",
    )


def beside(shown: Sequence[Markup]) -> Markup:
    """Beside each other, where there is room; terms that would be alone in a row take all of it."""
    return element("div", *shown, class_="beside")


def below(shown: Sequence[Markup]) -> Markup:
    """One below the other."""
    return element("div", *shown, class_="below")


def terms(shown: Sequence[tuple[str, str]]) -> Markup:
    """Names and what they are, in as many columns as there is room for."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in shown))


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> Markup:
    """The first cell of a row is its name. `numbers`: the others are numbers, aligned on the right."""
    class_ = "number" if numbers else "words"
    names = (element("th", name, scope="col", class_=class_ if place else "words") for place, name in enumerate(head))
    body = (
        element("tr", element("th", row[0], scope="row"), *(element("td", cell, class_=class_) for cell in row[1:]))
        for row in rows
    )
    made = element("table", *([element("thead", element("tr", *names))] if head else []), element("tbody", *body))
    return element(
        "div",
        *([element("h3", title)] if title else []),
        element("div", made, class_="scroll", tabindex=0),
    )


def folded(title: str, *inside: Markup) -> Markup:
    """Closed until it is wanted."""
    return element("details", element("summary", title), below(inside))


def page(title: str, body: Sequence[Markup]) -> str:
    """The whole file."""
    head = (
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("link", rel="icon", href="data:,"),  # or a browser asks the server for one
        element("title", title),
        element("style", Markup(STYLE + charts.STYLE)),
    )
    return f"{START}{join(head)}</head>\n{element('body', element('main', *body))}</html>\n"
