"""Where the trials behind the first ones are drawn from, and what that can never cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.verdict import (
    POOL,
    Allocation,
    AllocationRule,
    Budget,
    Cell,
    Counts,
    Strata,
    Stratum,
    decide,
    decide_stratified,
    interval,
    never_passes,
    stratified_campaigns,
)

WEIGHTS = st.floats(0.01, 0.5)


def population() -> dict[Cell, float]:
    """Return the shares of cells of two kinds and 16 bits, whose values differ in size."""
    cells = [
        Cell(kind, phase, bit, bit == 14, exponent + (16 if bit == 14 else bit - 10))
        for kind in ("attention", "mlp")
        for phase in ("first", "later")
        for bit in range(16)
        for exponent in range(-6, 3)
    ]
    return dict.fromkeys(cells, 1 / len(cells))


MASSES = population()
TWO = Strata.of(MASSES, {cell: int(not cell.top) for cell in MASSES}, ("hot", "cold"))


def seen(trials: int, rate: Callable[[Cell], float], seed: int = 0) -> list[tuple[Cell, bool]]:
    """Draw trials uniformly."""
    random, cells = np.random.default_rng(seed), [*MASSES]
    struck = [cells[at] for at in random.integers(len(cells), size=trials)]
    return [(cell, bool(random.random() < rate(cell))) for cell in struck]


def by_size(cell: Cell) -> float:
    return 0.4 if cell.size > -2 else 0.0


def alike(rate: float, cell: Cell) -> float:
    return rate


@given(st.integers(0, 50_000), st.integers(1, 40))
def test_it_looks_at_whole_rounds_of_the_prompts_and_keeps_most_trials_for_later(
    planned: int, stride: int
) -> None:
    looks = AllocationRule(planned, stride).looks
    assert list(looks) == sorted(set(looks))
    assert all(look % stride == 0 and 0 < look <= 0.7 * planned for look in looks)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 2000),
    st.integers(1, 20),
    st.floats(0, 0.3),
    st.floats(0, 0.9),
    st.data(),
)
def test_an_allocation_runs_as_many_trials_as_were_planned(
    planned: int, stride: int, others: float, top: float, data: st.DataObject
) -> None:
    rule = AllocationRule(planned, stride)
    if not rule.looks:
        return
    first = data.draw(st.sampled_from(rule.looks))
    found = rule.allot(
        MASSES, seen(first, lambda cell: top if cell.top else others * by_size(cell))
    )
    if found is not None:
        assert found.first == first
        assert found.first + found.uniform + sum(found.more) == planned
        assert len(found.more) == len(found.strata.names) >= 2
        assert all(more >= 0 for more in found.more)
        assert 0 < sum(found.more) <= rule.most_more
        # No stratum is left without uniform trials.
        assert found.uniform >= 0.2 * (planned - first)
        candidates = [POOL * planned * weight for weight in found.strata.weights]
        assert all(more <= all_ for more, all_ in zip(found.more, candidates, strict=True))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000), st.lists(st.booleans(), min_size=2, max_size=2))
def test_with_two_sdcs_or_fewer_the_sampling_stays_uniform(
    planned: int, outcomes: list[bool]
) -> None:
    rule = AllocationRule(planned)
    for first in rule.looks:
        trials = seen(first, lambda cell: 0.0)
        trials[: len(outcomes)] = [
            (cell, outcome) for (cell, _), outcome in zip(trials, outcomes, strict=False)
        ]
        assert rule.allot(MASSES, trials) is None


def test_sdcs_that_all_flip_the_top_bit_draw_trials_there() -> None:
    rule = AllocationRule(16_000, 16)
    found = rule.allot(MASSES, seen(rule.looks[0], lambda cell: 0.04 * cell.top))
    assert found is not None
    assert found.strata.names == ("top-exponent-bit", "other-bits")
    assert found.strata.weights == TWO.weights
    assert found.more[0] > found.more[1]
    drawn = found.uniform / 16 + found.more[0]
    assert drawn > 3 * found.uniform / 16


def test_sdcs_all_over_the_space_leave_the_sampling_uniform() -> None:
    rule = AllocationRule(16_000)
    for rate in (0.005, 0.05):
        assert rule.allot(MASSES, seen(rule.looks[0], partial(alike, rate))) is None


def test_sdcs_spread_by_size_make_strata_of_a_score() -> None:
    rule = AllocationRule(16_000)
    found = rule.allot(MASSES, seen(rule.looks[0], by_size))
    assert found is not None
    assert len(found.strata.names) > 2
    rates: list[list[float]] = [[] for _ in found.strata.names]
    for cell in MASSES:
        rates[found.strata.numbers[cell]].append(by_size(cell))
    means = [float(np.mean(each)) for each in rates]
    assert all(more >= less - 1e-9 for more, less in pairwise(means))
    assert means[0] > 0.3
    assert means[-1] < 0.02


def test_sdcs_spread_by_size_make_narrower_intervals() -> None:
    random = np.random.default_rng(0)
    rates = {cell: by_size(cell) for cell in MASSES}
    true = 100 * sum(MASSES[cell] * rate for cell, rate in rates.items())
    uniform = interval(round(40 * true), 4000)
    for allocation, sample in stratified_campaigns(AllocationRule(4000), MASSES, rates, 5, random):
        assert allocation is not None
        low, high = sample.interval(0.999)
        assert low <= true <= high
        low, high = sample.interval()
        assert high - low < 0.8 * (uniform[1] - uniform[0])


def test_a_stratum_gets_no_more_than_its_candidates() -> None:
    planned, share = 8000, 0.002
    hot = Cell("mlp", "later", 14, True, 14)
    masses = {Cell("mlp", "later", bit, False, bit): (1 - share) / 14 for bit in range(14)}
    masses[hot] = share
    rule = AllocationRule(planned)
    first = rule.looks[0]
    trials = [(cell, False) for cell in masses if cell != hot] * first
    found = rule.allot(masses, [(hot, number < 5) for number in range(10)] + trials[: first - 10])
    assert found is not None
    assert 0 < found.more[0] < 0.8 * POOL * planned * share


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 1500),
    st.floats(0.05, 60),
    st.floats(0.6, 0.99),
    st.integers(0, 2**32),
    st.data(),
)
def test_a_plan_that_can_never_pass_uniformly_cannot_by_strata_either(
    planned: int, budget: float, confidence: float, seed: int, data: st.DataObject
) -> None:
    gate = Budget(budget, 100, confidence)
    rule = AllocationRule(planned)
    clean = decide(Counts(planned, planned, 0, 0), gate).name
    assert (never_passes(planned, gate) is None) == (clean == "pass")
    if clean == "pass" or not rule.looks:
        return
    # Nor does the luckiest campaign that went over to strata: all later trials are masked.
    first = data.draw(st.sampled_from(rule.looks))
    trials = seen(first, lambda cell: 0.3 if cell.top else 0.1 * by_size(cell), seed)
    allocation = rule.allot(MASSES, trials)
    if allocation is None:
        return
    strata = allocation.strata
    of_first = [[0, 0] for _ in strata.names]
    for cell, event in trials:
        of_first[strata.numbers[cell]][0] += 1
        of_first[strata.numbers[cell]][1] += event
    drawn = np.random.default_rng(seed).multinomial(allocation.uniform, strata.weights)
    stages = (
        [
            Stratum(name, weight, there, events, 0)
            for name, weight, (there, events) in zip(
                strata.names, strata.weights, of_first, strict=True
            )
        ],
        [
            Stratum(name, weight, int(uniform) + more, 0, 0)
            for name, weight, uniform, more in zip(
                strata.names, strata.weights, drawn, allocation.more, strict=True
            )
        ],
    )
    assert decide_stratified(*stages, allocation, gate).name != "pass"


def test_nothing_that_is_fixed_beforehand_but_proportional_is_as_narrow_without_an_sdc() -> None:
    # What a clean campaign of unequal shares proves is what its most neglected stratum proves.
    weight, planned = 1 / 16, 16_000
    for hot in (500, 2000, 5000):
        strata = [
            Stratum("hot", weight, hot, 0, 0),
            Stratum("cold", 1 - weight, planned - hot, 0, 0),
        ]
        none = [Stratum("hot", weight, 0, 0, 0), Stratum("cold", 1 - weight, 0, 0, 0)]
        allocation = Allocation(0, planned - hot, (hot, 0), TWO)
        found = decide_stratified(none, strata, allocation, Budget(100))
        assert found.interval is not None
        neglected = min(hot / weight, (planned - hot) / (1 - weight)) / planned
        assert neglected < 1
        assert found.interval[1] >= interval(0, planned)[1] / neglected * 0.999


@pytest.mark.parametrize("prompts", [1, 8])
def test_campaigns_over_strata_are_right_on_average(prompts: int) -> None:
    random = np.random.default_rng(1)
    some = {cell: prompts * by_size(cell) / 8 for cell in MASSES}
    rates = [some, *[dict.fromkeys(MASSES, 0.0)] * (prompts - 1)]
    true = 100 * sum(MASSES[cell] * rate for cell, rate in some.items()) / prompts
    ran = [*stratified_campaigns(AllocationRule(1600, prompts), MASSES, rates, 30, random)]
    assert all(sample.trials == 1600 for _, sample in ran)
    assert {len(sample.later) for allocation, sample in ran if allocation is None} <= {1}
    estimates = [sample.rate for _, sample in ran]
    error = 4 * np.std(estimates) / len(ran) ** 0.5
    assert np.mean(estimates) == pytest.approx(true, abs=error)


def test_uniform_trials_are_whole_rounds_of_prompts_and_no_stratum_is_left_without_any() -> None:
    masses = {
        Cell("mlp", "later", 14, True, 12): 1 / 16,
        Cell("mlp", "later", 3, False, -8): 15 / 16,
    }
    top, other = masses
    for planned, stride in ((1000, 500), (4000, 7), (400, 100), (60, 1), (20, 1)):
        rule = AllocationRule(planned, stride)
        for look in rule.looks:
            seen = [(top, True) if number % 16 == 0 else (other, False) for number in range(look)]
            allocation = rule.allot(masses, seen)
            if allocation is None:
                continue
            assert allocation.uniform % stride == 0
            assert allocation.first + allocation.uniform + sum(allocation.more) == planned
            expected = np.array(allocation.more) + allocation.uniform * np.array([1 / 16, 15 / 16])
            assert expected.min() >= 20
