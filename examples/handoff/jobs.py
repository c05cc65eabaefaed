"""What the three processes of a hand-off tell one another. No torch in here: the parent never loads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class HandoffError(Exception):
    """A hand-off that could not be tried; the message is one sentence for the user."""


class BadConfig(HandoffError):
    """The configuration does not make a causal language model."""


class UnsupportedState(HandoffError):
    """The model keeps state where the walk does not reach, or of a type that cannot travel."""


@dataclass(frozen=True)
class Job:
    """One hand-off: which model, how long a prompt, how many tokens to decode, what to damage on the way."""

    name: str
    config: dict[str, Any]
    dtype: str = "bf16"
    prompt_tokens: int = 512
    decode_tokens: int = 16
    damage: str | None = None
    """None, "any", a group kind ("full", "window", "mla", "recurrent", "conv") or part of a tensor's path."""


@dataclass(frozen=True)
class Decoded:
    """What a greedy decode gave: its tokens, and its logits as bytes."""

    tokens: list[int]
    logits: bytes


@dataclass(frozen=True)
class Sent:
    """The prefill process's report. Seconds; `last_ready` is when the last layer left, on the monotonic clock."""

    decoded: Decoded
    prefill_s: float
    last_ready: float
    tail_s: float
    nbytes: int
    groups: str
    coded: tuple[int, int]
    """Bytes of the cells that went through a codec, and of what went in their place: sums of the receipt's groups."""


@dataclass(frozen=True)
class Received:
    """The decode process's report: `landed` says when each layer of a group was complete, on the monotonic clock."""

    decoded: Decoded
    landed: list[float] = field(default_factory=list)
    damaged: str = ""
