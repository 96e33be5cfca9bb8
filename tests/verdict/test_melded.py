"""Bounds of the mean over any number of strata."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, chi2

from ft2.verdict import interval
from ft2.verdict.melded import Melded


def bounds(melded: Melded, level: float = 0.025) -> tuple[float, float]:
    """Return the limits of what is not refuted."""
    low = high = 0.0
    if melded.doubts_of_less(0.0, level) <= 0:
        low = brentq(lambda rate: melded.doubts_of_less(rate, level), 0, 1, xtol=1e-10)
    high = 1.0
    if melded.doubts_of_more(1.0, level) <= 0:
        high = brentq(lambda rate: melded.doubts_of_more(rate, level), 0, 1, xtol=1e-10)
    return low, high


@st.composite
def strata(draw: st.DrawFn, most: int = 5, trials: int = 3000) -> Melded:
    shares = draw(st.lists(st.floats(0.02, 1), min_size=1, max_size=most))
    numbers = [draw(st.integers(1, trials)) for _ in shares]
    events = [draw(st.integers(0, number)) for number in numbers]
    return Melded(tuple(share / sum(shares) for share in shares), tuple(numbers), tuple(events))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20_000), st.data())
def test_of_one_stratum_the_lower_is_the_exact_one_and_neither_is_ever_closer(
    trials: int, data: st.DataObject
) -> None:
    events = data.draw(st.integers(0, trials))
    low, high = bounds(Melded((1.0,), (trials,), (events,)))
    exact_low, exact_high = (end / 100 for end in interval(events, trials))
    width = exact_high - exact_low
    assert exact_low - 0.001 * width - 1e-9 <= low <= exact_low + 1e-9
    assert exact_high - 1e-9 <= high <= exact_high + 3 / trials


@pytest.mark.parametrize("events", [0, 3, 40])
def test_where_events_are_rare_the_upper_is_the_exact_one_of_poisson_counts(events: int) -> None:
    trials = 10**7
    _, high = bounds(Melded((0.2, 0.3, 0.5), (2 * trials, 3 * trials, 5 * trials), (events, 0, 0)))
    assert 10 * trials * high == pytest.approx(chi2.ppf(0.975, 2 * events + 2) / 2, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(strata(), st.integers(1, 4))
def test_the_order_of_the_strata_changes_nothing(melded: Melded, by: int) -> None:
    rows = list(zip(melded.weights, melded.trials, melded.events, strict=True))
    weights, trials, events = zip(*rows[by:], *reversed(rows[:by]), strict=True)
    other = Melded(weights, trials, events)
    assert bounds(other) == pytest.approx(bounds(melded), abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(strata())
def test_they_hold_the_estimate_and_are_nested_by_level(melded: Melded) -> None:
    seen = zip(melded.weights, melded.trials, melded.events, strict=True)
    mean = math.fsum(weight * events / trials for weight, trials, events in seen)
    wide, narrow = bounds(melded, 0.005), bounds(melded, 0.1)
    assert wide[0] <= narrow[0] + 1e-9
    assert narrow[1] <= wide[1] + 1e-9
    assert wide[0] - 1e-9 <= mean <= wide[1] + 1e-9


@pytest.mark.parametrize(
    ("weights", "trials", "events"),
    [
        ((0.02, 0.08, 0.3, 0.6), (3000, 3000, 3000, 5000), (600, 200, 30, 3)),
        ((0.1, 0.2, 0.7), (40, 50, 60), (40, 3, 0)),
        ((0.3, 0.3, 0.4), (5, 7, 9), (0, 0, 0)),
        ((0.5, 0.25, 0.25), (30, 10**9, 10**9), (3, 10**8, 0)),
    ],
)
def test_they_are_the_quantiles_of_sums_of_betas_the_upper_with_one_more_event(
    weights: tuple[float, ...], trials: tuple[int, ...], events: tuple[int, ...]
) -> None:
    random, draws = np.random.default_rng(0), 1_000_000
    heaviest = max(weight / number for weight, number in zip(weights, trials, strict=True))
    lows, highs = np.zeros(draws), heaviest * random.exponential(1, draws)
    for weight, number, seen in zip(weights, trials, events, strict=True):
        if seen:
            lows += weight * random.beta(seen, number - seen + 1, draws)
            misses = number - seen
            highs += weight * (random.beta(seen, misses, draws) if misses else 1.0)
    low, high = bounds(Melded(weights, trials, events))
    error = 0.01 * (high - low)
    assert low == pytest.approx(np.quantile(lows, 0.025), abs=error)
    assert high == pytest.approx(np.quantile(highs, 0.975), abs=error)


def test_what_no_level_is_left_for_is_not_refuted() -> None:
    melded = Melded((0.2, 0.3, 0.5), (100, 100, 100), (50, 0, 0))
    assert melded.doubts_of_more(0.9, 0.0) > 0
    assert melded.doubts_of_less(1e-6, 0.0) > 0


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(0.02, 1), min_size=3, max_size=3),
    st.lists(st.floats(0, 1).map(lambda rate: round(rate, 9)), min_size=3, max_size=3),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.sampled_from([0.025, 0.05, 0.2]),
)
def test_a_true_mean_over_three_strata_is_refuted_no_oftener_than_the_level_allows(
    shares: list[float], rates: list[float], trials: list[int], level: float
) -> None:
    weights = tuple(share / sum(shares) for share in shares)
    true = math.fsum(weight * rate for weight, rate in zip(weights, rates, strict=True))
    few = many = 0.0
    for events in product(*(range(each + 1) for each in trials)):
        chance = math.prod(
            float(binom.pmf(seen, each, rate))
            for seen, each, rate in zip(events, trials, rates, strict=True)
        )
        melded = Melded(weights, tuple(trials), events)
        few += chance * (melded.doubts_of_more(true, level) <= 0)
        many += chance * (melded.doubts_of_less(true, level) <= 0)
    assert few <= level + 1e-9
    assert many <= level + 1e-9
