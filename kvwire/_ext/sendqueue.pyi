class SendQueue:
    """Runs of ready cells, by (class, deadline, order of becoming ready)."""

    def __init__(self) -> None: ...
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
        order: int | None = None,
    ) -> int:
        """Add `count` cells from cell `first`; `order` only for a run that comes back. Returns its order."""

    def claim(self, max_cells: int) -> tuple[int, int, int, int, int] | None:
        """Take up to `max_cells` from the first run: (owner, segment, first, count, order); None when empty."""

    def remove(self, owner: int) -> int:
        """Take out all runs of an owner; returns how many there were."""
