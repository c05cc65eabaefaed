"""What each sanitizer is told, what it must find, and the runs under it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.sanitizers.build import Tree
from tests.sanitizers.chosen import ASAN, TSAN, Choice

HERE = Path(__file__).parent
PLANT_S = 60.0


@dataclass(frozen=True)
class Plant:
    """A call of planted.pyx, and what the report of it says."""

    call: str
    says: str


@dataclass(frozen=True)
class Sanitizer:
    name: str
    flags: str
    """As -fsanitize takes them."""
    preload: str
    runtimes: Mapping[str, Mapping[str, str]]
    """Options, by the variable that a runtime reads."""
    plants: tuple[Plant, ...]
    chosen: Choice

    def options(self, tree: Tree) -> dict[str, str]:
        """What a runtime says goes to a file. GCC's for undefined behaviour takes no file beside the one for addresses:
        pytest leaves it standard error."""

        def joined(options: Mapping[str, str], name: str) -> str:
            return ":".join(f"{key}={value}" for key, value in {**options, "log_path": f"{tree.log}-{name}"}.items())

        return {name: joined(options, name.split("_")[0].lower()) for name, options in self.runtimes.items()}


SANITIZERS = {
    "asan": Sanitizer(
        "asan",
        "address,undefined",
        "libasan.so",
        {
            # pytest's faulthandler would take SIGSEGV over: handle_segv.
            "ASAN_OPTIONS": {"detect_stack_use_after_return": "1", "handle_segv": "2"},
            "LSAN_OPTIONS": {"suppressions": str(HERE / "leaks.supp"), "print_suppressions": "0"},
            "UBSAN_OPTIONS": {"print_stacktrace": "1"},
        },
        (
            Plant("overflow(16)", "heap-buffer-overflow"),
            Plant("leak(16)", "detected memory leaks"),
            Plant("overrun(100)", "signed integer overflow"),
        ),
        ASAN,
    ),
    "tsan": Sanitizer(
        "tsan",
        "thread",
        "libtsan.so",
        {
            # CPython, numpy and OpenSSL are not built for it. What these read and write is not looked at; what their
            # locks put in order, Python's own above all, is. No child of a fork starts a thread. The stack of an
            # access is remembered for longer than usual: history_size.
            "TSAN_OPTIONS": {"ignore_noninstrumented_modules": "1", "die_after_fork": "0", "history_size": "4"},
        },
        (Plant("race()", "data race"),),
        TSAN,
    ),
}


def must_find(tree: Tree, sanitizer: Sanitizer, plant: Plant) -> None:
    """Ends this process where a bug that is there is not reported, or not where it is."""
    call = f"from kvwire._ext import planted; planted.{plant.call}"
    options = sanitizer.options(tree)
    process = tree.python("-c", call, preload=sanitizer.preload, options=options, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=PLANT_S)
    found = tree.reports()
    said += "\n".join(path.read_text(errors="replace") for path in found)
    if process.returncode == 0 or plant.says not in said or "planted.pyx" not in said:
        sys.exit(f"{said}\n{sanitizer.name} is blind: it did not report planted.{plant.call}, {plant.says}")
    for path in found:
        path.unlink()
    print(f"{sanitizer.name}: found what was planted: {plant.says}")


def run_tests(tree: Tree, sanitizer: Sanitizer, arguments: list[str]) -> bool:
    """Whether any failed. They wait for sockets half of the time: two processes at once, or as many as JOBS says."""
    for reason in sanitizer.chosen.reasons():
        print(f"left out: {reason}")
    files = arguments or sanitizer.chosen.files(tree.path)
    jobs = min(int(os.environ.get("JOBS", "2")), len(files))
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", "--capture=sys"]
    pytest += [f"--deselect={test}" for test in sanitizer.chosen.tests_left_out]
    running = [
        tree.python(*pytest, *files[job::jobs], preload=sanitizer.preload, options=sanitizer.options(tree))
        for job in range(jobs)
    ]
    return any([process.wait() for process in running])
