"""The verdict of a campaign that stopped before its last trial."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.verdict import (
    Budget,
    Counts,
    Verdict,
    always_valid_interval,
    decide_early,
    stopping_rule,
)

BUDGET = Budget(0.5, 5, 0.95)


def verdict(trials: int, sdc: int, budget: Budget = BUDGET, due: int = 0) -> Verdict:
    return decide_early(Counts(2000, trials - sdc - due, sdc, due), budget)


def test_a_pass_says_after_how_many_trials_and_how_many_were_not_needed() -> None:
    found = verdict(756, 0)
    assert found.name == "pass"
    assert found.reason == (
        "0 of the first 756 of 2000 faults changed a right answer into a wrong one, 0 %. With 95 % "
        "confidence, however often it was looked at, the rate is within the budget of 0.5 %. The "
        "1244 other planned trials were not needed."
    )


def test_a_fail_says_so() -> None:
    found = verdict(45, 5)
    assert found.name == "fail"
    assert "the rate is over the budget of 0.5 %" in found.reason


def test_a_campaign_that_never_decided_is_inconclusive() -> None:
    found = verdict(2000, 7)
    assert found.name == "inconclusive"
    said = re.search(r"a plan of about (\d+) faults would decide if it stays", found.reason)
    assert said is not None
    trials = int(said[1])
    events = round(7 * trials / 2000)
    assert (
        stopping_rule(trials, BUDGET).decide(Counts(trials, trials - events, events, 0)) == "pass"
    )
    assert trials > 2000
    assert "not needed" not in found.reason


def test_at_a_rate_that_equals_the_budget_no_number_of_faults_decides() -> None:
    found = verdict(2000, 10)
    assert found.name == "inconclusive"
    assert "no number of faults decides while the rate equals the budget." in found.reason


def test_without_confidence_it_says_that_no_other_trial_could_change_the_verdict() -> None:
    found = verdict(63, 11, Budget(0.5))
    assert found.name == "fail"
    assert "Whatever the others would show, the rate of all 2000 is over the budget" in found.reason
    assert verdict(2000, 10, Budget(0.5)).name == "pass"


def test_too_many_dues_are_named() -> None:
    found = verdict(150, 0, due=101)
    assert found.name == "fail"
    assert found.reason.startswith("0 of the first 150 of 2000 faults changed")
    assert "101 trials ended in a detected error, over the due_budget of 5 % of 2000" in (
        found.reason
    )


def test_no_trial_is_never_a_pass() -> None:
    nothing = Counts(0, 0, 0, 0)
    assert decide_early(nothing, Budget(100)).reason == (
        "No trial was planned, so nothing was tested."
    )
    for budget in (Budget(100), Budget(100, 100, 0.95)):
        assert decide_early(Counts(5, 0, 0, 0), budget).name == "incomplete"


@given(
    st.integers(1, 300),
    st.builds(
        Budget,
        sdc=st.floats(0, 100),
        due=st.floats(0, 100),
        confidence=st.none() | st.sampled_from([0.8, 0.95]),
    ),
    st.data(),
)
def test_trials_are_missing_unless_the_rule_decided_without_them(
    planned: int, budget: Budget, data: st.DataObject
) -> None:
    seen = data.draw(st.integers(1, planned))
    sdc = data.draw(st.integers(0, seen))
    due = data.draw(st.integers(0, seen - sdc))
    counts = Counts(planned, seen - sdc - due, sdc, due)
    found = decide_early(counts, budget)
    decision = stopping_rule(planned, budget).decide(counts)
    assert found.rate == 100 * sdc / seen
    assert found.interval == always_valid_interval(sdc, seen)
    if decision is None and seen < planned:
        assert found.name == "incomplete"
        assert f"{planned - seen} of {planned} trials have no outcome." in found.reason
    else:
        assert found.name == (decision or "inconclusive")
        assert decide_early(counts, budget, ["Something broke."]).name == "incomplete"


@pytest.mark.parametrize("budget", [Budget(0.5), BUDGET])
def test_what_is_inconclusive_needs_a_confidence(budget: Budget) -> None:
    names = {verdict(2000, sdc, budget).name for sdc in range(40)}
    assert ("inconclusive" in names) == (budget.confidence is not None)
