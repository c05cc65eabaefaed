from typing import Any

from kvwire._ext.cipher import Cipher

class Engine:
    """Worker threads and the list of handles that changed; one per node.

    `workers`: native threads. `stream_bytes`: receive buffer of a lane. `max_cell_bytes`: largest payload of a
    frame. `rekey`: bytes, frames and seconds after which a sealed lane goes on to its next key; at most 64 GiB, 2**24
    frames and an hour, else ValueError. `cipher`: of sealed lanes; without one all lanes are plain. Raises LocalError
    where threads or descriptors cannot be had.
    """

    def __init__(
        self,
        workers: int = 2,
        stream_bytes: int = 524288,
        max_cell_bytes: int = 262144,
        rekey: tuple[int, int, float] = ...,
        cipher: Cipher | None = None,
    ) -> None: ...
    def fileno(self) -> int:
        """An eventfd, readable when `drain` has something to give."""

    def drain(self) -> list[Any]:
        """The handles (links, outgoing, incoming) whose state changed since the last call."""

    def gil_entries(self) -> int:
        """How often Python entered the engine since it was made; workers never do the opposite."""

    def close(self) -> None:
        """Stop and join the workers; all lanes are closed."""
