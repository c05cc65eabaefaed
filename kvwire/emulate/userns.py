"""Runs a command as root of a user namespace of its own: there it may make network namespaces.

The command has a network of its own, too, with nothing but a loopback: to one that belongs to another user namespace it
could not come back from those that it makes. Where the host allows no user namespaces it runs as it is, and finds out
for itself. A file to be run by its name, in an interpreter that has imported nothing:
a process of several threads cannot leave its user namespace.
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
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        become_root(uid, gid)
    os.execvp(sys.argv[1], sys.argv[1:])


def become_root(uid: int, gid: int) -> None:
    """Who was that outside; and its loopback is up."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))


if __name__ == "__main__":
    main()
