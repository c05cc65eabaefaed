"""kvwire: says what is installed. What it does is measured by kvwire-bench."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

import kvwire
from kvwire._ext import build_info, crc32c, libcrypto
from kvwire.cli import machine

EPILOG = "kvwire-bench measures what this host, and a pair of hosts, can do; kvwire-bench --help names its commands."


def _libcrypto() -> dict[str, str]:
    """The libcrypto that would be used; {"error": a sentence} where KVWIRE_LIBCRYPTO names none; {} without any."""
    try:
        found = libcrypto.find()
    except kvwire.ConfigError as error:
        return {"error": str(error)}
    return {} if found is None else {"version": found.version, "found_as": found.found_as, "path": found.path}


def describe() -> dict[str, Any]:
    """What is installed here, and how it was built."""
    return {
        "kvwire": kvwire.__version__,
        "wire_version": kvwire.WIRE_VERSION,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "build": dict(build_info.facts()),
        "crc32c": {"selected": crc32c.selected(), "runs_here": list(crc32c.implementations())},
        "libcrypto": _libcrypto(),
        "cipher": machine.cipher(),
    }


def show(facts: dict[str, Any]) -> str:
    """`describe()` for people; the first line is name and version alone."""
    build, crc, crypto = facts["build"], facts["crc32c"], facts["libcrypto"]
    optimised = "" if build["optimised"] else ", NOT OPTIMISED"
    if crypto:
        crypto = crypto.get("error") or f"OpenSSL {crypto['version']}, {crypto['found_as']}: {crypto['path']}"
    rows = {
        "wire version": facts["wire_version"],
        "Python": f"{facts['implementation']} {facts['python']} on {facts['machine']}, Linux {facts['kernel']}",
        "built by": f"{build['compiler']}, Cython {build['cython']}{optimised}",
        "built for": f"Python {build['python']}, {build['libc']}, {build['architecture']}",
        "flags": build["flags"],
        "CRC32C": f"{crc['selected']} (this CPU runs {', '.join(crc['runs_here'])})",
        "libcrypto": crypto or "none found",
        "cipher": f"AES-256-GCM by {facts['cipher']}" if facts["cipher"] else "none",
    }
    return "\n".join([f"kvwire {facts['kvwire']}", *(f"{name:>14}  {value}" for name, value in rows.items())])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where the arguments make no sense."""
    parser = argparse.ArgumentParser(prog="kvwire", description=__doc__, epilog=EPILOG)
    parser.add_argument("--version", action="store_true", help="version, build and what is used of this host")
    parser.add_argument("--json", action="store_true", help="with --version: one JSON object on one line")
    chosen = parser.parse_args(arguments)
    if chosen.version:
        facts = describe()
        print(json.dumps(facts) if chosen.json else show(facts))
    elif chosen.json:
        parser.error("--json goes with --version")
    else:
        parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
