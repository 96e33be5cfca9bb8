"""Exact intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from ft2.verdict import interval, lower_bound, upper_bound


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    trials = draw(st.integers(1, 20_000))
    return draw(st.integers(0, trials)), trials


CONFIDENCES = st.floats(0.51, 0.999)


def exact_upper(events: int, trials: int, confidence: float) -> float:
    """Return Clopper and Pearson's bound as the quantile of a beta distribution."""
    if events == trials:
        return 100.0
    return 100 * float(beta.ppf(confidence, events + 1, trials - events))


def exact_lower(events: int, trials: int, confidence: float) -> float:
    if events == 0:
        return 0.0
    return 100 * float(beta.ppf(1 - confidence, events, trials - events + 1))


@given(counts(), CONFIDENCES)
def test_bounds_are_quantiles_of_beta_distributions(
    counted: tuple[int, int], confidence: float
) -> None:
    assert upper_bound(*counted, confidence) == pytest.approx(
        exact_upper(*counted, confidence), rel=1e-6
    )
    assert lower_bound(*counted, confidence) == pytest.approx(
        exact_lower(*counted, confidence), rel=1e-6, abs=1e-12
    )


@given(counts())
def test_the_interval_holds_the_rate_and_cuts_2_5_per_cent_on_each_side(
    counted: tuple[int, int],
) -> None:
    events, trials = counted
    low, high = interval(events, trials)
    assert 0 <= low <= 100 * events / trials <= high <= 100
    assert low == pytest.approx(exact_lower(events, trials, 0.975), rel=1e-6, abs=1e-12)
    assert high == pytest.approx(exact_upper(events, trials, 0.975), rel=1e-6)


@given(counts(), CONFIDENCES)
def test_more_confidence_means_wider_bounds(counted: tuple[int, int], confidence: float) -> None:
    assert upper_bound(*counted, confidence) <= upper_bound(*counted, 0.9999) + 1e-9
    assert lower_bound(*counted, confidence) >= lower_bound(*counted, 0.9999) - 1e-9


def test_known_values() -> None:
    # The rule of three, and the interval of 3 in 500 from the design's example.
    assert upper_bound(0, 500, 0.95) == pytest.approx(0.5974, abs=1e-3)
    assert interval(3, 500) == pytest.approx((0.1239, 1.7434), abs=1e-3)
