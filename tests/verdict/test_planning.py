"""What a plan can prove, and whether another seed would decide otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.verdict import (
    Budget,
    Counts,
    chance_of_another_verdict,
    chance_of_passing,
    decide,
    least_trials,
    never_passes,
    upper_bound,
)

CONFIDENCES = st.floats(0.51, 0.999)


@given(st.floats(0.01, 99.9), CONFIDENCES)
def test_the_least_number_of_trials_proves_the_budget_and_one_less_does_not(
    budget: float, confidence: float
) -> None:
    trials = least_trials(budget, confidence)
    assert trials is not None
    assert upper_bound(0, trials, confidence) <= budget
    assert trials == 1 or upper_bound(0, trials - 1, confidence) > budget


def test_598_clean_trials_prove_half_a_per_cent() -> None:
    assert least_trials(0.5, 0.95) == 598
    assert least_trials(100, 0.95) == 1
    assert least_trials(0, 0.95) is None


def test_a_plan_that_can_never_pass_says_how_many_faults_could() -> None:
    assert never_passes(597, Budget(0.5, 5, 0.95)) == (
        "597 faults without a single SDC do not prove a rate within 0.5 % with 95 % confidence, so "
        "this gate can never pass: plan at least 598 (--ft2-faults=598), or leave confidence out"
    )
    assert never_passes(598, Budget(0.5, 5, 0.95)) is None
    assert "no number of faults proves a rate within 0 %" in str(
        never_passes(598, Budget(0, 5, 0.95))
    )
    assert never_passes(1, Budget(0)) is None


@given(
    st.integers(1, 2000),
    st.builds(Budget, sdc=st.floats(0, 100), confidence=st.none() | CONFIDENCES),
)
def test_exactly_the_plans_whose_clean_campaign_does_not_pass_are_warned_of(
    planned: int, budget: Budget
) -> None:
    clean = decide(Counts(planned, planned, 0, 0), budget)
    assert (never_passes(planned, budget) is None) == (clean.name == "pass")


def test_a_model_at_1_per_cent_passes_half_a_per_cent_in_12_of_100_campaigns_of_500() -> None:
    assert chance_of_passing(1, 500, Budget(0.5)) == pytest.approx(12, abs=0.5)


@pytest.mark.parametrize("budget", [Budget(1), Budget(1, 5, 0.95), Budget(0.6, 5, 0.8)])
@pytest.mark.parametrize("events", [0, 2, 5, 9, 20])
def test_the_chance_of_another_verdict_is_that_of_campaigns_of_models_like_this(
    budget: Budget, events: int
) -> None:
    planned = 700
    verdict = decide(Counts(planned, planned - events, events, 0), budget).name
    random = np.random.default_rng(events)
    rates = random.beta(events + 0.5, planned - events + 0.5, size=4000)
    others = random.binomial(planned, rates)
    names = {
        other: decide(Counts(planned, planned - other, other, 0), budget).name
        for other in map(int, np.unique(others))
    }
    seen = 100 * np.mean([names[int(other)] != verdict for other in others])
    chance = chance_of_another_verdict(events, planned, planned, budget)
    assert chance == pytest.approx(seen, abs=4)


@given(st.integers(1, 500), st.floats(0, 100), st.data())
def test_a_chance_is_one(planned: int, budget: float, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, planned))
    assert 0 <= chance_of_another_verdict(events, planned, planned, Budget(budget)) <= 100
