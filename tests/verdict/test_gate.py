"""From counts to a verdict."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.verdict import Budget, Counts, decide, is_lost_already, lower_bound, upper_bound

ORDER = {"pass": 0, "inconclusive": 1, "fail": 2}


@st.composite
def complete(draw: st.DrawFn) -> Counts:
    planned = draw(st.integers(1, 3000))
    sdc = draw(st.integers(0, planned))
    due = draw(st.integers(0, planned - sdc))
    return Counts(planned, planned - sdc - due, sdc, due)


@st.composite
def unfinished(draw: st.DrawFn) -> Counts:
    counts = draw(complete())
    masked = draw(st.integers(0, max(0, counts.masked - 1)))
    return Counts(counts.planned + 1, masked, counts.sdc, counts.due)


PERCENTS = st.floats(0, 100, allow_nan=False)
BUDGETS = st.builds(
    Budget, sdc=PERCENTS, due=PERCENTS, confidence=st.none() | st.floats(0.51, 0.999)
)


@given(complete(), BUDGETS)
def test_one_more_sdc_never_makes_a_verdict_better(counts: Counts, budget: Budget) -> None:
    if counts.masked == 0:
        return
    worse = Counts(counts.planned, counts.masked - 1, counts.sdc + 1, counts.due)
    assert ORDER[decide(counts, budget).name] <= ORDER[decide(worse, budget).name]


@given(complete(), BUDGETS)
def test_one_more_due_never_makes_a_verdict_better(counts: Counts, budget: Budget) -> None:
    if counts.masked == 0:
        return
    worse = Counts(counts.planned, counts.masked - 1, counts.sdc, counts.due + 1)
    assert ORDER[decide(counts, budget).name] <= ORDER[decide(worse, budget).name]


@given(unfinished(), BUDGETS)
def test_a_missing_trial_makes_the_verdict_incomplete_and_stays_in_the_denominator(
    counts: Counts, budget: Budget
) -> None:
    verdict = decide(counts, budget)
    assert verdict.name == "incomplete"
    assert verdict.rate == 100 * counts.sdc / counts.planned
    missing = counts.planned - counts.seen
    assert f"{missing} of {counts.planned} trials have no outcome." in verdict.reason


@given(complete(), BUDGETS, st.lists(st.text(min_size=1), min_size=1))
def test_a_problem_makes_the_verdict_incomplete_and_is_shown(
    counts: Counts, budget: Budget, problems: list[str]
) -> None:
    verdict = decide(counts, budget, problems)
    assert verdict.name == "incomplete"
    assert all(problem in verdict.reason for problem in problems)


@given(BUDGETS)
def test_nothing_planned_is_incomplete(budget: Budget) -> None:
    verdict = decide(Counts(0, 0, 0, 0), budget)
    assert verdict.name == "incomplete"
    assert verdict.reason == "No trial was planned, so nothing was tested."
    assert verdict.rate is None
    assert verdict.interval is None


@given(complete(), PERCENTS)
def test_without_confidence_the_observed_rate_decides(counts: Counts, budget: float) -> None:
    verdict = decide(counts, Budget(budget, due=100))
    within = 100 * counts.sdc / counts.planned <= budget
    assert verdict.name == ("pass" if within else "fail")


@given(complete(), PERCENTS, st.floats(0.51, 0.999))
def test_with_confidence_the_bounds_decide(
    counts: Counts, budget: float, confidence: float
) -> None:
    verdict = decide(counts, Budget(budget, 100, confidence))
    if upper_bound(counts.sdc, counts.planned, confidence) <= budget:
        assert verdict.name == "pass"
    elif lower_bound(counts.sdc, counts.planned, confidence) > budget:
        assert verdict.name == "fail"
    else:
        assert verdict.name == "inconclusive"


@pytest.mark.parametrize(("planned", "name"), [(598, "pass"), (597, "inconclusive")])
def test_598_clean_trials_prove_half_a_per_cent_and_597_do_not(planned: int, name: str) -> None:
    counts = Counts(planned, planned, 0, 0)
    assert decide(counts, Budget(0.5, confidence=0.95)).name == name
    plain = decide(counts, Budget(0.5))
    assert plain.name == "pass"
    assert ("too few to prove it" in plain.reason) == (name != "pass")


def test_500_clean_trials_say_what_they_prove() -> None:
    reason = decide(Counts(500, 500, 0, 0), Budget(0.5)).reason
    assert (
        "too few to prove it: with 95 % confidence (one-sided) the rate is below 0.60 %." in reason
    )


@given(complete(), st.floats(0.01, 100))
def test_what_is_said_to_be_proven_is_proven(counts: Counts, budget: float) -> None:
    verdict = decide(counts, Budget(budget, due=100))
    said = re.search(r"the rate is below ([\d.]+) %", verdict.reason)
    if said is not None:
        assert float(said[1]) >= upper_bound(counts.sdc, counts.planned, 0.95)


@given(st.integers(1, 1000), st.data())
def test_an_inconclusive_verdict_says_how_many_faults_decide(
    planned: int, data: st.DataObject
) -> None:
    sdc = data.draw(st.integers(0, planned))
    budget = Budget(data.draw(st.sampled_from([0.5, 1.0, 5.0, 30.0])), 100, 0.95)
    verdict = decide(Counts(planned, planned - sdc, sdc, 0), budget)
    said = re.search(r"about (\d+) faults would decide", verdict.reason)
    assert (verdict.name == "inconclusive") == (
        said is not None or "no number of faults decides" in verdict.reason
    )
    if said is not None:
        trials = int(said[1])
        assert trials > planned
        events = round(sdc * trials / planned)
        assert decide(Counts(trials, trials - events, events, 0), budget).name != "inconclusive"


def test_detected_errors_over_their_budget_fail() -> None:
    verdict = decide(Counts(100, 94, 0, 6), Budget(50, due=5))
    assert verdict.name == "fail"
    assert "6 of 100 trials ended in a detected error, 6 %, over the due_budget of 5 %" in (
        verdict.reason
    )
    assert decide(Counts(100, 95, 0, 5), Budget(50, due=5)).name == "pass"


def test_a_rate_that_equals_the_budget_passes_and_is_not_lost_already() -> None:
    # 0.57 * 10,000 / 100 is a little less than 57.
    counts = Counts(10_000, 9_943, 57, 0)
    assert decide(counts, Budget(0.57)).name == "pass"
    assert not is_lost_already(Counts(10_000, 0, 57, 0), Budget(0.57))


@given(unfinished(), BUDGETS)
def test_what_is_lost_already_stays_lost(counts: Counts, budget: Budget) -> None:
    if is_lost_already(counts, budget):
        best = Counts(
            counts.planned, counts.planned - counts.sdc - counts.due, counts.sdc, counts.due
        )
        assert decide(best, budget).name == "fail"
