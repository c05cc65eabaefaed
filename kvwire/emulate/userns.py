"""Runs a command as root of a user namespace of its own: there it may make network namespaces.

The command has a network of its own, too, with nothing but a loopback: to one that belongs to another user namespace it
could not come back from those that it makes. Where the host allows no user namespaces, or nobody to be root in one
(Ubuntu since 24.04), it runs as it is, and finds out for itself. A file to be run by its name, in an interpreter that
has imported nothing: a process of several threads cannot leave its user namespace.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys

CLONE_NEWUSER = 0x10000000  # linux/sched.h
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914  # linux/sockios.h
IFF_UP = 1  # linux/if.h


def main() -> None:
    if allowed():
        become_root()
    os.execvp(sys.argv[1], sys.argv[1:])


def allowed() -> bool:
    """Tried by a child: from a user namespace in which it is nobody a process does not come back."""
    child = os.fork()
    if child == 0:
        try:
            become_root()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def become_root() -> None:
    """Of a user namespace, whoever this is outside, with a network whose loopback is up. OSError where it may not."""
    uid, gid = os.geteuid(), os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))


if __name__ == "__main__":
    main()
