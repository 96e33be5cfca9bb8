"""Uniform trials, then strata, and an interval that holds whatever the first ones showed."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ft2.verdict import Budget, Counts, LaterStratum, TwoStageSample, decide, interval
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
    shares = draw(st.lists(st.floats(0.05, 1), min_size=2, max_size=4))
    weights = [share / sum(shares) for share in shares]
    rates = [draw(RATES) for _ in weights]
    mean = math.fsum(weight * rate for weight, rate in zip(weights, rates, strict=True))

    def outcome(rate: float) -> tuple[int, int]:
        trials = draw(st.integers(5, 300))
        return trials, int(binom.ppf(draw(st.floats(0.01, 0.99)), trials, rate))

    return TwoStageSample(
        *outcome(mean),
        tuple(
            LaterStratum(weight, *outcome(rate))
            for weight, rate in zip(weights, rates, strict=True)
        ),
    )


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
    # A melded bound's grid depends on the outcomes, a little.
    little = 1e-5 if len(sample.later) == 2 else 0.02
    for place, stratum in enumerate(sample.later):
        if stratum.events < stratum.trials:
            later = list(sample.later)
            later[place] = replace(stratum, events=stratum.events + 1)
            other = replace(sample, later=tuple(later))
            assert other.upper_bound(0.95) >= sample.upper_bound(0.95) - little
            assert other.lower_bound(0.95) >= sample.lower_bound(0.95) - little


@given(st.integers(1, 5000), st.data())
def test_where_the_sampling_stayed_uniform_the_interval_is_that_of_uniform_sampling(
    trials: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, trials))
    first_events = data.draw(st.integers(0, first))
    events = data.draw(st.integers(0, trials - first))
    sample = TwoStageSample(first, first_events, (LaterStratum(1.0, trials - first, events),))
    counts = Counts(trials, trials - first_events - events, first_events + events, 0)
    assert sample.rate == pytest.approx(100 * (first_events + events) / trials)
    assert sample.interval() == interval(first_events + events, trials)
    for budget in (Budget(1), Budget(1, 5, 0.95)):
        assert decide(counts, budget, (), sample).name == decide(counts, budget).name


def two_strata(
    first: int, first_events: int, weight: float, hot: tuple[int, int], cold: tuple[int, int]
) -> TwoStageSample:
    later = LaterStratum(weight, *hot), LaterStratum(1 - weight, *cold)
    return TwoStageSample(first, first_events, later)


@given(st.floats(0.05, 0.6), RATES, RATES, st.integers(2, 12), st.integers(2, 12))
def test_the_estimate_is_unbiased(
    weight: float, hot_rate: float, cold_rate: float, hot: int, cold: int
) -> None:
    true = weight * hot_rate + (1 - weight) * cold_rate
    mean = sum(
        binom.pmf(first, 2, true)
        * binom.pmf(seen, hot, hot_rate)
        * binom.pmf(rest, cold, cold_rate)
        * two_strata(2, first, weight, (hot, seen), (cold, rest)).rate
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
                sample = two_strata(first, first_events, weight, (hot, seen), (cold, rest))
                few += chance * sample.refutes_at_least(true, level)
                many += chance * sample.refutes_at_most(true, level)
    assert few <= level + 1e-9
    assert many <= level + 1e-9


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.floats(0.1, 1), min_size=3, max_size=3),
    st.lists(RATES, min_size=3, max_size=3),
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    st.integers(0, 3),
    st.sampled_from([0.05, 0.2]),
)
def test_a_true_rate_over_three_strata_is_refuted_no_oftener_than_the_level_allows(
    shares: list[float], rates: list[float], trials: list[int], first: int, level: float
) -> None:
    weights = [share / sum(shares) for share in shares]
    true = math.fsum(weight * rate for weight, rate in zip(weights, rates, strict=True))
    few = many = 0.0
    for first_events, *events in product(range(first + 1), *(range(each + 1) for each in trials)):
        chance = binom.pmf(first_events, first, true) * math.prod(
            binom.pmf(seen, each, rate)
            for seen, each, rate in zip(events, trials, rates, strict=True)
        )
        later = map(LaterStratum, weights, trials, events)
        sample = TwoStageSample(first, first_events, tuple(later))
        few += chance * sample.refutes_at_least(true, level)
        many += chance * sample.refutes_at_most(true, level)
    assert few <= level + 1e-9
    assert many <= level + 1e-9
