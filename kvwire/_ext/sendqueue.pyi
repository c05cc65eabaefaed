class SendQueue:
    """Runs of ready cells: by class, then by deadline, rank and order of becoming ready. A class that waits for a
    higher one gets a sixteenth of the bytes that are claimed meanwhile.

    `now_ns` is time, everywhere; only how long the queue was empty and runs have waited depends on it.
    """

    def __init__(self, now_ns: int = 0) -> None: ...
    def __len__(self) -> int:
        """Number of runs."""

    def push(
        self,
        owner: int,
        segment: int,
        first: int,
        count: int,
        *,
        klass: int = 1,
        deadline_ns: int = 0,
        rank: int = 1,
        order: int | None = None,
        ready_ns: int | None = None,
        cell_bytes: int = 1,
        short_by: int = 0,
        now_ns: int = 0,
    ) -> int:
        """Add `count` cells from cell `first`; `order` and `ready_ns` only for a run that comes back. `short_by`: what
        its last cell lacks of `cell_bytes`. Returns its order."""

    def claim(self, max_cells: int, *, max_bytes: int = ..., now_ns: int = 0) -> tuple[int, int, int, int, int] | None:
        """Take up to `max_cells` and `max_bytes`, but at least one cell, from the run whose turn it is: (owner,
        segment, first, count, order); None when empty."""

    def remove(self, owner: int, *, now_ns: int = 0) -> int:
        """Take out all runs of an owner; returns how many there were."""

    @property
    def queued_bytes(self) -> tuple[int, int, int]:
        """By class."""

    @property
    def oldest_ns(self) -> tuple[int, int, int]:
        """When the run became ready that has waited longest, by class; 0: none waits."""

    def idle_ns(self, now_ns: int) -> int:
        """For how long it has been empty in all."""
