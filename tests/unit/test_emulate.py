"""What can be said of a link before there is one: its paths, and arithmetic with what was counted."""

from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest

from kvwire.emulate import Counters, Histogram, Path, emulator
from kvwire.emulate.path import Wishes


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"loss": 1.1}, "loss"),
        ({"loss": float("nan")}, "loss"),
        ({"reorder": -0.1}, "reorder"),
        ({"burst": (0.1, 2.0)}, r"burst\[1\]"),
        ({"delay_s": -1.0}, "delay_s"),
        ({"delay_s": 61.0}, "delay_s"),
        ({"delay_s": 0.01, "jitter_s": 0.02}, "jitter_s"),
        ({"rate_bps": 0.0}, "rate_bps"),
        ({"rate_bps": float("nan")}, "rate_bps"),
        ({"queue_bytes": 1000}, "queue_bytes"),
        ({"rate_bps": 1e6, "queue_bytes": 0}, "queue_bytes"),
        ({"mark_bytes": 1000}, "mark_bytes"),
    ],
)
def test_a_path_that_is_none(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Path(**wrong)


def test_buckets_are_16_to_the_octave() -> None:
    edges = [Histogram.edge_s(bucket) for bucket in range(368)]
    assert edges == sorted(set(edges))
    assert edges[:18] == pytest.approx([i * 1e-6 for i in range(18)])
    assert edges[32] == pytest.approx(32e-6)
    assert edges[48] == pytest.approx(64e-6)
    assert max(after / before for before, after in pairwise(edges[16:])) <= 17 / 16 + 1e-9


def test_quantiles() -> None:
    counts = [0] * 368
    counts[3], counts[10] = 90, 10
    histogram = Histogram(tuple(counts))
    assert histogram.total == 100
    assert histogram.quantile_s(0.5) == pytest.approx(4e-6)
    assert histogram.quantile_s(0.9) == pytest.approx(4e-6)
    assert histogram.quantile_s(0.95) == pytest.approx(11e-6)
    assert histogram.quantile_s(1.0) == pytest.approx(11e-6)
    assert Histogram((0,) * 368).quantile_s(0.5) == 0.0
    assert (histogram - histogram).total == 0


def counters(scale: int, **more: Any) -> Counters:
    names = (
        *("segments_in", "bytes_in", "segments_out", "bytes_out", "lost", "overflowed", "black_holed", "failed"),
        *("held", "marked", "reordered", "queue_bytes", "queue_max_bytes"),
    )
    values: dict[str, Any] = {name: scale * number for number, name in enumerate(names, 1)}
    values |= {"queueing": Histogram((scale,)), "lateness": Histogram((scale,)), "late_s": 0.5 * scale}
    return Counters(**values | {"late_max_s": 1.0 * scale} | more)


def test_since() -> None:
    change = counters(5).since(counters(2))
    assert asdict(change) == asdict(counters(3, held=45, queue_bytes=60, queue_max_bytes=65, late_max_s=5.0))
    assert change.late_mean_s == pytest.approx(0.5)


def test_what_a_link_does_not_tell_stays_untold() -> None:
    names = ("reordered", "queue_max_bytes", "queueing", "lateness", "late_s", "late_max_s")
    untold: dict[str, None] = dict.fromkeys(names)
    change = counters(5, **untold).since(counters(2, **untold))
    assert change.segments_in == 3
    assert {getattr(change, name) for name in (*names, "late_mean_s")} == {None}


def test_the_control_socket() -> None:
    plain = emulator.wishes(Wishes(there=Path(), back=Path()))
    assert emulator.wishes(Wishes(there=Path(), back=Path(), ports=frozenset({7}))) != plain
    with pytest.raises(ValueError, match="expected"):
        emulator.counts(b"short")
    forth, back = emulator.counts(bytes(emulator.REPLY_BYTES))
    assert forth == back
    assert forth["segments_in"] == forth["late_s"] == 0
    assert len(forth["queueing"]) == len(forth["lateness"]) == 368
