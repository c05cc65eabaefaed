"""iperf3 on loopback, beside kvwire in the same run."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from functools import cache

from kvwire.cli.failure import Failure

SECONDS = 2
OMIT_SECONDS = 0.3
"""Start-up that iperf3 leaves out of its figure (-O)."""
START_S = 5.0


@cache
def version() -> str:
    """As "iperf 3.12". `Failure` where there is none."""
    if shutil.which("iperf3") is None:
        raise Failure("iperf3 is not installed, and would be measured, too (Debian: apt install iperf3)")
    shown = subprocess.run(["iperf3", "--version"], capture_output=True, text=True, timeout=START_S, check=False)
    return " ".join(shown.stdout.split()[:2])


def goodput_GBps(streams: int, congestion: str) -> float:
    """What the receiver got, in GB/s, over `streams` TCP streams on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server = subprocess.Popen(
        ["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    command = ["iperf3", "-c", "127.0.0.1", "-p", port, "-P", str(streams), "-C", congestion, "-J"]
    command += ["-t", str(SECONDS), "-O", str(OMIT_SECONDS)]
    try:
        give_up = time.monotonic() + START_S
        while True:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 20, check=False)
            result = json.loads(shown.stdout or "{}")
            if "error" not in result and shown.returncode == 0:
                return float(result["end"]["sum_received"]["bits_per_second"]) / 8e9
            # The server may not listen yet.
            if time.monotonic() > give_up:
                raise Failure(f"iperf3 failed: {result.get('error') or shown.stderr.strip() or shown.returncode}")
            time.sleep(0.05)
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError) as error:
        raise Failure(f"iperf3 gave no result: {error}") from error
    finally:
        server.kill()
        server.wait()
