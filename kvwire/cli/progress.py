"""What a person sees while it runs; nothing of it in a pipe."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TextIO

BAR_CHARACTERS = 30


class Progress:
    """One line on a terminal that is written over; on exit it is gone. `stream` None: nothing is shown."""

    def __init__(self, stream: TextIO | None = sys.stderr) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None

    def say(self, text: str, share: float | None = None) -> None:
        """Shows `text`, with a bar that is filled by `share` in 0 to 1."""
        if self._stream is None:
            return
        bar = ""
        if share is not None:
            filled = round(share * BAR_CHARACTERS)
            bar = f"[{'#' * filled}{'.' * (BAR_CHARACTERS - filled)}] {share:4.0%} "
        self._stream.write(f"\r\x1b[K{bar}{text}")
        self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.say("")
