"""Campaigns whose true rates are known, simulated by the thousand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ft2.verdict.allocation import Allocation, AllocationRule
from ft2.verdict.cells import Cell
from ft2.verdict.stopping import SequentialRule
from ft2.verdict.two_stage import LaterStratum, TwoStageSample

__all__ = ["sequential_campaigns", "stratified_campaigns"]

_AT_ONCE = 500


def sequential_campaigns(
    rule: SequentialRule, rates: NDArray[np.float64], random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """Run campaigns that may stop early, looked at after every trial.

    Parameters
    ----------
    rates:
        The true rate of each campaign, a share.

    Returns
    -------
    (array, array, array)
        Of each campaign the trials run, the events among them, and the decision: 1 pass, -1 fail,
        0 none.
    """
    # Between two events only the rule's boundaries matter.
    campaigns = len(rates)
    passes, fails = rule.pass_times, rule.fail_times
    most = max(passes.size, fails.size, rule.last_pass + 1, rule.last_fail) + 1
    trials = np.full(campaigns, rule.planned)
    events = np.zeros(campaigns, dtype=np.int64)
    decision = np.zeros(campaigns, dtype=np.int8)
    for start in range(0, campaigns, _AT_ONCE):
        some = slice(start, min(start + _AT_ONCE, campaigns))
        size = some.stop - start
        # The trial at which each event happens, the zeroth at none; after the plan if never.
        when = np.full((size, most + 2), rule.planned + 1, dtype=np.int64)
        when[:, 0] = 0
        happens = rates[some] > 0
        chances = np.where(happens, rates[some], 1.0)[:, None]
        gaps = np.minimum(random.geometric(chances, (size, most + 1)), rule.planned + 1)
        ends = np.minimum(np.cumsum(gaps, axis=1), rule.planned + 1)
        when[happens, 1:] = ends[happens]
        passed = when[:, 1 : passes.size + 1] > passes
        first_pass = np.where(
            passed.any(axis=1),
            passes[passed.argmax(axis=1)] if passes.size else 0,
            rule.planned + 1,
        )
        limits = np.append(fails, np.full(most + 2 - fails.size, rule.planned))
        failed = when <= limits
        failed[:, 0] = False
        first_fail = np.where(
            failed.any(axis=1), when[np.arange(size), failed.argmax(axis=1)], rule.planned + 1
        )
        stop = np.minimum(np.minimum(first_pass, first_fail), rule.planned)
        seen = (when[:, 1:] <= stop[:, None]).sum(axis=1)
        chosen = np.where(first_pass < first_fail, 1, np.where(first_fail <= rule.planned, -1, 0))
        at_end = chosen == 0
        chosen[at_end & (seen <= rule.last_pass)] = 1
        chosen[at_end & (seen >= rule.last_fail)] = -1
        trials[some], events[some], decision[some] = stop, seen, chosen
    return trials, events, decision


def stratified_campaigns(
    rule: AllocationRule,
    masses: Mapping[Cell, float],
    rates: Mapping[Cell, float] | Sequence[Mapping[Cell, float]],
    campaigns: int,
    random: np.random.Generator,
) -> Iterator[tuple[Allocation | None, TwoStageSample]]:
    """Run campaigns over strata: uniform trials, looks at them, and what those allot.

    Parameters
    ----------
    rule:
        Decides; its stride is a multiple of the number of prompts.
    masses:
        The cells' shares of the space; they add up to 1.
    rates:
        The cells' true rates, shares; of each prompt, where there are several: trials are dealt to
        them in turn.

    Yields
    ------
    (Allocation or None, TwoStageSample)
        What was allotted, and what was seen. A campaign that stayed uniform has no first stage, and
        one stratum.
    """
    cells = [*masses]
    shares = np.array([*masses.values()])
    by_prompt = [rates] if isinstance(rates, Mapping) else rates
    chances = np.array([[each[cell] for cell in cells] for each in by_prompt])
    for _ in range(campaigns):
        yield _stratified(rule, masses, cells, shares, chances, random)


def _stratified(
    rule: AllocationRule,
    masses: Mapping[Cell, float],
    cells: Sequence[Cell],
    shares: NDArray[np.float64],
    chances: NDArray[np.float64],
    random: np.random.Generator,
) -> tuple[Allocation | None, TwoStageSample]:
    planned, prompts = rule.planned, len(chances)
    bounds = np.cumsum(shares)
    seen: list[tuple[Cell, bool]] = []
    events = 0
    for look in rule.looks:
        turns = np.arange(len(seen), look) % prompts
        struck = np.searchsorted(bounds[:-1], bounds[-1] * random.random(len(turns)), "right")
        wrong = random.random(len(turns)) < chances[turns, struck]
        seen += zip((cells[at] for at in struck), wrong.tolist(), strict=True)
        events += int(wrong.sum())
        allocation = rule.allot(masses, seen)
        if allocation is not None:
            later = _second_stage(allocation, cells, shares, chances, random)
            return allocation, TwoStageSample(look, events, later)
    for trials, rate in zip(_dealt(planned - len(seen), prompts), chances @ shares, strict=True):
        events += int(random.binomial(trials, min(rate, 1.0)))
    return None, TwoStageSample(0, 0, (LaterStratum(1.0, planned, events),))


def _second_stage(
    allocation: Allocation,
    cells: Sequence[Cell],
    shares: NDArray[np.float64],
    chances: NDArray[np.float64],
    random: np.random.Generator,
) -> tuple[LaterStratum, ...]:
    weights, prompts = np.array(allocation.strata.weights), len(chances)
    numbers = np.array([allocation.strata.numbers[cell] for cell in cells])
    rates = np.array(
        [np.bincount(numbers, shares * each, len(weights)) / weights for each in chances]
    )
    # Those of one stratum are on whichever prompt they happen to be.
    anywhere = np.full(prompts, 1 / prompts)
    trials = np.stack([random.multinomial(more, anywhere) for more in allocation.more], axis=1)
    for number, uniform in enumerate(_dealt(allocation.uniform, prompts)):
        trials[number] += random.multinomial(uniform, weights / weights.sum())
    events = random.binomial(trials, np.minimum(rates, 1.0)).sum(axis=0)
    seen = zip(weights.tolist(), trials.sum(axis=0).tolist(), events.tolist(), strict=True)
    return tuple(LaterStratum(*each) for each in seen)


def _dealt(trials: int, prompts: int) -> NDArray[np.int64]:
    """Return how many trials each prompt has when they are dealt in turn."""
    return trials // prompts + (np.arange(prompts) < trials % prompts)
