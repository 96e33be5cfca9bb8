"""Gates whose trials were drawn from two strata of the space."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ft2.verdict import (
    Budget,
    Counts,
    Stratum,
    TwoStageSample,
    Verdict,
    decide,
    decide_stratified,
)

RATES = st.floats(0.01, 0.99)


def verdict(
    top: tuple[int, int, int],
    others: tuple[int, int, int],
    budget: Budget,
    problems: tuple[str, ...] = (),
) -> Verdict:
    strata = [Stratum("top", 1 / 16, *top), Stratum("others", 15 / 16, *others)]
    return decide_stratified(strata, 1000, budget, problems)


@given(st.floats(0.05, 0.6), RATES, RATES, st.integers(1, 9), st.integers(1, 9))
def test_the_rate_is_unbiased(
    weight: float, top_rate: float, other_rate: float, top: int, others: int
) -> None:
    mean = 0.0
    for first in range(top + 1):
        for second in range(others + 1):
            chance = binom.pmf(first, top, top_rate) * binom.pmf(second, others, other_rate)
            mean += chance * TwoStageSample(0, 0, weight, top, first, others, second).rate
    assert mean == pytest.approx(100 * (weight * top_rate + (1 - weight) * other_rate), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(100, 600), st.data())
def test_the_interval_holds_the_rate_and_ends_at_zero_where_nothing_was_seen(
    top: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, top))
    second = data.draw(st.sampled_from([0, 0, 3]))
    found = verdict((top, first, 0), (1000 - top, second, 0), Budget(100))
    assert found.rate is not None
    assert found.interval is not None
    assert found.interval[0] <= found.rate + 1e-6 <= found.interval[1] + 2e-6
    if first == second == 0:
        assert found.interval[0] == 0
        # Nothing was seen among fewer trials of what is most of the space.
        uniform = decide(Counts(1000, 1000, 0, 0), Budget(100)).interval
        assert uniform is not None
        assert uniform[1] * 0.9 < found.interval[1] < uniform[1] * 1000 / (1000 - top) * 1.2


def test_a_gate_compares_the_weighted_rate_not_the_count() -> None:
    found = verdict((300, 30, 0), (700, 0, 0), Budget(1))
    assert found.rate == pytest.approx(100 * 30 / 300 / 16)
    assert found.name == "pass"
    assert found.reason.startswith(
        "30 of 1000 faults changed a right answer into a wrong one, 0.625 % of the space they were "
        "drawn from, within the budget of 1 %."
    )
    assert verdict((300, 0, 0), (700, 30, 0), Budget(1)).name == "fail"


def test_detected_errors_are_weighted_too() -> None:
    assert verdict((300, 0, 100), (700, 0, 0), Budget(1, due=5)).name == "pass"
    found = verdict((300, 0, 0), (700, 0, 100), Budget(1, due=5))
    assert found.name == "fail"
    assert "13.4 % of the space they were drawn from, over the due_budget of 5 %" in found.reason


def test_what_would_decide_is_said_of_uniformly_drawn_faults() -> None:
    found = verdict((300, 30, 0), (700, 0, 0), Budget(0.7, confidence=0.95))
    assert found.name == "inconclusive"
    assert "uniformly drawn faults would decide at this rate" in found.reason


@pytest.mark.parametrize(
    ("top", "others", "sentence"),
    [
        ((300, 0, 0), (699, 0, 0), "1 of 1000 trials have no outcome."),
        ((0, 0, 0), (1000, 0, 0), "No trial was drawn from the stratum top."),
    ],
)
def test_trials_that_are_missing_leave_no_rate(
    top: tuple[int, int, int], others: tuple[int, int, int], sentence: str
) -> None:
    found = verdict(top, others, Budget(100))
    assert (found.name, found.reason, found.rate) == ("incomplete", sentence, None)


def test_a_problem_or_unknown_strata_make_it_incomplete() -> None:
    found = verdict((300, 0, 0), (700, 0, 0), Budget(100), problems=("It broke.",))
    assert (found.name, found.reason) == ("incomplete", "It broke.")
    found = decide_stratified([], 1000, Budget(100))
    assert (found.name, found.reason) == ("incomplete", "1000 of 1000 trials have no outcome.")
