"""A pilot, strata, and an interval that holds whatever the pilot showed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ft2.verdict import Budget, Counts, TwoStageSample, allocate, decide, interval, pilot_size
from ft2.verdict.strata import _conditional_level

RATES = st.floats(0.01, 0.99)
LEVELS = st.sampled_from([0.01, 0.025, 0.05, 0.2])


@given(st.integers(2, 300), st.data(), RATES, LEVELS)
def test_the_level_left_after_the_pilot_is_the_level_on_average(
    trials: int, data: st.DataObject, rate: float, level: float
) -> None:
    pilot = data.draw(st.integers(1, trials - 1))
    chances = binom.pmf(np.arange(pilot + 1), pilot, rate)
    left = [_conditional_level(events, pilot, trials, rate, level) for events in range(pilot + 1)]
    assert math.fsum(chances * left) == pytest.approx(level, rel=1e-6)


@st.composite
def samples(draw: st.DrawFn) -> TwoStageSample:
    pilot, hot, cold = (draw(st.integers(5, 300)) for _ in range(3))
    return TwoStageSample(
        pilot_trials=pilot,
        pilot_events=draw(st.integers(1, pilot)),
        hot_weight=draw(st.floats(0.02, 0.8)),
        hot_trials=hot,
        hot_events=draw(st.integers(0, hot)),
        cold_trials=cold,
        cold_events=draw(st.integers(0, cold)),
    )


@settings(max_examples=30, deadline=None)
@given(samples())
def test_the_interval_holds_the_estimate_and_is_nested_by_confidence(
    sample: TwoStageSample,
) -> None:
    low, high = sample.interval()
    assert 0 <= low <= sample.rate + 1e-6
    assert sample.rate - 1e-6 <= high <= 100
    narrow_low, narrow_high = sample.interval(0.8)
    assert low <= narrow_low + 1e-6
    assert narrow_high <= high + 1e-6


@given(st.integers(8, 5000), st.data())
def test_where_the_sampling_stayed_uniform_everything_is_as_if_there_had_been_no_pilot(
    trials: int, data: st.DataObject
) -> None:
    pilot = pilot_size(trials)
    first = data.draw(st.integers(0, pilot))
    second = data.draw(st.integers(0, trials - pilot))
    sample = TwoStageSample(pilot, first, 0.0, 0, 0, trials - pilot, second)
    counts = Counts(trials, trials - first - second, first + second, 0)
    assert sample.rate == pytest.approx(100 * (first + second) / trials)
    assert sample.interval() == interval(first + second, trials)
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
    # A rate is 100 % at most, which the sum of the weights can exceed where trials are few.
    assert mean <= 100 * true + 1e-6
    if weight <= (hot / (hot + cold)) and hot_rate < 0.2 and cold_rate < 0.2:
        assert mean == pytest.approx(100 * true, rel=0.02)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 0.5), RATES, RATES, st.integers(1, 6), st.integers(1, 6), st.integers(0, 5))
def test_a_true_rate_is_refuted_no_oftener_than_the_level_allows(
    weight: float, hot_rate: float, cold_rate: float, hot: int, cold: int, pilot: int
) -> None:
    true = weight * hot_rate + (1 - weight) * cold_rate
    few = many = 0.0
    for first in range(pilot + 1):
        for seen in range(hot + 1):
            for rest in range(cold + 1):
                chance = (
                    binom.pmf(first, pilot, true)
                    * binom.pmf(seen, hot, hot_rate)
                    * binom.pmf(rest, cold, cold_rate)
                )
                sample = TwoStageSample(pilot, first, weight, hot, seen, cold, rest)
                few += chance * sample.refutes_at_least(true, 0.2)
                many += chance * sample.refutes_at_most(true, 0.2)
    assert few <= 0.2 + 1e-9
    assert many <= 0.2 + 1e-9


def test_a_stratum_that_holds_nearly_all_events_gets_most_of_the_trials() -> None:
    weights = [1 / 16] * 16
    events = [0] * 14 + [40, 1]
    found = allocate(weights, [100] * 16, events, 11_200)
    assert found.hot == (14,)
    assert found.weight == pytest.approx(1 / 16)
    assert 11_200 / 3 < found.trials < 11_200


@pytest.mark.parametrize("events", [[0] * 16, [1] * 16, [0] * 14 + [1, 1], [2, 0, 1, 1] * 4])
def test_where_the_pilot_shows_no_gain_the_sampling_stays_uniform(events: list[int]) -> None:
    assert allocate([1 / 16] * 16, [100] * 16, events, 11_200).hot == ()


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.integers(1, 200)), min_size=1, max_size=8), st.data()
)
def test_every_stratum_keeps_half_of_its_share_at_least(
    strata: list[tuple[float, int]], data: st.DataObject
) -> None:
    total = sum(weight for weight, _ in strata)
    weights = [weight / total for weight, _ in strata]
    trials = [count for _, count in strata]
    events = [data.draw(st.integers(0, count)) for count in trials]
    later = data.draw(st.integers(0, 5000))
    found = allocate(weights, trials, events, later)
    assert found.weight == pytest.approx(sum(weights[number] for number in found.hot))
    assert later - found.trials >= 0.5 * (1 - found.weight) * later - 1e-6
    if found.hot:
        assert 0 < found.weight < 1
        assert found.trials < later
