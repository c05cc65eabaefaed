"""Processes of this directory's own, to talk to, stop and kill."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.net import kit


@contextlib.asynccontextmanager
async def another_process(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A module of tests.net as a process; killed on the way out."""
    kit.keys()  # made here, for both
    command = (sys.executable, "-m", f"tests.net.{module}", *arguments)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    """What it says next."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


def say(process: asyncio.subprocess.Process) -> None:
    """An empty line for it to go on."""
    assert process.stdin is not None
    process.stdin.write(b"\n")


async def stopped(process: asyncio.subprocess.Process) -> None:
    """Stop it, with all its threads."""

    def states() -> set[str]:
        threads = Path(f"/proc/{process.pid}/task").iterdir()
        return {(thread / "stat").read_text().rpartition(") ")[2][0] for thread in threads}

    process.send_signal(signal.SIGSTOP)
    await kit.eventually(lambda: states() == {"T"}, states)
