"""HTML and SVG as values: text is escaped where it enters them, so that nobody has to remember to."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = {"link", "meta"}
"""Elements that have no end tag."""


class Markup(str):
    """Text that is HTML already. Any other `str` is escaped where it meets an element."""

    __slots__ = ()


def text(words: str) -> Markup:
    """Escaped words; `Markup` as it stands. Control characters, half surrogates and marks that turn the direction of
    reading show as U+FFFD: records may come from anywhere."""
    if isinstance(words, Markup):
        return words
    if not words.isprintable():
        words = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in words)
    return Markup(escape(words))


def join(parts: Iterable[str]) -> Markup:
    return Markup("".join(map(text, parts)))


def element(name: str, *children: str, **attributes: str | float) -> Markup:
    """`element("text", "5 < 6", text_anchor="end", class_="tick")`. Numbers are coordinates, to a tenth;
    empty attributes are left out."""
    written = ""
    for key, value in attributes.items():
        if value == "":
            continue
        shown = text(value) if isinstance(value, str) else f"{round(value, 1):g}"
        written += f' {key.rstrip("_").replace("_", "-")}="{shown}"'
    return Markup(f"<{name}{written}>" + ("" if name in VOID else f"{join(children)}</{name}>"))
