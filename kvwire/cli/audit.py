"""kvwire-audit: whether an audit log is what was written.

Every line of a log carries the hash of the one before. What was done to its last lines can only be seen by a hash that
was kept elsewhere: keep what `head` prints, and give it to `verify --head` later.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict

import kvwire
from kvwire.cli import entry
from kvwire.cli.arguments import Subparsers, parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 the log is whole, 1 it is not, 2 it could not be read, 130 interrupted."""
    return entry.run("kvwire-audit", __doc__, (add_commands,), arguments)


def add_commands(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("verify", help="whether any line was changed, removed, moved or inserted")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--head", type=parsed(_hash), metavar="HASH", help="one that was kept elsewhere must be in it")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    parser.set_defaults(command=_verify)

    parser = subparsers.add_parser("head", help="the hash of the last line, where all before it is whole")
    parser.add_argument("file", metavar="FILE")
    parser.set_defaults(command=_head, head=None)


def _hash(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"{text!r:.80}; expected 64 hex digits, as `kvwire-audit head` prints them")
    return text


def _report(options: argparse.Namespace) -> kvwire.AuditReport | None:
    """None, and a sentence, where the log is not what was written."""
    try:
        return kvwire.verify_audit(options.file, options.head)
    except kvwire.AuditError as error:
        print(f"kvwire-audit: {error}", file=sys.stderr)
        return None


def _verify(options: argparse.Namespace) -> int:
    report = _report(options)
    if report is None:
        return 1
    if options.json:
        print(json.dumps({"kvwire_audit": 1, **asdict(report)}))
        return 0
    print(f"{options.file}: {report.lines} lines, unbroken\nhead {report.head}")
    if report.after_head is not None:
        print(f"{report.after_head} lines after the one with the hash that was given")
    if not report.closed:
        print('it does not end with "closed": it is being written, its process was killed, or its end was cut off')
    return 0


def _head(options: argparse.Namespace) -> int:
    report = _report(options)
    if report is None:
        return 1
    print(report.head)
    return 0


if __name__ == "__main__":
    sys.exit(main())
