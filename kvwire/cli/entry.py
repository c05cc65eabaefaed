"""How every command with subcommands begins and ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from kvwire import KvwireError, __version__
from kvwire.cli import machine
from kvwire.cli.arguments import Subparsers
from kvwire.cli.failure import Failure
from kvwire.cli.streams import drop_output, mend


class _Version(argparse.Action):
    """What seals is looked for when it is asked for, and not whenever a command begins."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"kvwire {__version__}\nAES-256-GCM by {machine.cipher() or 'nothing (kvwire --version says why)'}")
        parser.exit()


def run(
    prog: str,
    about: str | None,
    commands: Iterable[Callable[[Subparsers], None]],
    arguments: Sequence[str] | None,
) -> int:
    """Each of `commands` adds subcommands, and sets the function to run as `command`.

    Exit status: what the chosen subcommand returns, 2 where it could not run, 130 interrupted.
    """
    mend()
    try:
        parser = argparse.ArgumentParser(prog=prog, description=about)
        parser.add_argument("--version", action=_Version, nargs=0, help="version, and what seals")
        subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
        for add in commands:
            add(subparsers)
        chosen = parser.parse_args(arguments)
        status: int = chosen.command(chosen)
        sys.stdout.flush()
        return status
    except (Failure, KvwireError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        drop_output()
        if not isinstance(error, BrokenPipeError):  # then whoever read the output has seen enough
            print(f"{prog}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
