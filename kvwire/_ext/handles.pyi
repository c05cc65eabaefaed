from typing import Literal

State = Literal["active", "committed", "aborted", "lost"]

STATES: tuple[State, ...]
