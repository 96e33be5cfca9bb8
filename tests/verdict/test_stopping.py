"""When a campaign may stop, and what it then promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.verdict import Budget, Counts, SequentialRule, decide, stopping_rule

CONFIDENCES = st.sampled_from([0.6, 0.8, 0.9, 0.95, 0.99])
BUDGETS = st.sampled_from([0.0, 0.5, 1.0, 5.0, 20.0, 50.0, 90.0, 100.0])


def prefix(planned: int, trials: int, sdc: int, due: int = 0) -> Counts:
    return Counts(planned, trials - sdc - due, sdc, due)


def chances(rule: SequentialRule, rate: float) -> dict[str | None, float]:
    """Return the probability of each decision, by following every count after every trial."""
    ends: dict[str | None, float] = {"pass": 0.0, "fail": 0.0, None: 0.0}
    undecided = np.ones(1)
    for trials in range(1, rule.planned + 1):
        undecided = np.convolve(undecided, [1 - rate, rate])
        for events in np.flatnonzero(undecided):
            decision = rule.decide(prefix(rule.planned, trials, int(events)))
            if decision is not None:
                ends[decision] += undecided[events]
                undecided[events] = 0.0
    ends[None] = float(undecided.sum())
    return ends


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), BUDGETS, CONFIDENCES, st.floats(0, 1))
def test_a_wrong_decision_is_no_likelier_than_the_confidence_allows(
    planned: int, budget: float, confidence: float, away: float
) -> None:
    rule = SequentialRule(planned, Budget(budget, 100, confidence), confidence)
    at_budget = budget / 100
    bad = chances(rule, at_budget + away * (1 - at_budget))
    good = chances(rule, at_budget * (1 - away))
    risk = 1 - confidence + 1e-9
    # A rate that equals the budget is within it.
    if away > 0 and budget < 100:
        assert bad["pass"] <= risk
    assert good["fail"] <= risk


@pytest.mark.parametrize("budget", [1.0, 5.0, 20.0])
def test_what_the_looks_left_of_the_risk_is_spent_at_the_last_trial(budget: float) -> None:
    rule = SequentialRule(300, Budget(budget, 100, 0.95), 0.95)
    at_budget = chances(rule, budget / 100)
    assert at_budget["pass"] <= 0.05
    more_lenient = decide(prefix(300, 300, rule.last_pass + 1), Budget(budget, 100, 0.95))
    # One more event would be more than even the fixed plan allows, or than the risk is worth.
    assert more_lenient.name != "pass" or at_budget["pass"] > 0.02


@given(st.integers(1, 400), BUDGETS, CONFIDENCES, st.data())
def test_one_more_sdc_never_turns_a_decision_to_pass(
    planned: int, budget: float, confidence: float, data: st.DataObject
) -> None:
    rule = stopping_rule(planned, Budget(budget, 100, confidence))
    trials = data.draw(st.integers(1, planned))
    events = data.draw(st.integers(0, trials - 1))
    order = {"pass": 0, None: 1, "fail": 2}
    fewer, more = (rule.decide(prefix(planned, trials, sdc)) for sdc in (events, events + 1))
    assert order[fewer] <= order[more]


def test_598_clean_trials_pass_half_a_per_cent_and_597_do_not_though_looked_at_throughout() -> None:
    for planned, decision in ((598, "pass"), (597, None)):
        rule = stopping_rule(planned, Budget(0.5, confidence=0.95))
        assert rule.decide(prefix(planned, planned, 0)) == decision
        assert rule.decide(prefix(planned, planned - 1, 0)) is None


def stop(rate: float, seed: int, planned: int = 20_000) -> tuple[str | None, int]:
    """Return how a campaign of a model with this rate ends, and after how many trials."""
    rule = stopping_rule(planned, Budget(0.5, confidence=0.95))
    seen = np.cumsum(np.random.default_rng(seed).random(planned) < rate)
    for trials in range(1, planned + 1):
        decision = rule.decide(prefix(planned, trials, int(seen[trials - 1])))
        if decision is not None:
            return decision, trials
    return None, planned


def test_a_bad_model_is_refused_after_some_100_trials_and_a_good_one_accepted_by_2100() -> None:
    bad = [stop(0.09, seed) for seed in range(40)]
    good = [stop(0.0005, seed) for seed in range(40)]
    assert {decision for decision, _ in bad} == {"fail"}
    assert np.mean([trials for _, trials in bad]) <= 60
    assert np.quantile([trials for _, trials in bad], 0.9) <= 100
    # Of a good one, 5 in 100 may be refused.
    accepted = [trials for decision, trials in good if decision == "pass"]
    assert len(accepted) >= 38
    assert min(accepted) >= 700
    assert np.quantile(accepted, 0.9) <= 2100


OUTCOMES = st.lists(st.sampled_from(["masked", "sdc", "due"]), min_size=1, max_size=60)


@given(OUTCOMES, st.floats(0, 100), st.floats(0, 100))
def test_without_confidence_the_first_decision_is_the_verdict_of_all_trials(
    outcomes: list[str], sdc: float, due: float
) -> None:
    budget, planned = Budget(sdc, due), len(outcomes)
    rule = stopping_rule(planned, budget)
    names = ("masked", "sdc", "due")
    decisions = [
        rule.decide(Counts(planned, *(outcomes[:seen].count(name) for name in names)))
        for seen in range(planned + 1)
    ]
    final = decide(Counts(planned, *(outcomes.count(name) for name in names)), budget).name
    assert decisions[-1] == final
    assert set(decisions) <= {None, final}


def test_without_confidence_one_trial_less_could_still_have_changed_the_verdict() -> None:
    rule = stopping_rule(500, Budget(0.5))
    assert rule.decide(prefix(500, 60, 3)) == "fail"
    assert rule.decide(prefix(500, 60, 2)) is None
    assert rule.decide(prefix(500, 498, 0)) == "pass"
    assert rule.decide(prefix(500, 497, 0)) is None


def test_dues_fail_as_soon_as_they_must_exceed_their_budget() -> None:
    rule = stopping_rule(2000, Budget(0.5, 5, 0.95))
    assert rule.decide(prefix(2000, 200, 0, due=101)) == "fail"
    assert rule.decide(prefix(2000, 200, 0, due=100)) is None


def test_a_campaign_does_not_stop_to_pass_while_its_dues_may_exceed_their_budget() -> None:
    rule = stopping_rule(2000, Budget(0.5, 5, 0.95))
    assert rule.decide(prefix(2000, 800, 0)) == "pass"
    assert rule.decide(prefix(2000, 800, 0, due=36)) is None
    # At the last trial the observed rate of DUEs decides, as without stopping early.
    assert rule.decide(prefix(2000, 2000, 0, due=100)) == "pass"
