"""Runs a command as root of a user namespace of its own: there it may make network namespaces.

A file to be run by its name, in an interpreter that has imported nothing: a process of several threads cannot leave
its user namespace.
"""

import ctypes
import os
import sys

CLONE_NEWUSER = 0x10000000  # linux/sched.h


def main() -> None:
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        sys.exit(f"this host allows no user namespaces: {os.strerror(ctypes.get_errno())}")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
