"""Intervals for the mean of bounded values."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.verdict import interval, interval_for_new_prompts, mean_interval
from ft2.verdict import weighted_interval as interval_of_weighted
from ft2.verdict.betting import log_wealth

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=40)
CONFIDENCES = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@given(VALUES, CONFIDENCES)
def test_the_interval_holds_the_mean_of_what_was_seen(
    values: list[float], confidence: float
) -> None:
    low, high = mean_interval(values, confidence=confidence)
    mean = sum(values) / len(values)
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 1


@given(VALUES, CONFIDENCES)
def test_more_confidence_is_wider_and_mirrored_values_are_mirrored(
    values: list[float], confidence: float
) -> None:
    low, high = mean_interval(values, confidence=confidence)
    wider = mean_interval(values, confidence=0.999)
    assert wider[0] <= low + 1e-9
    assert high <= wider[1] + 1e-9
    mirrored = mean_interval([1 - value for value in values], confidence=confidence)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-6)


@given(VALUES, st.floats(0.1, 50))
def test_the_unit_of_the_values_does_not_matter(values: list[float], largest: float) -> None:
    low, high = mean_interval(values)
    scaled = mean_interval([largest * value for value in values], largest=largest)
    assert scaled == pytest.approx((largest * low, largest * high), rel=1e-4, abs=1e-6)


@given(VALUES)
def test_the_order_of_the_values_does_not_matter(values: list[float]) -> None:
    assert mean_interval(values) == pytest.approx(mean_interval(values[::-1]), abs=1e-9)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0]), st.integers(1, 6)), min_size=1))
def test_values_can_be_counted(counted: list[tuple[float, int]]) -> None:
    values, counts = zip(*counted, strict=True)
    written_out = [value for value, count in counted for _ in range(count)]
    assert mean_interval(values, counts) == pytest.approx(mean_interval(written_out), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(1, 9), st.floats(0.1, 1))
def test_the_mean_of_yes_and_no_is_covered_as_promised_for_every_number_of_them(
    rate: float, trials: int, size: float
) -> None:
    missed = 0.0
    for events in range(trials + 1):
        low, high = mean_interval([0.0, size], [trials - events, events], confidence=0.9)
        if not low <= rate * size <= high:
            missed += math.comb(trials, events) * rate**events * (1 - rate) ** (trials - events)
    assert missed <= 0.1 + 1e-9


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 0.95), st.integers(2, 8))
def test_with_the_planned_number_told_the_mean_is_covered_at_all_looks_at_once(
    rate: float, planned: int
) -> None:
    @cache
    def holds(events: int, seen: int) -> bool:
        low, high = mean_interval(
            [0.0, 1.0], [seen - events, events], confidence=0.8, planned=planned
        )
        return low <= rate <= high

    missed = 0.0
    for outcome in itertools.product((0, 1), repeat=planned):
        if not all(holds(sum(outcome[:seen]), seen) for seen in range(1, planned + 1)):
            missed += math.prod(rate if one else 1 - rate for one in outcome)
    assert missed <= 0.2 + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.05, 0.95), min_size=2, max_size=4))
def test_values_with_different_means_are_covered_too(rates: list[float]) -> None:
    missed = 0.0
    for outcome in itertools.product((0, 1), repeat=len(rates)):
        low, high = mean_interval([float(one) for one in outcome], confidence=0.8)
        if not low <= sum(rates) / len(rates) <= high:
            missed += math.prod(
                rate if one else 1 - rate for rate, one in zip(rates, outcome, strict=True)
            )
    assert missed <= 0.2 + 1e-9


@given(st.integers(1, 40), st.floats(0.01, 0.99))
def test_fair_bets_are_expected_to_leave_one_unit(bets: int, rate: float) -> None:
    gain = (1 - rate) / rate
    mean = sum(
        math.comb(bets, wins)
        * rate**wins
        * (1 - rate) ** (bets - wins)
        * math.exp(log_wealth([gain, -1.0], [wins, bets - wins], most=gain))
        for wins in range(bets + 1)
    )
    assert mean == pytest.approx(1, rel=1e-6)


@given(st.integers(1, 2000), st.floats(0.01, 0.99), st.data())
def test_with_the_planned_number_told_one_more_fair_bet_is_expected_to_change_nothing(
    planned: int, rate: float, data: st.DataObject
) -> None:
    wins = data.draw(st.integers(0, planned - 1))
    losses = data.draw(st.integers(0, planned - 1 - wins))
    gain = (1 - rate) / rate

    def wealth(wins: int, losses: int) -> float:
        return log_wealth([gain, -1.0], [wins, losses], most=gain, planned=planned)

    after = np.logaddexp(
        math.log(rate) + wealth(wins + 1, losses), math.log1p(-rate) + wealth(wins, losses + 1)
    )
    assert after == pytest.approx(wealth(wins, losses), abs=1e-6)


@pytest.mark.parametrize("trials", [3, 16, 500, 20_000])
def test_where_nothing_was_seen_the_interval_is_the_exact_one(trials: int) -> None:
    low, high = mean_interval([0.0], [trials])
    assert (100 * low, 100 * high) == pytest.approx(interval(0, trials), rel=0.05)


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_values_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="values should be from 0 to 1"):
        mean_interval([value])


def test_a_few_clean_prompts_say_little_of_new_ones_however_many_trials_each_had() -> None:
    for trials in (1, 31, 10_000):
        found = interval_for_new_prompts([(0, trials)] * 16)
        assert found == pytest.approx((0, 20.6), abs=0.1)


def test_prompts_that_agree_say_more_of_new_ones_than_prompts_that_do_not() -> None:
    agreeing = interval_for_new_prompts([(3, 30)] * 40)
    apart = interval_for_new_prompts([(30, 30)] * 4 + [(0, 30)] * 36)
    assert agreeing is not None
    assert apart is not None
    assert agreeing[0] <= 10 <= agreeing[1]
    assert apart[0] < agreeing[0] < agreeing[1] < apart[1]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(2, 20)), min_size=2, max_size=8),
    st.data(),
    st.floats(0.001, 0.999),
)
def test_the_wealth_after_fewer_trials_is_on_average_the_wealth_after_more(
    counted: list[tuple[int, int]], data: st.DataObject, mean: float
) -> None:
    # So the interval for new prompts may be looked at after each trial.
    counted = [(min(events, trials), trials) for events, trials in counted]
    place = data.draw(st.integers(0, len(counted) - 1))
    events, trials = counted[place]

    def wealth(events: int, trials: int) -> float:
        now = [*counted[:place], (events, trials), *counted[place + 1 :]]
        gains = [(mean - each / of) / (1 - mean) for each, of in now]
        return math.exp(log_wealth(gains, [1] * len(now), mean / (1 - mean)))

    # Which of the trials was the last, nobody knows who sees their sum.
    last = events / trials
    before = (1 - last) * wealth(events, trials - 1) if events < trials else 0.0
    before += last * wealth(events - 1, trials - 1) if events else 0.0
    assert before == pytest.approx(wealth(events, trials), rel=1e-9)


def test_one_prompt_says_nothing_of_others() -> None:
    assert interval_for_new_prompts([(3, 500)]) is None
    assert interval_for_new_prompts([(3, 500), (0, 0)]) is None


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_with_equal_weights_the_weighted_interval_is_the_unweighted_one(
    events: list[bool],
) -> None:
    plain = mean_interval([float(event) for event in events])
    weighted = interval_of_weighted([1.0] * len(events), events, largest=1.0)
    assert weighted == pytest.approx((100 * plain[0], 100 * plain[1]), abs=1e-6)


def test_a_heavy_site_that_was_never_hit_widens_the_weighted_interval() -> None:
    events = [number < 5 for number in range(1000)]
    light = interval_of_weighted([1.0] * 1000, events, largest=1.0)
    heavy = interval_of_weighted([1.0] * 1000, events, largest=20.0)
    assert heavy[1] > 2 * light[1]
