"""kvwire-bench: what kvwire does between two hosts and on this one, and what would make it faster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kvwire import KvwireError, __version__
from kvwire.cli.doctor import command as doctor
from kvwire.cli.failure import Failure
from kvwire.cli.hosts import run, serve
from kvwire.cli.loopback import command as loopback
from kvwire.cli.models import command as models
from kvwire.cli.report import command as report
from kvwire.cli.streams import drop_output, mend

COMMANDS = (serve, run, loopback, models, doctor, report)
"""Each module has `add_command(subparsers)`, which sets the function to run as `command`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all well, 1 bytes were wrong, 2 it could not run, 130 interrupted."""
    mend()
    try:
        parser = argparse.ArgumentParser(prog="kvwire-bench", description=__doc__)
        parser.add_argument("--version", action="version", version=f"kvwire {__version__}")
        subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
        for module in COMMANDS:
            module.add_command(subparsers)
        chosen = parser.parse_args(arguments)
        status: int = chosen.command(chosen)
        sys.stdout.flush()
        return status
    except (Failure, KvwireError) as error:
        print(f"kvwire-bench: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        drop_output()
        if not isinstance(error, BrokenPipeError):  # then whoever read the output has seen enough
            print(f"kvwire-bench: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kvwire-bench: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
