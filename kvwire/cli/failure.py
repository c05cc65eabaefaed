"""The one error that ends a command with a sentence."""

from __future__ import annotations


class Failure(Exception):
    """What went wrong, as a sentence for the user; the command ends with exit status 2."""
