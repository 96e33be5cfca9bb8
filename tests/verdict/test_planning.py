"""What a plan can prove, and whether another seed would decide otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ft2.verdict import (
    Allocation,
    Budget,
    Counts,
    SequentialRule,
    Strata,
    Stratum,
    chance_of_another_early_verdict,
    chance_of_another_stratified_verdict,
    chance_of_another_verdict,
    chance_of_passing,
    decide,
    decide_stratified,
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


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize(("events", "trials"), [(0, 800), (3, 900), (30, 2000)])
def test_the_chance_of_another_early_verdict_is_that_of_campaigns_of_models_like_this(
    events: int, trials: int, confidence: float
) -> None:
    rule = SequentialRule(2000, Budget(1, 100, confidence), confidence)
    name = rule.decide(Counts(2000, trials - events, events, 0)) or "inconclusive"
    random = np.random.default_rng(1)
    others = 0
    for rate in random.beta(events + 0.5, trials - events + 0.5, size=300):
        seen = 0
        # One trial after the other, each looked at.
        for number, wrong in enumerate(random.random(2000) < rate, start=1):
            seen += int(wrong)
            decision = rule.decide(Counts(2000, number - seen, seen, 0))
            if decision is not None:
                break
        others += (decision or "inconclusive") != name
    chance = chance_of_another_early_verdict(events, trials, rule, name)
    assert chance == pytest.approx(100 * others / 300, abs=10)


@pytest.mark.parametrize("confidence", [None, 0.95])
@pytest.mark.parametrize(
    ("weights", "seen", "allocated", "allowed"),
    [
        ((1 / 16, 15 / 16), ((900, 105), (2100, 1)), (1125, (750, 0)), 0.8),
        ((0.1, 0.3, 0.6), ((800, 200), (1000, 40), (1200, 2)), (1125, (500, 250, 0)), 3.7),
    ],
)
def test_the_chance_of_another_stratified_verdict_is_that_of_campaigns_of_models_like_this(
    weights: tuple[float, ...],
    seen: tuple[tuple[int, int], ...],
    allocated: tuple[int, tuple[int, ...]],
    allowed: float,
    confidence: float | None,
) -> None:
    names = tuple(map(str, range(len(weights))))
    strata = [
        Stratum(name, weight, *of, 0) for name, weight, of in zip(names, weights, seen, strict=True)
    ]
    allocation = Allocation(1125, *allocated, Strata(names, weights, {}))
    budget, random = Budget(allowed, 100, confidence), np.random.default_rng(1)
    found = [stratified_verdict(strata, allocation, budget, random) for _ in range(80)]
    for verdict in set(found):
        chance = chance_of_another_stratified_verdict(strata, allocation, budget, verdict)
        expected = 100 * (1 - found.count(verdict) / len(found))
        assert chance == pytest.approx(expected, abs=20)


def stratified_verdict(
    seen: list[Stratum], allocation: Allocation, budget: Budget, random: np.random.Generator
) -> str:
    """Run one campaign of a model like this, trial by trial."""
    rates = np.array([random.beta(each.sdc + 0.5, each.trials - each.sdc + 0.5) for each in seen])
    uniform = random.choice(
        len(seen), allocation.first + allocation.uniform, p=[each.weight for each in seen]
    )
    first, later = uniform[: allocation.first], uniform[allocation.first :]
    later = np.append(later, np.repeat(range(len(seen)), allocation.more))

    def strata(struck: NDArray[np.int64]) -> list[Stratum]:
        wrong = random.random(len(struck)) < rates[struck]
        return [
            Stratum(
                each.name, each.weight, int((struck == at).sum()), int(wrong[struck == at].sum()), 0
            )
            for at, each in enumerate(seen)
        ]

    return decide_stratified(strata(first), strata(later), allocation, budget).name
