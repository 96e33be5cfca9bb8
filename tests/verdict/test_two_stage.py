"""Uniform trials, then strata, and an interval that holds whatever the first ones showed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ft2.verdict import Budget, Counts, TwoStageSample, decide, interval
from ft2.verdict.two_stage import _conditional_level

RATES = st.floats(0.01, 0.99)
LEVELS = st.sampled_from([0.01, 0.025, 0.05, 0.2])


@given(st.integers(2, 300), st.data(), RATES, LEVELS)
def test_the_level_left_after_the_first_stage_is_the_level_on_average(
    trials: int, data: st.DataObject, rate: float, level: float
) -> None:
    first = data.draw(st.integers(1, trials - 1))
    chances = binom.pmf(np.arange(first + 1), first, rate)
    left = [_conditional_level(events, first, trials, rate, level) for events in range(first + 1)]
    assert math.fsum(chances * left) == pytest.approx(level, rel=1e-6)


@st.composite
def samples(draw: st.DrawFn) -> TwoStageSample:
    """Draw outcomes that a campaign could well have: both stages are of the same rates."""
    first, hot, cold = (draw(st.integers(5, 300)) for _ in range(3))
    weight, hot_rate, cold_rate = draw(st.floats(0.02, 0.8)), draw(RATES), draw(RATES)
    rates = (weight * hot_rate + (1 - weight) * cold_rate, hot_rate, cold_rate)
    events = [
        int(binom.ppf(draw(st.floats(0.01, 0.99)), trials, rate))
        for trials, rate in zip((first, hot, cold), rates, strict=True)
    ]
    return TwoStageSample(first, events[0], weight, hot, events[1], cold, events[2])


@settings(max_examples=60, deadline=None)
@given(samples())
def test_the_interval_holds_the_estimate_and_is_nested_by_confidence(
    sample: TwoStageSample,
) -> None:
    low, high = sample.interval()
    assert 0 <= low <= sample.rate + 1e-6
    assert sample.rate - 1e-6 <= high <= 100
    narrow_low, narrow_high = sample.interval(0.8)
    assert low <= narrow_low + 1e-5
    assert narrow_high <= high + 1e-5


@settings(max_examples=60, deadline=None)
@given(samples(), st.floats(0, 1), LEVELS)
def test_what_is_beyond_a_bound_is_refuted_and_nothing_else(
    sample: TwoStageSample, place: float, level: float
) -> None:
    low, high = sample.lower_bound(1 - level) / 100, sample.upper_bound(1 - level) / 100
    above = high + (1 - high) * place
    if above > high + 1e-6 and above < 1:
        assert sample.refutes_at_least(above, level)
    below = low * place
    if 0 < below < low - 1e-6:
        assert sample.refutes_at_most(below, level)
    between = low + (high - low) * place
    if sample.rate / 100 + 1e-6 < between < high - 1e-6:
        assert not sample.refutes_at_least(between, level)
    if low + 1e-6 < between < sample.rate / 100 - 1e-6:
        assert not sample.refutes_at_most(between, level)


@settings(max_examples=40, deadline=None)
@given(samples())
def test_one_more_event_never_lowers_a_bound(sample: TwoStageSample) -> None:
    given = sample.__dict__.copy()
    names = TwoStageSample.__dataclass_fields__
    values = {name: given[name] for name in names}
    for stratum in ("hot", "cold"):
        more = values | {f"{stratum}_events": values[f"{stratum}_events"] + 1}
        if more[f"{stratum}_events"] <= more[f"{stratum}_trials"]:
            other = TwoStageSample(**more)
            assert other.upper_bound(0.95) >= sample.upper_bound(0.95) - 1e-5
            assert other.lower_bound(0.95) >= sample.lower_bound(0.95) - 1e-5


@given(st.integers(1, 5000), st.data())
def test_where_the_sampling_stayed_uniform_the_interval_is_that_of_uniform_sampling(
    trials: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, trials))
    first_events = data.draw(st.integers(0, first))
    events = data.draw(st.integers(0, trials - first))
    sample = TwoStageSample(first, first_events, 1 / 16, 0, 0, trials - first, events)
    counts = Counts(trials, trials - first_events - events, first_events + events, 0)
    assert sample.rate == pytest.approx(100 * (first_events + events) / trials)
    assert sample.interval() == interval(first_events + events, trials)
    for budget in (Budget(1), Budget(1, 5, 0.95)):
        assert decide(counts, budget, (), sample).name == decide(counts, budget).name


@given(st.floats(0.05, 0.6), RATES, RATES, st.integers(2, 12), st.integers(2, 12))
def test_the_estimate_is_unbiased(
    weight: float, hot_rate: float, cold_rate: float, hot: int, cold: int
) -> None:
    true = weight * hot_rate + (1 - weight) * cold_rate
    mean = sum(
        binom.pmf(first, 2, true)
        * binom.pmf(seen, hot, hot_rate)
        * binom.pmf(rest, cold, cold_rate)
        * TwoStageSample(2, first, weight, hot, seen, cold, rest).rate
        for first in range(3)
        for seen in range(hot + 1)
        for rest in range(cold + 1)
    )
    assert mean == pytest.approx(100 * true, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.05, 0.5),
    RATES,
    RATES,
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 5),
    st.sampled_from([0.05, 0.2]),
)
def test_a_true_rate_is_refuted_no_oftener_than_the_level_allows(
    weight: float, hot_rate: float, cold_rate: float, hot: int, cold: int, first: int, level: float
) -> None:
    true = weight * hot_rate + (1 - weight) * cold_rate
    few = many = 0.0
    for first_events in range(first + 1):
        for seen in range(hot + 1):
            for rest in range(cold + 1):
                chance = (
                    binom.pmf(first_events, first, true)
                    * binom.pmf(seen, hot, hot_rate)
                    * binom.pmf(rest, cold, cold_rate)
                )
                sample = TwoStageSample(first, first_events, weight, hot, seen, cold, rest)
                few += chance * sample.refutes_at_least(true, level)
                many += chance * sample.refutes_at_most(true, level)
    assert few <= level + 1e-9
    assert many <= level + 1e-9
