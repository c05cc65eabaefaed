"""Network namespaces without names: they last as long as this process, or another inside, and leave nothing behind."""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from kvwire.emulate import userns

CLONE_NEWNET = 0x40000000  # linux/sched.h
ENTERED = "KVWIRE_USER_NAMESPACE"
"""Set in the environment of a program that was started again in a user namespace."""

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """A network of its own, IPv4 only, its loopback up. OSError where this process may not make one."""

    def __init__(self) -> None:
        here = _here()
        try:
            _checked(_libc.unshare(CLONE_NEWNET))
            try:
                self.fd = _here()
            finally:
                _checked(_libc.setns(here, CLONE_NEWNET))
        finally:
            os.close(here)

    def close(self) -> None:
        """It is gone as soon as no process is inside any more."""
        os.close(self.fd)

    @property
    def path(self) -> str:
        """A file by which other processes find it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread makes is made there: sockets, devices, processes. What it has stays where it is."""
        here = _here()
        try:
            _checked(_libc.setns(self.fd, CLONE_NEWNET))
            try:
                yield
            finally:
                _checked(_libc.setns(here, CLONE_NEWNET))
        finally:
            os.close(here)

    def ip(self, *lines: str) -> None:
        """Commands of iproute2's `ip`, without that word."""
        self.tool("ip -batch -", "\n".join(lines))

    def tool(self, command: str, text: str = "") -> str:
        """What a command of the system prints there. OSError with what it says where it fails."""
        words = command.split()
        if shutil.which(words[0]) is None:
            raise OSError(f"the command `{words[0]}` is missing; Debian's package is iproute2")
        with self.entered():
            done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise OSError(f"`{command}` failed: {(done.stderr or done.stdout).strip()}\n{text}".strip())
        return done.stdout

    def sysctl(self, name: str, value: str) -> None:
        """Sets what belongs to the namespace, where the kernel has it."""
        file = Path("/proc/sys/net", name)
        with self.entered():
            if file.exists():
                file.write_text(value)


def may_make_namespaces() -> str:
    """Empty, or why not. Tried by a thread that ends: one that may leave its namespace need not be let in again."""
    faults: list[str] = []

    def probe() -> None:
        try:
            Namespace().close()
        except OSError as error:
            faults.append(str(error))

    thread = threading.Thread(target=probe)
    thread.start()
    thread.join()
    return "".join(faults)


def why_no_namespaces() -> str:
    """Empty, or a sentence: what this process would need to make hosts."""
    if shutil.which("ip") is None:
        return "The command `ip` is missing; Debian's package is iproute2."
    fault = may_make_namespaces()
    if fault:
        return (
            f"Hosts need root, or a user namespace, in which `python -m kvwire.emulate COMMAND` runs a command where"
            f" this machine allows it ({fault})."
        )
    return ""


def in_user_namespace(command: Sequence[str]) -> NoReturn:
    """This process becomes that command, as root of a user namespace of its own."""
    os.environ[ENTERED] = "1"
    os.execv(sys.executable, [sys.executable, "-IS", userns.__file__, *command])


def enter_user_namespace() -> None:
    """Starts this program again where it may make namespaces, unless it may or that has been tried."""
    if may_make_namespaces() and ENTERED not in os.environ:
        in_user_namespace(sys.orig_argv)
