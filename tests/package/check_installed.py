"""Is the kvwire that this Python has installed a whole one? To be run by that Python, with -I, outside a checkout.

    python -I check_installed.py [--libcrypto bundled]

Standard library only, apart from kvwire itself: what is tested is an environment that has nothing else.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import kvwire

SCRIPTS = Path(sysconfig.get_path("scripts"))
BENCH = ("kvwire-bench", "loopback", "-n", "64MiB", "--runs", "1", "--json")


def said(*command: str) -> str:
    """What an installed command prints; its error ends the check."""
    done = subprocess.run([SCRIPTS / command[0], *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}{done.stdout}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libcrypto", metavar="HOW", help="how libcrypto has to be found, such as bundled")
    wanted: str | None = parser.parse_args().libcrypto

    home = Path(kvwire.__file__).resolve()
    if not home.is_relative_to(Path(sysconfig.get_path("platlib")).resolve()):
        sys.exit(f"kvwire comes from {home}, not from what is installed in {sysconfig.get_path('platlib')}")

    human = said("kvwire", "--version")
    print(human, end="")
    name = f"kvwire {kvwire.__version__}"
    if {text.splitlines()[0] for text in (human, said("kvwire-bench", "--version"))} != {name}:
        sys.exit(f"kvwire and kvwire-bench do not both say {name!r}")
    facts: dict[str, Any] = json.loads(said("kvwire", "--version", "--json"))
    if not facts["build"]["optimised"]:
        sys.exit("the extension modules were built without optimisation")
    built_for, here = facts["build"]["python"].split(".")[:2], facts["python"].split(".")[:2]
    if built_for != here:
        sys.exit(f"the extension modules were built for Python {built_for}, and this is {here}")
    if wanted and facts["libcrypto"].get("found_as") != wanted:
        sys.exit(f"libcrypto is {facts['libcrypto']}; it should be {wanted}")

    result: dict[str, Any] = json.loads(said(*BENCH))
    if (result["verified"], result["sealed"]) != (True, True):
        sys.exit(f"{' '.join(BENCH)} did not get its bytes: {result}")
    print(f"{' '.join(BENCH)}: verified, {result['goodput_GBps']:.2f} GB/s, sealed by {result['cipher']}")


if __name__ == "__main__":
    main()
