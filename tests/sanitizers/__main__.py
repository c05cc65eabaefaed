"""`make test-asan`, `make test-tsan`: the tests over extension modules that a sanitizer of GCC's watches.

They are built in a copy of the tree, build/asan or build/tsan, and the tests run there: the ordinary build is left
alone. First the sanitizer has to find the bugs of planted.pyx, so that one which sees nothing does not pass.
"""

import os
import sys
from pathlib import Path

from tests.sanitizers.build import Tree
from tests.sanitizers.runs import SANITIZERS, must_find, run_tests

ROOT = Path(__file__).parents[2]


def main() -> int:
    sanitizer = SANITIZERS[sys.argv[1]]
    tree = Tree(ROOT, ROOT / "build" / sanitizer.name, sanitizer.flags)
    tree.make()
    for plant in sanitizer.plants:
        must_find(tree, sanitizer, plant)
    failed = run_tests(tree, sanitizer, sys.argv[2:])
    found = tree.reports()
    for report in found:
        print(f"\n{report.name}:\n{report.read_text(errors='replace')}")
    print(f"{sanitizer.name}: {len(found)} reports; tests {'failed' if failed else 'passed'}")
    return int(failed or bool(found))


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(ROOT)
    sys.exit(main())
