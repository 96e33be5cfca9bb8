"""Where the trials behind the first ones are drawn from, and what that can never cost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.verdict import (
    Allocation,
    AllocationRule,
    Budget,
    Counts,
    Stratum,
    decide,
    decide_stratified,
    interval,
    never_passes,
)

WEIGHTS = st.floats(0.01, 0.5)


@given(st.integers(0, 50_000), st.integers(1, 40))
def test_it_looks_at_whole_rounds_of_the_prompts_and_keeps_most_trials_for_later(
    planned: int, stride: int
) -> None:
    looks = AllocationRule(planned, stride).looks
    assert list(looks) == sorted(set(looks))
    assert all(look % stride == 0 and 0 < look <= 0.7 * planned for look in looks)


@given(st.integers(1, 30_000), st.integers(1, 20), WEIGHTS, st.data())
def test_an_allocation_runs_as_many_trials_as_were_planned(
    planned: int, stride: int, weight: float, data: st.DataObject
) -> None:
    rule = AllocationRule(planned, stride)
    if not rule.looks:
        return
    first = data.draw(st.sampled_from(rule.looks))
    hot = data.draw(st.integers(0, first))
    events = data.draw(st.integers(0, hot)), data.draw(st.integers(0, first - hot))
    found = rule.allot(weight, hot, events[0], first - hot, events[1])
    if found is not None:
        assert found.first + found.uniform + found.hot == planned
        assert found.first == first
        assert 0 < found.hot <= rule.most_hot
        assert found.hot % stride == 0
        # Half of the uniform trials stay, at least.
        assert found.uniform >= 0.5 * (planned - first)


@given(st.integers(1, 100_000), WEIGHTS, st.data())
def test_with_two_sdcs_or_fewer_the_sampling_stays_uniform(
    planned: int, weight: float, data: st.DataObject
) -> None:
    rule = AllocationRule(planned)
    for first in rule.looks:
        hot = data.draw(st.integers(0, first))
        events = data.draw(st.sampled_from([(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]))
        if events[0] <= hot and events[1] <= first - hot:
            assert rule.allot(weight, hot, events[0], first - hot, events[1]) is None


def test_sdcs_that_all_are_in_the_hot_stratum_draw_trials_there() -> None:
    found = AllocationRule(16_000, 16).allot(1 / 16, 125, 4, 1875, 0)
    assert found is not None
    assert 0.1 * 14_000 - 16 <= found.hot <= 0.5 * 14_000


@pytest.mark.parametrize("events", [(1, 15), (4, 60), (3, 3), (8, 24)])
def test_sdcs_all_over_the_space_leave_the_sampling_uniform(events: tuple[int, int]) -> None:
    assert AllocationRule(16_000).allot(1 / 16, 125, events[0], 1875, events[1]) is None


@settings(deadline=None)
@given(st.integers(1, 3000), st.floats(0.05, 60), st.floats(0.6, 0.99), WEIGHTS, st.data())
def test_a_plan_that_can_never_pass_uniformly_cannot_by_strata_either(
    planned: int, budget: float, confidence: float, weight: float, data: st.DataObject
) -> None:
    gate = Budget(budget, 100, confidence)
    rule = AllocationRule(planned)
    clean = decide(Counts(planned, planned, 0, 0), gate).name
    assert (never_passes(planned, gate) is None) == (clean == "pass")
    if clean == "pass" or not rule.looks:
        return
    # Nor does the luckiest campaign that went over to strata: all later trials are masked.
    first = data.draw(st.sampled_from(rule.looks))
    hot = data.draw(st.integers(0, first))
    events = data.draw(st.integers(0, hot)), data.draw(st.integers(0, first - hot))
    allocation = rule.allot(weight, hot, events[0], first - hot, events[1])
    if allocation is None:
        return
    more = data.draw(st.integers(0, allocation.uniform))
    seen = (
        [
            Stratum("hot", weight, hot, events[0], 0),
            Stratum("cold", 1 - weight, first - hot, events[1], 0),
        ],
        [
            Stratum("hot", weight, allocation.hot + more, 0, 0),
            Stratum("cold", 1 - weight, allocation.uniform - more, 0, 0),
        ],
    )
    assert decide_stratified(*seen, allocation, gate).name != "pass"


def test_nothing_that_is_fixed_beforehand_but_proportional_is_as_narrow_without_an_sdc() -> None:
    # What a clean campaign of unequal shares proves is what its most neglected stratum proves.
    weight, planned = 1 / 16, 16_000
    for hot in (500, 2000, 5000):
        strata = [
            Stratum("hot", weight, hot, 0, 0),
            Stratum("cold", 1 - weight, planned - hot, 0, 0),
        ]
        none = [Stratum("hot", weight, 0, 0, 0), Stratum("cold", 1 - weight, 0, 0, 0)]
        found = decide_stratified(none, strata, Allocation(0, planned - hot, hot), Budget(100))
        assert found.interval is not None
        neglected = min(hot / weight, (planned - hot) / (1 - weight)) / planned
        assert neglected < 1
        assert found.interval[1] >= interval(0, planned)[1] / neglected * 0.999
