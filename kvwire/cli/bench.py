"""kvwire-bench: what kvwire does between two hosts and on this one, and what would make it faster."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kvwire.cli import entry
from kvwire.cli.codecs import command as codecs
from kvwire.cli.doctor import command as doctor
from kvwire.cli.hosts import run, serve
from kvwire.cli.loopback import command as loopback
from kvwire.cli.models import command as models
from kvwire.cli.report import command as report
from kvwire.cli.wan import command as wan

COMMANDS = tuple(module.add_command for module in (serve, run, loopback, wan, models, codecs, doctor, report))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all well, 1 bytes were wrong, 2 it could not run, 130 interrupted."""
    return entry.run("kvwire-bench", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
