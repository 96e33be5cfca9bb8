"""The same faults met twice."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from ft2.verdict import Pairs, compare, decide_reduction

NUMBERS = st.integers(0, 60)
PAIRS = st.builds(
    Pairs, both=NUMBERS, only_before=NUMBERS, only_after=NUMBERS, neither=st.integers(1, 3000)
)


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_pairs_are_counted(outcomes: list[tuple[bool, bool]]) -> None:
    pairs = Pairs.of(outcomes)
    assert pairs.trials == len(outcomes)
    assert pairs.before == sum(before for before, _ in outcomes)
    assert pairs.after == sum(after for _, after in outcomes)


@given(PAIRS)
def test_mcnemars_test_looks_at_the_faults_that_changed_alone(pairs: Pairs) -> None:
    changed = pairs.only_before + pairs.only_after
    expected = binomtest(pairs.only_before, changed, 0.5).pvalue if changed else 1.0
    assert pairs.p_value == pytest.approx(expected)


@given(PAIRS)
def test_the_paired_interval_holds_the_difference_and_turns_round_with_it(pairs: Pairs) -> None:
    low, high = pairs.difference_interval()
    assert -100 <= low <= pairs.difference + 1e-6
    assert pairs.difference - 1e-6 <= high <= 100
    turned = Pairs(pairs.both, pairs.only_after, pairs.only_before, pairs.neither)
    assert turned.difference == pytest.approx(-pairs.difference)
    assert turned.difference_interval() == pytest.approx((-high, -low), abs=1e-4)


@given(PAIRS)
def test_the_bounds_of_a_reduction_hold_it(pairs: Pairs) -> None:
    if pairs.reduction is not None:
        assert pairs.reduction_proven(0.95) <= pairs.reduction + 1e-6
        assert pairs.reduction <= pairs.reduction_possible(0.95) + 1e-6


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(*[st.floats(0.01, 1)] * 4).map(lambda x: [each / sum(x) for each in x]),
    st.integers(1, 5),
)
def test_bounds_of_a_reduction_are_wrong_no_oftener_than_their_confidence_allows(
    chances: list[float], trials: int
) -> None:
    true = 100 * (1 - (chances[0] + chances[2]) / (chances[0] + chances[1]))
    too_high = too_low = 0.0
    for both in range(trials + 1):
        for before in range(trials - both + 1):
            for after in range(trials - both - before + 1):
                counts = (both, before, after, trials - both - before - after)
                ways = math.factorial(trials) // math.prod(map(math.factorial, counts))
                chance = ways * math.prod(
                    share**count for share, count in zip(chances, counts, strict=True)
                )
                pairs = Pairs(*counts)
                too_high += chance * (pairs.reduction_proven(0.8) > true + 1e-6)
                too_low += chance * (pairs.reduction_possible(0.8) < true - 1e-6)
    assert too_high <= 0.2 + 1e-9
    assert too_low <= 0.2 + 1e-9


ORDER = {"fail": 0, "inconclusive": 1, "pass": 2}


@given(PAIRS, st.floats(1, 100), st.none() | st.sampled_from([0.9, 0.95]))
def test_asking_for_less_never_makes_the_verdict_worse(
    pairs: Pairs, at_least: float, confidence: float | None
) -> None:
    less = decide_reduction(pairs, at_least / 2, confidence)
    assert ORDER[decide_reduction(pairs, at_least, confidence).name] <= ORDER[less.name]


def test_a_protection_that_cuts_most_sdcs_passes_with_confidence() -> None:
    verdict = decide_reduction(Pairs(5, 40, 1, 454), 50, 0.95)
    assert verdict.name == "pass"
    assert verdict.reason.startswith(
        "45 of 500 faults were SDCs before and 6 after, 86.7 % fewer; with 95 % confidence at "
        "least 6"
    )


def test_a_protection_that_does_nothing_fails() -> None:
    for confidence in (None, 0.95):
        verdict = decide_reduction(Pairs(30, 2, 2, 466), 50, confidence)
        assert verdict.name == "fail"
        assert "32 of 500 faults were SDCs before and 32 after, 0 % fewer" in verdict.reason


def test_too_few_faults_are_inconclusive() -> None:
    verdict = decide_reduction(Pairs(0, 3, 0, 497), 50, 0.95)
    assert verdict.name == "inconclusive"
    assert verdict.reason.endswith("inject more faults.")


@pytest.mark.parametrize("pairs", [Pairs(0, 0, 0, 0), Pairs(0, 0, 0, 500), Pairs(0, 0, 5, 495)])
def test_where_nothing_was_to_be_cut_nothing_passes(pairs: Pairs) -> None:
    for confidence in (None, 0.95):
        verdict = decide_reduction(pairs, 50, confidence)
        assert verdict.name == "inconclusive"
        assert "there was nothing to cut" in verdict.reason


@pytest.mark.parametrize(
    ("at_least", "confidence", "sentence"),
    [
        (0, None, "at_least should be a number above 0 and at most 100, not 0"),
        (101, None, "at_least should be a number above 0 and at most 100, not 101"),
        (50, 95, "confidence should be None or between 0.5 and 1, not 95"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    at_least: float, confidence: float | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        decide_reduction(Pairs(1, 1, 1, 1), at_least, confidence)


def record(number: int, outcome: str | None = "masked", **values: Any) -> dict[str, Any]:
    return {"trial": number, "fault": f"fault {number}", "outcome": outcome} | values


def test_two_campaigns_are_paired_by_the_number_of_the_trial() -> None:
    before = [record(0, "sdc"), record(1, "sdc"), record(2), record(3, "due"), record(4)]
    after = [record(4, "sdc"), record(3), record(2), record(1, "due"), record(0, "sdc")]
    assert compare(before, after) == Pairs(both=1, only_before=1, only_after=1, neither=2)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ([], [], "needs the same trials in both campaigns, not 0 and 0"),
        ([record(0)], [record(0), record(1)], "the same trials in both campaigns, not 1 and 2"),
        ([record(0)], [record(0, fault="x")], "trial 0 met fault 0 before and x after: give both"),
        ([record(0, fault=None)], [record(0, fault=None)], "trial 0 met None before and None"),
        ([record(0)], [record(0, None)], "trial 0 has no outcome, so there is nothing to compare"),
        ([record(0, stratum="a")], [record(0, stratum="a")], "trial 0 was drawn by strata"),
    ],
)
def test_campaigns_that_did_not_meet_the_same_faults_are_not_compared(
    before: list[dict[str, Any]], after: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        compare(before, after)
