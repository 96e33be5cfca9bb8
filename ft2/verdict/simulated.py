"""Campaigns whose true rates are known, simulated by the thousand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ft2.verdict.allocation import AllocationRule
from ft2.verdict.stopping import SequentialRule

__all__ = ["Drawn", "sequential_campaigns", "stratified_campaigns"]

_AT_ONCE = 500


@dataclass(frozen=True)
class Drawn:
    """Campaigns over strata by what they saw: one number for each, shape (campaigns,).

    The names are those of :class:`ft2.verdict.TwoStageSample`. One that stayed uniform has no first
    stage and no hot trials.
    """

    first_trials: NDArray[np.int64]
    first_events: NDArray[np.int64]
    hot_trials: NDArray[np.int64]
    hot_events: NDArray[np.int64]
    cold_trials: NDArray[np.int64]
    cold_events: NDArray[np.int64]


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
    weight: float,
    hot_rates: NDArray[np.float64],
    cold_rates: NDArray[np.float64],
    random: np.random.Generator,
) -> Drawn:
    """Run campaigns over strata: uniform trials, looks at them, and what those allot.

    Parameters
    ----------
    rule:
        Decides; its stride is the number of prompts.
    weight:
        The hot stratum's share of the space.
    hot_rates, cold_rates:
        The strata's true rates, shares; of shape (prompts, campaigns).
    """
    planned = rule.planned
    prompts, campaigns = hot_rates.shape
    dealt = 0
    hot, hot_events, events = (np.zeros(campaigns, dtype=np.int64) for _ in range(3))
    first, first_events, more = (np.zeros(campaigns, dtype=np.int64) for _ in range(3))
    undecided = np.ones(campaigns, dtype=bool)
    for look in rule.looks:
        for number in range(prompts):
            some = (look - dealt) // prompts
            drawn = random.binomial(some, weight, campaigns)
            found = random.binomial(drawn, hot_rates[number])
            hot += drawn
            hot_events += found
            events += found + random.binomial(some - drawn, cold_rates[number])
        dealt = look
        kept = rule.kept(weight, hot, hot_events, look - hot, events - hot_events)
        decides = undecided & (kept < 1)
        first[decides], first_events[decides] = look, events[decides]
        extra = np.floor(np.round((1 - kept) * (planned - look), 6) / prompts) * prompts
        more[decides] = extra[decides].astype(np.int64)
        undecided &= ~decides
    left = planned - dealt
    each = np.array([left // prompts + (number < left % prompts) for number in range(prompts)])
    rates = weight * hot_rates + (1 - weight) * cold_rates
    first[undecided] = 0
    cold_trials = np.where(undecided, planned, 0)
    cold_events = np.where(undecided, events, 0)
    for number in range(prompts):
        cold_events += np.where(undecided, random.binomial(each[number], rates[number]), 0)
    hot_trials, seen_hot = np.zeros_like(more), np.zeros_like(more)
    later = np.where(undecided, 0, planned - first - more)
    for number in range(prompts):
        uniform = later // prompts + (number < later % prompts)
        drawn = random.binomial(uniform, weight)
        hot_here = drawn + more // prompts
        hot_trials += hot_here
        seen_hot += random.binomial(hot_here, hot_rates[number])
        cold_trials += uniform - drawn
        cold_events += random.binomial(uniform - drawn, cold_rates[number])
    return Drawn(first, first_events, hot_trials, seen_hot, cold_trials, cold_events)
