from typing import Any

from kvwire.emulate.path import Wishes

REPLY_BYTES: int

def wishes(wished: Wishes) -> bytes:
    """A Wishes, as the control socket takes it."""

def counts(reply: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the control socket answers, each way: the fields of Counters. ValueError for another length."""

def emulate(tun_a: int, tun_b: int, control: int, seed: int) -> None:
    """Joins the devices until the other end of `control` is closed. No Python meanwhile; memory is left to exit."""
