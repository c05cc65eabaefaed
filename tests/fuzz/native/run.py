"""Runs the native fuzzers. Called by make:

    run.py fuzz RUNS [HARNESS ...]    so many executions of each, from the corpus; what is new stays in build/fuzz
    run.py test                       the corpora once more, a short run of each, and the planted bugs
    run.py coverage                   how much of the extension modules the corpora reach
    run.py keep [HARNESS ...]         adds what the fuzzers have found to the corpora, and minimises those

JOBS says how many run at once (default: one for each processor), SEED which numbers they draw.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.fuzz.native import build

CORPUS = build.HERE.parent / "corpus"
NEW = build.BUILD / "corpus"
FOUND = build.BUILD / "found"

MAX_LEN = 1024
SHORT_RUNS = 200_000
PLANTED_RUNS = 2_000_000  # found after some thousands, as a rule
SEED = os.environ.get("SEED", "1")


class Failed(Exception):
    """A harness found something, or did not find what it should have."""


def driver(
    name: str, *arguments: str, planted: bool = False, made: build.Build = build.FAULTS
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "KVWIRE_FUZZ": name,
        "KVWIRE_FUZZ_PLANT": str(int(planted)),
        "PYTHONPATH": str(made.lib),
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [str(made.driver), f"-max_len={MAX_LEN}", f"-seed={SEED}", "-verbosity=1", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")


def committed(name: str) -> str:
    """The corpus of a harness; OSError where it has none."""
    folder = CORPUS / name
    if not any(folder.iterdir()):
        raise FileNotFoundError(f"{folder} is empty; `run.py fuzz` and `run.py keep` fill it")
    return str(folder)


def summary(name: str, log: str) -> str:
    """What libFuzzer's last line and its statistics say."""
    stats = dict(re.findall(r"^stat::(\w+):\s+(\d+)", log, re.M))
    shown = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)", log)
    first, last = re.search(r"INITED cov: (\d+)", log), shown[-1] if shown else ("?", "?", "?", "?")
    rise = f"{first[1] if first else '?'} -> {last[0]}"
    return (
        f"{name:10} {int(stats.get('number_of_executed_units', 0)):>11,} executions"
        f" {int(stats.get('average_exec_per_sec', 0)):>8,}/s  edges {rise:12} features {last[1]:>5}"
        f"  corpus {last[2]} ({last[3]})"
    )


def fuzz(name: str, runs: int, kept: Path) -> str:
    """So many executions; raises with the report where one of them finds something."""
    kept.mkdir(parents=True, exist_ok=True)
    FOUND.mkdir(parents=True, exist_ok=True)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    prefix = f"{FOUND}/{name}-"
    done = driver(
        name, f"-runs={runs}", "-print_final_stats=1", f"-artifact_prefix={prefix}", str(kept), str(CORPUS / name)
    )
    if done.returncode:
        raise Failed(f"{name} found something; the input is {prefix}*\n{done.stderr[-6000:]}")
    return summary(name, done.stderr)


def find_planted(name: str) -> str:
    """The bug that the harness carries is found; the input that shows it shows nothing without it."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = f"{folder}/found-"
        done = driver(
            name, f"-runs={PLANTED_RUNS}", f"-artifact_prefix={prefix}", folder, committed(name), planted=True
        )
        inputs = [str(path) for path in Path(folder).glob("found-*")]
        if not done.returncode or not inputs:
            raise Failed(f"{name} did not find its planted bug in {PLANTED_RUNS:,} executions\n{done.stderr[-3000:]}")
        again = driver(name, *inputs)
        if again.returncode:
            raise Failed(f"{name}: what found the planted bug fails without it, too\n{again.stderr[-6000:]}")
    found = re.search(r"^(?:FOUND: .*|SUMMARY: .*)$", done.stderr, re.M)
    return f"{name:10} finds its planted bug: {found[0] if found else 'an error'}"


def test(name: str) -> str:
    """Replays the corpus, runs a little further from it, and looks for the planted bug."""
    files = sorted(map(str, Path(committed(name)).iterdir()))
    replayed = driver(name, *files)
    if replayed.returncode:
        raise Failed(f"{name}: an input of the corpus finds something\n{replayed.stderr[-6000:]}")
    with tempfile.TemporaryDirectory() as folder:
        run = fuzz(name, SHORT_RUNS, Path(folder))
    return f"{run}\n{find_planted(name)}"


def coverage(name: str) -> str:
    """By file of kvwire/_ext: functions that the corpus reaches, of all that run without Python, and edges of these."""
    log = driver(name, "-runs=0", "-print_coverage=1", committed(name), made=build.COVERAGE).stderr
    files: dict[str, list[int]] = {}
    functions = re.findall(r"COVERED_FUNC: hits: (\d+) edges: (\d+)/(\d+) .*kvwire/_ext/(\w+)\.\w+:", log)
    for hits, edges, of, file in functions:
        count = files.setdefault(file, [0, 0, 0, 0])
        reached = hits != "0"
        for i, more in enumerate((reached, 1, int(edges) * reached, int(of) * reached)):
            count[i] += more
    lines = [
        f"  {file:10} {count[0]:3}/{count[1]:<3} functions {count[2]:4}/{count[3]:<4} edges of these"
        for file, count in sorted(files.items())
        if count[0]
    ]
    return "\n".join([name, *lines])


def keep(name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        merged = driver(name, "-set_cover_merge=1", folder, str(CORPUS / name), str(NEW / name))
        if merged.returncode:
            raise Failed(merged.stderr[-3000:])
        shutil.rmtree(CORPUS / name)
        shutil.copytree(folder, CORPUS / name)
    files = list((CORPUS / name).iterdir())
    return f"{name:10} {len(files)} inputs, {sum(file.stat().st_size for file in files):,} bytes"


def each(names: list[str], work: Callable[[str], str]) -> None:
    """All harnesses, as many at once as JOBS says; ends the program with 1 where one has failed."""
    failed = False
    with ThreadPoolExecutor(int(os.environ.get("JOBS", os.cpu_count() or 1))) as pool:
        for future in [pool.submit(work, name) for name in names]:
            try:
                print(future.result(), flush=True)
            except (Failed, OSError) as error:
                failed = True
                print(f"FAILED: {error}", file=sys.stderr, flush=True)
    sys.exit(failed)


def main(command: str, *arguments: str) -> None:
    build.main(build.COVERAGE if command == "coverage" else build.FAULTS)
    if command == "fuzz":
        runs = int(arguments[0])
        each(list(arguments[1:]) or build.names(), lambda name: fuzz(name, runs, NEW / name))
    each(list(arguments) or build.names(), {"test": test, "coverage": coverage, "keep": keep}[command])


if __name__ == "__main__":
    main(*sys.argv[1:])
