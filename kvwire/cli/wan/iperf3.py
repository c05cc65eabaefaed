"""iperf3 over the emulated link: the yardstick of a run, and the plain TCP flows beside one."""

from __future__ import annotations

import json
import subprocess
from types import TracebackType
from typing import Any

from kvwire.cli.failure import Failure
from kvwire.emulate.hosts import Hosts

STREAMS = (1, 4, 8, 16)
FIRST_PORT = 5201
START_S = 10.0
GRACE_S = 30.0
"""How much longer than it sends a client may take: its last bytes may wait in a queue, and be lost."""


class Iperf3:
    """A server in b and its client in a, which sends for `seconds` from when it is entered. On exit both have ended."""

    def __init__(self, hosts: Hosts, streams: int, congestion: str, seconds: float) -> None:
        self._hosts = hosts
        self.streams, self.congestion, self.seconds = streams, congestion, seconds
        self.raw = ""
        """What -J printed, once `result` has been called."""
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Iperf3:
        try:
            self._begin()
        except BaseException:
            self._end()
            raise
        return self

    def _begin(self) -> None:
        host, port = self._hosts.addresses[1], str(FIRST_PORT)
        server = self._hosts.popen(
            "b",
            ["iperf3", "-s", "-1", "--forceflush", "-p", port],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(server)
        assert server.stdout is not None
        said = ""
        for line in server.stdout:
            said += line
            if "listening" in line:
                break
        else:
            raise Failure(f"iperf3's server ended at once: {said.strip()}")
        command = ["iperf3", "-c", host, "-p", port, "-P", str(self.streams), "-C", self.congestion]
        command += ["-t", f"{self.seconds:g}", "-J"]
        self._processes.append(
            self._hosts.popen("a", command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )

    def result(self) -> dict[str, Any]:
        """Waits for its end: `bps` received, of each stream in `stream_bps`, `retransmits`."""
        try:
            self.raw, errors = self._processes[1].communicate(timeout=START_S + self.seconds + GRACE_S)
            found = json.loads(self.raw or "{}")
            if "error" in found:
                raise Failure(f"iperf3 -P {self.streams} failed: {found['error']}")
            end = found["end"]
            return {
                "bps": float(end["sum_received"]["bits_per_second"]),
                "stream_bps": [float(stream["receiver"]["bits_per_second"]) for stream in end["streams"]],
                "retransmits": int(end["sum_sent"]["retransmits"]),
            }
        except subprocess.TimeoutExpired:
            raise Failure(f"iperf3 -P {self.streams} did not end") from None
        except (json.JSONDecodeError, KeyError) as error:
            raise Failure(f"iperf3 gave no result: {error!r} {errors.strip()}") from error

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
