"""kvwire-bench serve and run as processes, and what they say."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kvwire.cli import sealing
from tests.net import kit
from tests.net.namespaces import Host

BENCH = [sys.executable, "-m", "kvwire.cli.bench"]
SMALL = ["-n", "16MiB", "--transfer", "4MiB", "--page", "64KiB"]
PATIENCE_S = 20.0


@dataclass
class Server:
    """A `kvwire-bench serve`, and what it has said."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)

    def wait_for(self, text: str, count: int = 1) -> str:
        """The line with this text, once there are `count` of them."""
        until = time.monotonic() + PATIENCE_S
        while len(found := [line for line in self.lines if text in line]) < count:
            assert time.monotonic() < until, (text, self.lines)
            assert self.process.poll() is None, (self.process.returncode, self.lines)
            time.sleep(0.01)
        return found[-1]

    @property
    def port(self) -> str:
        return self.wait_for("listening").partition("port ")[2].partition(";")[0]

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def environment(command: str) -> dict[str, str]:
    """Each end has keys of its own, which --plain or --keys make nothing of."""
    return {**os.environ, sealing.ENVIRONMENT: str(kit.key_directory(name=command))}


def begun(command: str, *arguments: str, host: Host | None, stderr: int) -> "subprocess.Popen[str]":
    words = [*BENCH, command, *arguments]
    return subprocess.Popen(
        host.command(*words) if host else words,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=environment(command),
    )


@contextlib.contextmanager
def serving(*arguments: str, host: Host | None = None) -> Iterator[Server]:
    process = begun("serve", *arguments, host=host, stderr=subprocess.STDOUT)
    server = Server(process)
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: server.lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
    reader.start()
    try:
        server.wait_for("listening")
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def start(*arguments: str, host: Host | None = None) -> "subprocess.Popen[str]":
    return begun("run", *arguments, host=host, stderr=subprocess.PIPE)


def run(*arguments: str, host: Host | None = None) -> "subprocess.CompletedProcess[str]":
    process = start(*arguments, host=host)
    out, err = process.communicate(timeout=50)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def measuring(*arguments: str) -> "subprocess.Popen[str]":
    """A client that has reported on its first interval."""
    client = start(*arguments, "-i", "0.2")
    assert client.stdout is not None
    while "[" not in (line := client.stdout.readline()):
        assert line, client.communicate()
    client.stdout.readline()  # the other direction's
    return client


def result_of(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["verified"] is True
    assert found["kind"] == "run"
    return found


def fails(done: "subprocess.CompletedProcess[str]", *sentences: str) -> None:
    """Exit status 2, a sentence, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(("kvwire-bench: ", "usage: "))
    for sentence in sentences:
        assert sentence in done.stderr
