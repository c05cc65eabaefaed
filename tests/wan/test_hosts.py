"""Hosts, and what is left of them: nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path as File
from statistics import median

import pytest

from kvwire.emulate import Path, Shaped, Wan, hosts, userns, why_not_shaped
from kvwire.emulate.namespaces import may_make_namespaces
from kvwire.emulate.tun import TunLink
from tests.wan.kit import PATIENCE_S, datagrams, fast, needs_wan, only_tun, stream

pytestmark = needs_wan

MAKES_ONE = """
import time
from kvwire.emulate import Path, Wan
with Wan(Path(delay_s=0.001)) as wan:
    print(getattr(wan._link, "pid", 0), flush=True)
    time.sleep(60)
"""
USES_ONE = """
from kvwire.emulate import Path, Wan
with Wan(Path(delay_s=0.001), kind="tun") as wan:
    wan.run("a", ["ip", "-br", "address", "show", "dev", "wan"], check=True)
"""


NO_USER_NAMESPACE = 3
# In a user namespace to which its network does not belong it may leave that and not come back.
ASKS = f"""
import ctypes, sys
if ctypes.CDLL(None).unshare(0x10000000):
    sys.exit({NO_USER_NAMESPACE})
from kvwire.emulate import why_not
print(why_not())
"""


def until_gone(pid: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while File(f"/proc/{pid}").exists() and "Z" not in File(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]:
        assert time.monotonic() < until, f"process {pid} is still there"
        time.sleep(0.01)


def devices() -> list[str]:
    return sorted(os.listdir("/sys/class/net"))


def test_a_host_has_its_own_network_and_this_thread_keeps_its_own() -> None:
    before, namespace = devices(), os.readlink("/proc/thread-self/ns/net")
    with Wan(fast()) as wan:
        for side, address in zip(wan.sides, wan.addresses, strict=True):
            shown = wan.run(side, ["ip", "-br", "address"], capture_output=True, text=True, check=True).stdout
            assert address in shown
            with wan.entered(side):
                assert os.readlink("/proc/thread-self/ns/net") != namespace
        assert os.readlink("/proc/thread-self/ns/net") == namespace
        assert devices() == before


def test_processes_on_hosts_end_with_them() -> None:
    with Wan(fast()) as wan:
        process = wan.popen("b", ["sleep", "60"], stdout=subprocess.PIPE)
    assert process.returncode == -signal.SIGKILL
    assert process.stdout is not None
    assert process.stdout.closed
    wan.close()


def test_two_links_at_once() -> None:
    with Wan(fast(0.005)) as near, Wan(fast(0.05)) as far:
        assert median(datagrams(near, 20, gap_s=0.01).delays_s) < 0.04
        assert min(datagrams(far, 20).delays_s) > 0.049


def test_no_descriptor_and_no_process_is_left() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with Wan(fast()) as wan:
        link = wan._link
    assert sorted(os.listdir("/proc/self/fd")) == before
    if isinstance(link, TunLink):
        assert not File(f"/proc/{link.pid}").exists()


def test_no_descriptor_is_left_of_hosts_that_could_not_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(hosts, "BIG_BUFFERS", "more")
    with pytest.raises(OSError, match="Invalid argument"):
        Wan(fast(), buffers="big")
    assert sorted(os.listdir("/proc/self/fd")) == before


@only_tun
def test_the_emulator_ends_with_a_killed_parent_and_the_next_run_is_none_the_wiser() -> None:
    with subprocess.Popen([sys.executable, "-c", MAKES_ONE], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert File(f"/proc/{pid}").exists()
        parent.kill()
    until_gone(pid)
    with Wan(fast()) as wan:
        assert len(datagrams(wan, 20).numbers) == 20


@only_tun
def test_a_dead_emulator_is_an_error() -> None:
    with Wan(fast()) as wan:
        assert isinstance(wan._link, TunLink)
        os.kill(wan._link.pid, signal.SIGKILL)
        until_gone(wan._link.pid)
        with pytest.raises(OSError, match=r"emulator|[Bb]roken pipe|reset"):
            wan.counters()


@only_tun
def test_a_late_answer_is_not_taken_for_the_next_one() -> None:
    with Wan(fast()) as wan:
        link = wan._link
        assert isinstance(link, TunLink)
        os.kill(link.pid, signal.SIGSTOP)
        link._control.settimeout(0.2)
        with pytest.raises(TimeoutError):
            wan.counters()
        os.kill(link.pid, signal.SIGCONT)
        link._control.settimeout(PATIENCE_S)
        assert len(datagrams(wan, 20).numbers) == 20
        assert wan.counters()["there"].segments_in == 20


@only_tun
def test_in_a_user_namespace() -> None:
    """What an unprivileged user does, where the host allows it."""
    done = subprocess.run(
        [sys.executable, "-IS", userns.__file__, sys.executable, "-c", USES_ONE],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if "Hosts need root" in done.stderr:
        pytest.skip("this host allows no user namespaces")
    assert done.returncode == 0, done.stderr
    assert "10.77.0.1/24" in done.stdout


def test_a_host_where_nobody_may_be_root_of_a_user_namespace() -> None:
    """It can be made, but its files cannot be written, as on Ubuntu since 24.04: the command runs as it is."""
    script = f'mount -o remount,ro,bind /proc || exit {NO_USER_NAMESPACE}; exec "$0" "$@"'
    command = [sys.executable, "-IS", userns.__file__, "readlink", "/proc/self/ns/user"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, *command],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode == NO_USER_NAMESPACE:
        pytest.skip("this host does not let /proc be made read-only")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == os.readlink("/proc/self/ns/user")


def test_a_process_that_may_not_says_so() -> None:
    assert may_make_namespaces() == ""
    done = subprocess.run([sys.executable, "-c", ASKS], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode == NO_USER_NAMESPACE:
        pytest.skip("this host allows no user namespaces")
    assert done.returncode == 0, done.stderr
    assert "need root, or a user namespace" in done.stdout


@pytest.mark.skipif(bool(why_not_shaped()), reason=why_not_shaped())
def test_a_shaped_cable() -> None:
    with Shaped(50e6) as cable:
        took = stream(cable, 4_000_000)
    assert 0.5 < took < 1.5  # 0.64 s, and what the bucket holds is free


def test_bad_links() -> None:
    with pytest.raises(OSError, match=r"`ip .*` failed"):
        Wan(Path(delay_s=0.001), mtu=10)
