"""Would another seed have decided otherwise?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import betabinom, binom

from ft2.verdict.allocation import Allocation
from ft2.verdict.gate import Budget, exceeds
from ft2.verdict.simulated import sequential_campaigns
from ft2.verdict.stopping import SequentialRule
from ft2.verdict.stratified import Stratum
from ft2.verdict.two_stage import LaterStratum, TwoStageSample

__all__ = [
    "chance_of_another_early_verdict",
    "chance_of_another_stratified_verdict",
    "chance_of_another_verdict",
    "chance_of_passing",
]

# Campaigns simulated, the fewer the longer each takes: the error is one to four per cent.
_EARLY, _TWO_STRATA, _MORE_STRATA = 2000, 500, 100
# Jeffreys' prior.
_PRIOR = 0.5


def chance_of_another_verdict(events: int, trials: int, planned: int, budget: Budget) -> float:
    """Return the chance, in per cent, that another seed's campaign gets another verdict.

    What is not known of the true rate is averaged over: by Jeffreys' prior and the trials seen
    (the beta-binomial predictive distribution). DUEs are left out.

    Parameters
    ----------
    events, trials:
        SDCs, and the trials that showed them.
    planned:
        Trials of a campaign.
    budget:
        What the gate allows; its verdict is that of all planned trials.
    """
    most, least = _limits(planned, budget)
    full = round(events * planned / trials)
    other = betabinom(planned, events + 0.5, trials - events + 0.5)
    passes, fails = other.cdf(most), other.sf(least - 1)
    if full <= most:
        same = passes
    elif full >= least:
        same = fails
    else:
        same = 1 - passes - fails
    return 100 * min(1.0, max(0.0, 1 - float(same)))


def chance_of_another_early_verdict(
    events: int, trials: int, rule: SequentialRule, verdict: str
) -> float:
    """Return the same chance, in per cent, where a campaign may stop early.

    Simulated, with the same random numbers each time. Which trials were looked at does not matter
    for what is believed of the rate.

    Parameters
    ----------
    events, trials:
        SDCs, and the trials that showed them.
    rule:
        How the campaigns are decided.
    verdict:
        What was decided: ``pass``, ``fail`` or ``inconclusive``.
    """
    random = np.random.default_rng(0)
    rates = random.beta(events + _PRIOR, trials - events + _PRIOR, _EARLY)
    _, _, decisions = sequential_campaigns(rule, rates, random)
    same = {"pass": 1, "fail": -1}.get(verdict, 0)
    return 100 * float(np.mean(decisions != same))


def chance_of_another_stratified_verdict(
    strata: Sequence[Stratum], allocation: Allocation, budget: Budget, verdict: str
) -> float:
    """Return the same chance, in per cent, of a campaign over strata; simulated, too.

    The other campaign is taken to be allotted its trials like this one: what its own first trials
    would have led to is left out.

    Parameters
    ----------
    strata:
        What all trials showed, in the order of the allocation's strata.
    allocation:
        Where the trials behind the first ones were drawn from.
    budget:
        What the gate allows.
    verdict:
        What was decided.
    """
    random = np.random.default_rng(0)
    campaigns = _TWO_STRATA if len(strata) == 2 or budget.confidence is None else _MORE_STRATA
    weights = np.array([each.weight for each in strata])
    rates = np.stack(
        [
            random.beta(each.sdc + _PRIOR, each.trials - each.sdc + _PRIOR, campaigns)
            for each in strata
        ],
        axis=1,
    )
    first = random.binomial(allocation.first, np.minimum(rates @ weights, 1))
    drawn = random.multinomial(allocation.uniform, weights / weights.sum(), campaigns)
    trials = drawn + np.array(allocation.more)
    events = random.binomial(trials, rates)
    others = complete = 0
    for seen, of_trials, of_events in zip(
        first.tolist(), trials.tolist(), events.tolist(), strict=True
    ):
        if not all(of_trials):
            continue
        complete += 1
        later = map(LaterStratum, weights.tolist(), of_trials, of_events)
        sample = TwoStageSample(allocation.first, seen, tuple(later))
        others += _decision(sample, budget) != verdict
    return 100 * others / max(1, complete)


def _decision(sample: TwoStageSample, budget: Budget) -> str:
    if budget.confidence is None:
        return "fail" if sample.rate > budget.sdc else "pass"
    if sample.refutes_at_least(budget.sdc / 100, 1 - budget.confidence):
        return "pass"
    refuted = sample.refutes_at_most(budget.sdc / 100, 1 - budget.confidence)
    return "fail" if refuted else "inconclusive"


def chance_of_passing(rate: float, planned: int, budget: Budget) -> float:
    """Return the chance, in per cent, that a campaign passes when the true rate is `rate` per cent.

    DUEs are left out.
    """
    most, _ = _limits(planned, budget)
    return 100 * float(binom.cdf(most, planned, rate / 100))


def _limits(planned: int, budget: Budget) -> tuple[int, int]:
    """Return the most SDCs that pass and the fewest that fail."""
    share = budget.sdc / 100
    if budget.confidence is None:
        most = int(planned * share)
        most += not exceeds(most + 1, planned, budget.sdc)
        most -= exceeds(most, planned, budget.sdc)
        return most, most + 1
    risk = 1 - budget.confidence
    most = int(binom.ppf(risk, planned, share))
    most -= int(binom.cdf(most, planned, share) > risk)
    least = int(binom.isf(risk, planned, share)) + 1
    least += int(binom.sf(least - 1, planned, share) > risk)
    return most, least
