"""What totals over time say: rates, when goodput was back, percentiles."""

import pytest

from kvwire.cli.wan.series import at, back_after_s, over_time, percentile, rate_bps

RAMP = [(10.0, 0.0), (11.0, 1000.0), (13.0, 1000.0), (14.0, 3000.0)]


@pytest.mark.parametrize(
    ("when_s", "value"),
    [(9.0, 0.0), (10.0, 0.0), (10.5, 500.0), (12.0, 1000.0), (13.25, 1500.0), (14.0, 3000.0), (99.0, 3000.0)],
)
def test_a_value_between_two_that_were_taken(when_s: float, value: float) -> None:
    assert at(RAMP, when_s) == value


def test_nothing_was_taken() -> None:
    assert at([], 1.0) == 0.0
    assert back_after_s([], 1.0, 1.0) is None


def test_rates_are_in_bits() -> None:
    assert rate_bps(RAMP, 10.0, 14.0) == 8 * 3000 / 4
    assert [one["goodput_bps"] for one in over_time(RAMP, 10.0, 14.0, 1.0)] == [8000, 0, 0, 16000]
    assert over_time(RAMP, 10.0, 14.0, 2.0)[1] == {"start_s": 2.0, "end_s": 4.0, "goodput_bps": 8000}


def series(*rates: float, step_s: float = 0.1) -> list[tuple[float, float]]:
    """Totals that grow by so many bytes a second, for `step_s` each."""
    found = [(0.0, 0.0)]
    for rate in rates:
        when_s, total = found[-1]
        found.append((when_s + step_s, total + rate * step_s))
    return found


class TestBack:
    """Windows of half a second and of two."""

    def test_at_once(self) -> None:
        assert back_after_s(series(*[100] * 30), 0.5, 800 * 0.99) == 0

    def test_when_it_is_back_for_both_windows(self) -> None:
        found = back_after_s(series(*[0] * 10, *[100] * 25), 0.0, 800 * 0.99)
        assert found == pytest.approx(1.0)

    def test_a_burst_before_it_stalls_again_is_not_back(self) -> None:
        found = back_after_s(series(*[0] * 5, *[100] * 6, *[0] * 10, *[100] * 25), 0.0, 800 * 0.85)
        assert found == pytest.approx(2.1, abs=0.11)

    def test_a_short_stall_later_does_no_harm(self) -> None:
        assert back_after_s(series(*[100] * 10, 0, 0, *[100] * 20), 0.0, 800 * 0.85) == 0

    def test_what_is_cut_off_by_the_end_does_not_count(self) -> None:
        assert back_after_s(series(*[0] * 10, *[100] * 19), 0.0, 8 * 80) is None


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.005, 1), (0.5, 100), (0.95, 190), (0.99, 198), (0.991, 199), (1.0, 200)]
)
def test_percentiles_are_values_that_occurred(share: float, value: int) -> None:
    assert percentile(list(range(200, 0, -1)), share) == value


def test_the_percentile_of_one_value() -> None:
    assert percentile([7.0], 0.99) == 7.0
