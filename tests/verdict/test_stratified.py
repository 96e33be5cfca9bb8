"""Gates whose trials were drawn from strata of the space."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ft2.verdict import (
    Allocation,
    Budget,
    LaterStratum,
    Strata,
    Stratum,
    TwoStageSample,
    Verdict,
    decide_stratified,
    interval,
    interval_over_strata,
)
from ft2.verdict.stratified import two_stage_samples

Seen = tuple[int, int, int]

TWO = Strata(("top", "others"), (1 / 16, 15 / 16), {})


def verdict(
    top: Seen,
    others: Seen,
    budget: Budget,
    problems: tuple[str, ...] = (),
    first: tuple[Seen, Seen] = ((6, 0, 0), (94, 0, 0)),
) -> Verdict:
    """Decide a gate of 1000 trials, given as (trials, SDCs, DUEs) of each stratum."""
    early, late = (
        [Stratum("top", 1 / 16, *hot), Stratum("others", 15 / 16, *cold)]
        for hot, cold in (first, (top, others))
    )
    return decide_stratified(early, late, Allocation(100, 650, (250, 0), TWO), budget, problems)


def test_a_gate_compares_the_weighted_rate_not_the_count() -> None:
    found = verdict((300, 30, 0), (600, 0, 0), Budget(1))
    assert found.rate == pytest.approx(100 * 0.9 * 30 / 300 / 16)
    assert found.rate is not None
    assert found.interval is not None
    assert found.interval[0] < found.rate < found.interval[1]
    assert found.name == "pass"
    assert found.reason.startswith(
        "30 of 1000 faults changed a right answer into a wrong one, 0.562 % of the space they were "
        "drawn from, within the budget of 1 %."
    )
    assert verdict((300, 0, 0), (600, 30, 0), Budget(1)).name == "fail"


def test_detected_errors_are_weighted_too() -> None:
    assert verdict((300, 0, 100), (600, 0, 0), Budget(1, due=5)).name == "pass"
    found = verdict((300, 0, 0), (600, 0, 100), Budget(1, due=5))
    assert found.name == "fail"
    assert "14.1 % of the space they were drawn from, over the due_budget of 5 %" in found.reason


def test_a_gate_with_confidence_says_pass_fail_or_what_would_decide() -> None:
    sure = Budget(2, confidence=0.95)
    found = verdict((300, 30, 0), (600, 0, 0), sure)
    assert found.name == "pass"
    assert found.reason.startswith("With 95 % confidence the rate is at most ")
    found = verdict(
        (300, 120, 0), (600, 0, 0), Budget(1, confidence=0.95), first=((6, 3, 0), (94, 0, 0))
    )
    assert found.name == "fail"
    assert found.reason.startswith("With 95 % confidence the rate is at least ")
    found = verdict((300, 30, 0), (600, 0, 0), Budget(0.7, confidence=0.95))
    assert found.name == "inconclusive"
    assert "uniformly drawn faults would decide at this rate" in found.reason


@pytest.mark.parametrize(
    ("top", "others", "sentence"),
    [
        ((300, 0, 0), (599, 0, 0), "1 of 1000 trials have no outcome."),
        ((0, 0, 0), (900, 0, 0), "No later trial was drawn from the stratum top."),
    ],
)
def test_trials_that_are_missing_leave_no_rate(top: Seen, others: Seen, sentence: str) -> None:
    found = verdict(top, others, Budget(100))
    assert (found.name, found.reason, found.rate) == ("incomplete", sentence, None)


def test_each_stratum_counts_by_its_share_however_many_there_are() -> None:
    names, weights = ("a", "b", "c"), (0.1, 0.3, 0.6)
    first = [Stratum(*each, 20, 1, 0) for each in zip(names, weights, strict=True)]
    seen = ((100, 50, 3), (120, 12, 2), (180, 0, 1))
    later = [
        Stratum(*each, *of) for each, of in zip(zip(names, weights, strict=True), seen, strict=True)
    ]
    allocation = Allocation(60, 200, (90, 60, 50), Strata(names, weights, {}))
    found = decide_stratified(first, later, allocation, Budget(20, 50))
    sdc, due = two_stage_samples(first, later)
    assert sdc == TwoStageSample(
        60, 3, (LaterStratum(0.1, 100, 50), LaterStratum(0.3, 120, 12), LaterStratum(0.6, 180, 0))
    )
    assert (due.first_events, [each.events for each in due.later]) == (0, [3, 2, 1])
    assert found.rate == pytest.approx(100 * (3 + 400 * (0.1 * 0.5 + 0.3 * 0.1)) / 460)
    assert (found.name, found.interval) == ("pass", sdc.interval())


def test_a_problem_makes_it_incomplete() -> None:
    found = verdict((300, 0, 0), (600, 0, 0), Budget(100), problems=("It broke.",))
    assert (found.name, found.reason) == ("incomplete", "It broke.")


@settings(max_examples=20, deadline=None)
@given(
    st.floats(0.05, 0.95), st.floats(0, 1), st.floats(0, 1), st.integers(1, 6), st.integers(1, 6)
)
def test_an_interval_over_strata_misses_the_mean_no_oftener_than_its_confidence_allows(
    weight: float, hot_rate: float, cold_rate: float, hot: int, cold: int
) -> None:
    true = 100 * (weight * hot_rate + (1 - weight) * cold_rate)
    missed = 0.0
    for seen in range(hot + 1):
        for rest in range(cold + 1):
            low, high = interval_over_strata(
                [
                    (weight, partial(interval, seen, hot)),
                    (1 - weight, partial(interval, rest, cold)),
                ],
                confidence=0.8,
            )
            if not low - 1e-9 <= true <= high + 1e-9:
                missed += binom.pmf(seen, hot, hot_rate) * binom.pmf(rest, cold, cold_rate)
    assert missed <= 0.2 + 1e-9


def test_an_interval_over_one_stratum_is_its_own() -> None:
    assert interval_over_strata([(1.0, partial(interval, 3, 50))]) == interval(3, 50)
