"""JSON from files that anybody may have written."""

from __future__ import annotations

import re

DEEPEST = 100
"""Nothing of ours, and no model's configuration, is nested more deeply."""

_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def check_depth(text: str) -> None:
    """ValueError where JSON is nested too deeply to be read: Python's reader has no bound but the stack, and whoever
    walks what it read may have less of that left.
    """
    depth = 0
    for mark in _MARKS.finditer(text):
        if mark[0] in "[{":
            depth += 1
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
        elif mark[0] in "]}":
            depth -= 1
