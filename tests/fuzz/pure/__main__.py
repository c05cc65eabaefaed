"""Fuzzing of kvwire's pure Python with atheris: run it at length, check it in CI, make the corpora small.

Each harness has a process of its own (target.py), as libFuzzer ends the one it is in. What is found lies in build/fuzz.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.fuzz.pure.harnesses import CORPORA, HARNESSES, corpus, harness, reached

BUILD = Path("build/fuzz")
MAX_LEN = 1024
"""Bytes of an input, unless the harness has a MAX_LEN of its own."""
RUNS = 10_000_000
CHECK_RUNS, CHECK_S = 20_000, 8
PLANT_RUNS = 50_000
"""Within which a harness has to find its bug. All do it within some hundreds; seeds differ from run to run."""
UNIT_S = 120
"""Longest time of one input. They take milliseconds, and machines stall."""
MEMORY_MIB = 2048

FLAGS = (
    f"-timeout={UNIT_S}",
    f"-report_slow_units={UNIT_S}",
    f"-rss_limit_mb={MEMORY_MIB}",
    "-print_final_stats=1",
)


@dataclass(frozen=True, slots=True)
class Ran:
    """What libFuzzer said. `crash`: the input that ended it; None where none did."""

    output: str
    executions: int
    seconds: float
    branches: int
    crash: Path | None


def target(name: str, *flags: str, plant: bool = False, folders: tuple[Path, ...] = ()) -> Ran:
    """One run of a harness. Its output goes to a file of the build folder, as hours of it may be long."""
    where = BUILD / name
    where.mkdir(parents=True, exist_ok=True)
    artifacts = where / ("planted-" if plant else "found-")
    for old in where.glob(f"{artifacts.name}*"):
        old.rename(old.with_name(f"before-{old.name}"))
    log = where / ("planted.log" if plant else "fuzz.log")
    bounds = f"-max_len={getattr(harness(name), 'MAX_LEN', MAX_LEN)}", f"-artifact_prefix={artifacts}"
    command = [sys.executable, "-m", "tests.fuzz.pure.target", name, *bounds, *FLAGS, *flags]
    environment = os.environ | {"KVWIRE_FUZZ_PLANT": "1" if plant else "0"}
    begun = time.monotonic()
    with log.open("wb") as file:
        status = subprocess.run(
            [*command, *map(str, folders)], stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode
    seconds = time.monotonic() - begun
    output = log.read_text(errors="replace")
    crash = next(iter(sorted(where.glob(f"{artifacts.name}*"))), None)
    if status and crash is None:
        sys.exit(f"{name}: {log} says why it ended with {status}:\n{output[-4000:]}")
    executions = max(map(int, re.findall(r"(?:^#|executed_units: +)(\d+)", output, re.MULTILINE)), default=0)
    branches = max(map(int, re.findall(r" cov: (\d+)", output)), default=0)
    return Ran(output, executions, seconds, branches, crash)


def show_reached(name: str) -> None:
    """How many lines of the modules under test the corpus reaches."""
    found = reached(name)
    lines, there_are = (sum(each) for each in zip(*found.values(), strict=True))
    print(f"{name}: its corpus of {len(corpus(name))} reaches {lines / there_are:.0%} of {there_are} lines: ", end="")
    print(", ".join(f"{module} {some}/{all_}" for module, (some, all_) in found.items() if all_), flush=True)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def fuzz(name: str, runs: int, seconds: int, *, keep: bool) -> bool:
    """Whether no input was a bug. `keep`: what is new goes on from where the run before ended."""
    new = BUILD / name / "new"
    if keep:
        new.mkdir(parents=True, exist_ok=True)
    else:
        new = _empty(BUILD / name / "checked")
    ran = target(name, f"-runs={runs}", f"-max_total_time={seconds}", folders=(new, CORPORA / name))
    seen = re.search(rf"^{name}: atheris sees .*", ran.output, re.MULTILINE)
    print(seen[0] if seen else f"{name}: nobody has checked what atheris sees")
    print(
        f"{name}: {ran.executions} executions, {ran.executions / ran.seconds:.0f}/s, {ran.branches} branches",
        flush=True,
    )
    if ran.crash is None:
        return seen is not None
    print(ran.output[-6000:])
    print(f"{name}: {ran.crash} is a bug of kvwire or of the harness; to see it again:")
    print(f"python -m tests.fuzz.pure.target {name} {ran.crash}")
    return False


def find_planted(name: str) -> bool:
    """Whether the harness finds the bug that it puts in itself."""
    scratch = _empty(BUILD / name / "planted")  # libFuzzer adds to the first folder that it is given
    ran = target(name, f"-runs={PLANT_RUNS}", plant=True, folders=(scratch, CORPORA / name))
    if ran.crash is None:
        print(f"{name}: the planted bug was not found in {ran.executions} executions")
        return False
    harness(name).fuzz(ran.crash.read_bytes())  # without the plant: what was found is the plant, and no other bug
    error = re.findall(r"^(\w+(?:Error|Exception|Closed).*)", ran.output, re.MULTILINE)
    print(f"{name}: the planted bug was found after {ran.executions} executions ({error[-1] if error else ran.crash})")
    return True


def minimise(name: str) -> None:
    """The corpus and what is new, as few and as short inputs as reach all that these do. What was a bug stays."""
    new = BUILD / name / "new"
    new.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.pure.target", name, "distil", str(CORPORA / name), str(new)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    kept = {Path(line).read_bytes() for line in said.splitlines()}
    for old in corpus(name):
        if not old.name.startswith("bug-"):
            old.unlink()
    for content in kept:
        (CORPORA / name / sha256(content).hexdigest()[:12]).write_bytes(content)
    files = corpus(name)
    print(f"{name}: {len(files)} files, {sum(path.stat().st_size for path in files)} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.pure", description=__doc__)
    parser.add_argument("what", choices=("run", "check", "minimise", "lines"))
    parser.add_argument("names", nargs="*", metavar="HARNESS", help=f"all: {', '.join(HARNESSES)}")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each ({RUNS})")
    parser.add_argument("--seconds", type=int, default=0, help="for each at most; 0: as long as it takes")
    options = parser.parse_intermixed_args()
    names = options.names or list(HARNESSES)
    if set(names) - set(HARNESSES):
        parser.error(f"there is no harness {', '.join(sorted(set(names) - set(HARNESSES)))}")
    if options.what != "lines" and importlib.util.find_spec("atheris") is None:
        print("atheris is not installed; `make fuzz-pure` does it, or pip install -e '.[test,fuzz]'", file=sys.stderr)
        return 2
    good = True
    for name in names:
        if options.what == "minimise":
            minimise(name)
        else:
            show_reached(name)
        if options.what == "run":
            good &= fuzz(name, options.runs, options.seconds, keep=True)
        elif options.what == "check":
            good &= fuzz(name, CHECK_RUNS, CHECK_S, keep=False)
            good &= find_planted(name)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
