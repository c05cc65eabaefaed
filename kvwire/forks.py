"""Locks that a forked child finds free: who had one may be a thread that is no more there."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Locked(Protocol):
    """What has a lock."""

    _lock: threading.Lock


_locked: weakref.WeakSet[Locked] = weakref.WeakSet()


def add_lock(owner: Locked) -> None:
    """Give it a lock, and another one in each forked child."""
    owner._lock = threading.Lock()
    _locked.add(owner)


def _after_fork_in_child() -> None:
    for owner in list(_locked):
        owner._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
