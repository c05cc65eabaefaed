"""What a command leaves for machines: one JSON object on one line, which `kvwire-bench report` reads again."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

FORMAT = 1
"""Rises when a field changes its meaning; new fields do not change it."""
HELP = "print one JSON object on one line and nothing else"

Record = dict[str, Any]


def record(kind: str, machines: Mapping[str, Mapping[str, Any]], result: Mapping[str, Any]) -> Record:
    """`result` with what a reader of the file has to know besides: the command, when, and on which machines.

    `machines`: `machine.describe()` of each, by its part in the measurement ("here", "client", "server").
    """
    return {
        "kvwire_bench": FORMAT,
        "kind": kind,
        "command": shlex.join(["kvwire-bench", *sys.argv[1:]]),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machines": {part: dict(facts) for part, facts in machines.items()},
        **result,
    }


def show(found: Record) -> None:
    """Prints it, on one line."""
    print(json.dumps(found), flush=True)
