"""Processes of this directory's own, to talk to, stop and kill; and servers that are none of kvwire's."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from tests.net import kit


@contextlib.asynccontextmanager
async def another_process(
    module: str, *arguments: str, under: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A module of tests.net as a process; killed on the way out.

    `under`: a command that becomes it. `variables`: of its environment, besides those that there are.
    """
    kit.keys()  # made here, for both
    command = (*under, sys.executable, "-m", f"tests.net.{module}", *arguments)
    pipe, environment = asyncio.subprocess.PIPE, {**os.environ, **(variables or {})}
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment)
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


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[int]:
    """The port of a fake server. Its connections are closed when `handle` returns."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await handle(reader, writer)
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
