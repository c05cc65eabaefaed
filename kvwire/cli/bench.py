"""kvwire-bench: what kvwire does on this machine, beside something measured in the same run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from kvwire import KvwireError
from kvwire.cli import loopback
from kvwire.cli.failure import Failure

COMMANDS = (loopback,)
"""Each module has `add_command(subparsers)`, which sets the function to run as `command`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all well, 1 bytes were wrong, 2 it could not run, 130 interrupted."""
    try:
        parser = argparse.ArgumentParser(prog="kvwire-bench", description=__doc__)
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
    except BrokenPipeError:
        # Whoever read the output has seen enough; nothing must be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except KeyboardInterrupt:
        print("kvwire-bench: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
