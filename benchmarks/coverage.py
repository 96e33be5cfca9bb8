"""Do the verdicts keep their promises? Campaigns with a known truth, simulated by the thousand.

Every cell is one truth and one plan. Its interval must hold the truth in as many campaigns as it
promises, and a gate whose budget lies just below the truth must not pass more often than its
confidence allows; a cell that does worse than simulation error explains is marked, and the exit
status is 1.

Run it from the project's root: ``python benchmarks/coverage.py [--campaigns N] [--only PART …]
[--strata-of JSON] [--json FILE]``. ``benchmarks/README.md`` says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtri
from scipy.stats import beta, binom
from tabulate import tabulate

from ft2.verdict import (
    AllocationRule,
    Budget,
    Counts,
    Pairs,
    SequentialRule,
    TwoStageSample,
    always_valid_interval,
    decide,
    interval,
    interval_for_new_prompts,
    interval_over_strata,
    least_trials,
    sequential_campaigns,
    stratified_campaigns,
    weighted_interval,
)

NOMINAL = 0.95
TRIALS = (50, 200, 500, 2000, 20_000)
RATES = (0.0, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0)
# A budget that the truth exceeds by as little as can be.
JUST_BELOW = 1 - 1e-9

# Intervals computed for a cell's mean width.
WIDTHS = 300
# What the looks may cost where they mislead, as a share of the width: a rule that ever departs from
# uniform sampling also does so by chance where that is best.
PRICE = 0.002

interval_of = cache(interval)
always_valid = cache(always_valid_interval)


@dataclass(frozen=True)
class Cell:
    """What campaigns of one plan did with one truth.

    Attributes
    ----------
    truth:
        In per cent.
    coverage:
        Share of the campaigns whose interval held the truth.
    false_pass, false_fail:
        Share of the campaigns that passed a budget just below the truth, or failed one at it; None
        where the cell decides nothing.
    used:
        Mean trials used.
    gain:
        Trials that uniform sampling, or the fixed plan, needs for the same, over those used.
    beside:
        What another interval or plan does with the same campaigns.
    wider:
        Whether the mean interval is wider than uniform sampling's by more than :data:`PRICE` and
        simulation error.
    """

    part: str
    case: str
    truth: float
    trials: int
    campaigns: int
    coverage: float
    false_pass: float | None = None
    false_fail: float | None = None
    used: float | None = None
    gain: float | None = None
    beside: str = ""
    wider: bool = False

    @property
    def keeps_its_promise(self) -> bool:
        """Whether nothing is worse than promised by more than simulation explains."""
        error = 4 * math.sqrt(NOMINAL * (1 - NOMINAL) / self.campaigns)
        wrong = max(self.false_pass or 0.0, self.false_fail or 0.0)
        held = self.coverage >= NOMINAL - error and wrong <= 1 - NOMINAL + error
        return held and not self.wider


def fixed_plans(campaigns: int, random: np.random.Generator) -> Iterator[Cell]:
    """Uniform trials, their number fixed: the exact interval and the decision with confidence."""

    @cache
    def name(events: int, trials: int, budget: float) -> str:
        return decide(Counts(trials, trials - events, events, 0), Budget(budget, 100, NOMINAL)).name

    for rate in RATES:
        for trials in TRIALS:
            seen = [int(n) for n in random.binomial(trials, rate / 100, campaigns)]
            held = [low <= rate <= high for low, high in (interval_of(n, trials) for n in seen)]
            below = rate * JUST_BELOW
            yield Cell(
                "fixed plan",
                "uniform",
                rate,
                trials,
                campaigns,
                float(np.mean(held)),
                float(np.mean([name(n, trials, below) == "pass" for n in seen])) if rate else None,
                float(np.mean([name(n, trials, rate) == "fail" for n in seen])),
                float(trials),
            )


def fixed_plan(rate: float, budget: float, decided: float, most: int) -> int | None:
    """Return the fewest trials, fixed, that decide rightly as often; None: not up to `most`.

    Rightly is to pass where the rate is below the budget, and to fail where it is above; both are
    in per cent.
    """
    trials, allowed, risk = np.arange(1, most + 1), budget / 100, 1 - NOMINAL
    if rate < budget:
        last = binom.ppf(risk, trials, allowed)
        last -= binom.cdf(last, trials, allowed) > risk
        power = binom.cdf(last, trials, rate / 100)
    else:
        first = binom.isf(risk, trials, allowed) + 1
        first += binom.sf(first - 1, trials, allowed) > risk
        power = binom.sf(first - 1, trials, rate / 100)
    # Simulation cannot tell what is surer.
    enough = power >= min(decided, 0.999)
    return int(trials[enough.argmax()]) if enough.any() else None


def early_cell(
    case: str,
    budget: float,
    rate: float,
    planned: int,
    ended: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]],
) -> Cell:
    """Tell of campaigns by the trials they ran, the events among them, and their decisions."""
    trials, events, decision = ended
    held = [
        low <= rate <= high
        for low, high in (
            always_valid(int(n), int(of)) for n, of in zip(events, trials, strict=True)
        )
    ]
    passed, failed = float(np.mean(decision > 0)), float(np.mean(decision < 0))
    right = passed if rate < budget else failed
    plan = None if rate == budget else fixed_plan(rate, budget, right, planned)
    used = float(trials.mean())
    return Cell(
        "stopping early",
        case,
        rate,
        planned,
        len(trials),
        float(np.mean(held)),
        passed if rate >= budget else None,
        failed if rate <= budget else None,
        used,
        None if plan is None else plan / used,
        f"passes {100 * passed:.1f} %, fails {100 * failed:.1f} %; 90 % stop by "
        f"{int(np.quantile(trials, 0.9))}; fixed plan as sure: {plan or 'none'}",
    )


def early_stops(campaigns: int, random: np.random.Generator) -> Iterator[Cell]:
    """Stopping early, looked at after every trial; after every round of the prompts."""
    for budget in (0.5, 5.0):
        for planned in (598, 2000, 20_000):
            for rate in (0.0, 0.05, 0.25, 0.5, 1.0, 5.0, 9.0):
                rule = SequentialRule(planned, Budget(budget, 100, NOMINAL), NOMINAL)
                rates = np.full(campaigns, rate / 100)
                ended = sequential_campaigns(rule, rates, random)
                yield early_cell(f"budget {budget:g} %", budget, rate, planned, ended)
    for budget in (0.5, 5.0):
        for planned in (600, 2000, 20_000):
            for rate in (0.05, 0.5, 1.0, 5.0):
                rule = SequentialRule(planned, Budget(budget, 100, NOMINAL), NOMINAL)
                ended = clustered_campaigns(rule, 8, rate / 100, campaigns, random)
                case = f"budget {budget:g} %, all SDCs on one of 8 prompts"
                yield early_cell(case, budget, rate, planned, ended)


def clustered_campaigns(
    rule: SequentialRule,
    prompts: int,
    rate: float,
    campaigns: int,
    random: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """Run campaigns that may stop early, all of whose events are on one of the prompts.

    Trials are dealt to the prompts in turn, and looked at when each has had as many; the arguments
    and what is returned are else those of :func:`ft2.verdict.sequential_campaigns`.
    """
    rounds = rule.planned // prompts
    assert rounds * prompts == rule.planned
    seen = prompts * np.arange(1, rounds + 1)
    # Of 0, 1, … events: from how many trials on they pass, and up to how many they fail.
    passes = np.append(rule.pass_times, np.full(rounds + 1, rule.planned + 1))
    fails = np.append(rule.fail_times, np.full(rounds + 1, rule.planned))
    fails[0] = 0
    ended = []
    for start in range(0, campaigns, 500):
        some = min(500, campaigns - start)
        events = (random.random((some, rounds)) < prompts * rate).cumsum(axis=1)
        is_pass, is_fail = seen >= passes[events], seen <= fails[events]
        is_pass[:, -1] |= events[:, -1] <= rule.last_pass
        is_fail[:, -1] = is_fail[:, -1] & (seen[-1] < rule.planned) | (
            events[:, -1] >= rule.last_fail
        )
        stops = is_pass | is_fail
        stop = np.where(stops.any(axis=1), stops.argmax(axis=1), rounds - 1)
        at = np.arange(some), stop
        decision = np.where(is_fail[at], -1, is_pass[at].astype(int))
        ended.append((seen[stop], events[at], decision))
    trials, counts, decisions = (np.concatenate(each) for each in zip(*ended, strict=True))
    return trials, counts, decisions.astype(np.int8)


@dataclass(frozen=True)
class Truth:
    """Where SDCs come from.

    Attributes
    ----------
    weight:
        The hot stratum's share of the space.
    hot, cold:
        The strata's rates on each prompt; trials are dealt to the prompts in turn.
    """

    weight: float
    hot: NDArray[np.float64]
    cold: NDArray[np.float64]

    @classmethod
    def of(cls, rate: float, held: float, weight: float = 1 / 16, spread: int = 1) -> Truth:
        """Return a truth by the overall rate, and the share of the SDCs that the hot stratum holds.

        Of each `spread` prompts, one alone is ever answered wrongly.
        """
        prompts = np.eye(spread)[0] * spread
        return cls(
            weight, prompts * rate * held / weight, prompts * rate * (1 - held) / (1 - weight)
        )

    @property
    def rate(self) -> float:
        """The overall rate."""
        return float(self.weight * self.hot.mean() + (1 - self.weight) * self.cold.mean())


def mean_width(rate: float, trials: int, known: int = 0, events: int = 0) -> float:
    """Return the expected width of uniform sampling's exact interval, in percentage points.

    Of all `trials`, the first `known` have shown `events`.
    """
    later = np.arange(trials - known + 1)
    chances = binom.pmf(later, trials - known, rate)
    likely = chances > 1e-12
    seen, chances = events + later[likely], chances[likely]
    low, high = exact(seen, np.full_like(seen, trials), NOMINAL)
    return 100 * float((chances * (high - low)).sum() / chances.sum())


def stratified_cell(
    name: str, truth: Truth, planned: int, campaigns: int, random: np.random.Generator
) -> Cell:
    """Run campaigns over strata; compare their intervals with those of uniform sampling.

    Where the sampling stayed uniform the interval is uniform sampling's. A campaign that allotted
    its trials is compared with what uniform sampling would have gone on to from the same first
    ones, on average: so the difference of the mean widths has little error.
    """
    drawn = stratified_campaigns(
        AllocationRule(planned, len(truth.hot)),
        truth.weight,
        np.repeat(truth.hot[:, None], campaigns, axis=1),
        np.repeat(truth.cold[:, None], campaigns, axis=1),
        random,
    )
    level, rate = (1 - NOMINAL) / 2, truth.rate

    @cache
    def wrong(*counts: int) -> tuple[bool, bool, float]:
        sample = TwoStageSample(counts[0], counts[1], truth.weight, *counts[2:])
        return (
            sample.refutes_at_most(rate, level) or sample.refutes_at_least(rate, level),
            sample.refutes_at_least(rate, 1 - NOMINAL),
            sample.rate,
        )

    @cache
    def gained(*counts: int) -> float:
        low, high = TwoStageSample(counts[0], counts[1], truth.weight, *counts[2:]).interval()
        return high - low - mean_width(rate, planned, counts[0], counts[1])

    names = ("first_trials", "first_events", "hot_trials", "hot_events", "cold_trials")
    rows = np.stack([*(getattr(drawn, each) for each in names), drawn.cold_events], axis=1)
    found = [wrong(*map(int, row)) for row in rows]
    allotted = np.flatnonzero(drawn.hot_trials)
    # An interval takes longer than a decision, and some hundred tell the mean well enough.
    shown = allotted[:WIDTHS]
    widened_by = np.array([gained(*map(int, rows[number])) for number in shown])
    share = len(allotted) / campaigns
    uniform = mean_width(rate, planned)
    excess, error = 0.0, 0.0
    if len(shown):
        excess = share * float(widened_by.mean())
        spread = share**2 * float(widened_by.var()) / len(shown)
        spread += share * (1 - share) * float(widened_by.mean()) ** 2 / campaigns
        error = 4 * math.sqrt(spread)
    estimate = float(np.mean([each[2] for each in found]))
    return Cell(
        "strata",
        name,
        100 * rate,
        planned,
        campaigns,
        1 - float(np.mean([each[0] for each in found])),
        float(np.mean([each[1] for each in found])) if rate else None,
        None,
        float(planned),
        (uniform / (uniform + excess)) ** 2,
        f"allots in {100 * share:.1f} %; width {100 * excess / uniform:+.2f} % "
        f"(± {50 * error / uniform:.2f}); mean estimate {estimate:.4g} %",
        excess > PRICE * uniform + error,
    )


def strata(campaigns: int, random: np.random.Generator) -> Iterator[Cell]:
    """``--ft2-sampling=stratified``: looks at uniform trials, then trials of the hot stratum."""
    rates = (0.0, 0.0005, 0.0015, 0.007, 0.03)
    for held in (1.0, 0.95, 0.5, 0.25, 1 / 16, 0.0):
        name = f"{100 * held:.3g} % of SDCs in 1/16"
        for rate in rates if held == 1.0 else rates[1:]:
            for planned in (1000, 4000, 16_000):
                yield stratified_cell(name, Truth.of(rate, held), planned, campaigns, random)
    for held in (1.0, 0.9, 0.4):
        name = f"{100 * held:.3g} % of SDCs in 1/5"
        for rate in (0.0015, 0.03):
            for planned in (2000, 16_000):
                truth = Truth.of(rate, held, weight=1 / 5)
                yield stratified_cell(name, truth, planned, campaigns, random)
    for rate in (0.0015, 0.007):
        truth = Truth.of(rate, 0.95, spread=8)
        name = "95 % of SDCs in 1/16, all on one of 8 prompts"
        yield stratified_cell(name, truth, 16_000, campaigns, random)


def measured_strata(path: Path, campaigns: int, random: np.random.Generator) -> Iterator[Cell]:
    """The same for models as measured: what a JSON document says of the bits."""
    from ft2.faults import TOP_BIT, Fault, stratum_of

    for campaign in json.loads(path.read_text(encoding="utf-8"))["campaigns"]:
        events: dict[bool, list[bool]] = {True: [], False: []}
        for trial in campaign["trials"]:
            hot = stratum_of(Fault.parse(trial["fault"])) == TOP_BIT
            events[hot].append(trial["outcome"] == "sdc")
        rates = [np.array([np.mean(events[hot])]) for hot in (True, False)]
        truth = Truth(len(events[True]) / len(campaign["trials"]), rates[0], rates[1])
        name = f"{campaign['nodeid'].rpartition('::')[2]}, {campaign['protection']}"
        for planned in (4000, 16_000, 64_000):
            yield stratified_cell(name, truth, planned, campaigns, random)


def parts(campaigns: int, random: np.random.Generator) -> Iterator[Cell]:
    """Parts of the space under ``--ft2-sampling=stratified``: a phase, the top bit, other bits."""
    weight, phase = 1 / 16, 0.12
    for held in (1.0, 0.5, 0.35):
        for rate in (0.0015, 0.007, 0.03):
            for planned in (1000, 16_000):
                truth = Truth.of(rate, held, weight)
                rates = np.array([truth.hot[0], truth.cold[0]])
                strata = (weight, 1 - weight)
                seen = parted_campaigns(planned, weight, phase, rates, campaigns, random)
                allots, trials, events = seen
                found = {
                    "top bit": exact(events[:, 0].sum(axis=1), trials[:, 0].sum(axis=1), NOMINAL),
                    "other bits": exact(
                        events[:, 1].sum(axis=1), trials[:, 1].sum(axis=1), NOMINAL
                    ),
                }
                uniform = exact(events[..., 0].sum(axis=1), trials[..., 0].sum(axis=1), NOMINAL)
                parted: list[tuple[float, Any]] = [
                    (share, partial(exact, events[:, at, 0], trials[:, at, 0]))
                    for at, share in enumerate(strata)
                ]
                weighed = interval_over_strata(parted)
                found["a phase"] = (
                    np.where(allots, weighed[0], uniform[0]),
                    np.where(allots, weighed[1], uniform[1]),
                )
                truths = dict(zip(found, (*rates, rate), strict=True))
                for name, (low, high) in found.items():
                    yield Cell(
                        "parts",
                        f"{name}, {100 * held:.3g} % of SDCs in 1/16",
                        100 * truths[name],
                        planned,
                        campaigns,
                        float(np.mean((low <= truths[name]) & (truths[name] <= high))),
                        beside=f"allots in {100 * allots.mean():.1f} %",
                    )


def exact(
    events: NDArray[np.int64], trials: NDArray[np.int64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Clopper and Pearson's intervals of shares; of no trial, that from 0 to 1."""
    tail = (1 - confidence) / 2
    some = np.maximum(trials, 1)
    low = np.where(events > 0, bdtri(np.maximum(events, 1) - 1, some, 1 - tail), 0.0)
    high = np.where(events < trials, bdtri(np.minimum(events, some - 1), some, tail), 1.0)
    return low, high


def parted_campaigns(
    planned: int,
    weight: float,
    phase: float,
    rates: NDArray[np.float64],
    campaigns: int,
    random: np.random.Generator,
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Run campaigns over strata whose trials are in a phase, or not, in a given share.

    Returns
    -------
    (array, array, array)
        Of each campaign whether it allotted its trials, and the trials and events that make the
        intervals of its parts, by stratum (the hot one first) and by phase (in it first): all
        where it stayed uniform, and those behind the first ones where it did not.
    """
    rule = AllocationRule(planned)
    shares = np.outer((weight, 1 - weight), (phase, 1 - phase))
    chances = np.repeat(rates, 2).reshape(2, 2)

    def drawn(trials: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found = random.multinomial(trials, shares.ravel(), campaigns).reshape(-1, 2, 2)
        return found, random.binomial(found, chances)

    undecided, dealt = np.ones(campaigns, dtype=bool), 0
    trials, events = np.zeros((2, campaigns, 2, 2), dtype=np.int64)
    first, more = np.zeros((2, campaigns), dtype=np.int64)
    for look in rule.looks:
        new, wrong = drawn(look - dealt)
        trials, events, dealt = trials + new, events + wrong, look
        (hot, cold), (hot_events, cold_events) = trials.sum(axis=2).T, events.sum(axis=2).T
        kept = rule.kept(weight, hot, hot_events, cold, cold_events)
        decides = undecided & (kept < 1)
        first[decides] = look
        more[decides] = np.floor(np.round((1 - kept) * (planned - look), 6))[decides]
        undecided &= ~decides
    new, wrong = drawn(planned - dealt)
    trials, events = trials + new, events + wrong
    later, later_events = drawn(planned - first - more)
    in_phase = random.binomial(more, phase)
    hot = np.stack([in_phase, more - in_phase], axis=1)
    later[:, 0] += hot
    later_events[:, 0] += random.binomial(hot, chances[0])
    stays = undecided[:, None, None]
    return ~undecided, np.where(stays, trials, later), np.where(stays, events, later_events)


def bootstrap(rates: NDArray[np.float64], random: np.random.Generator) -> tuple[float, float]:
    """Return the percentile bootstrap's interval of a mean, in per cent."""
    means = random.choice(rates, (400, len(rates))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return 100 * float(low), 100 * float(high)


# Of prompts that are drawn at random, each one's rate; and the mean rate of all, in per cent.
_CLUSTERS: dict[str, Callable[[int, np.random.Generator], NDArray[np.float64]]] = {
    "alike": lambda n, random: np.full(n, 0.01),
    "spread": lambda n, random: beta.rvs(0.2, 9.8, size=n, random_state=random),
    "one prompt in 50 always wrong": lambda n, random: (random.random(n) < 0.02).astype(float),
    "every other one wrong half of the time": lambda n, random: np.where(
        random.random(n) < 0.5, 0.5, 0.0
    ),
    "never wrong": lambda n, random: np.zeros(n),
}
_TRUTHS = {
    "alike": 1.0,
    "spread": 2.0,
    "one prompt in 50 always wrong": 2.0,
    "every other one wrong half of the time": 25.0,
    "never wrong": 0.0,
}


def prompts(campaigns: int, random: np.random.Generator) -> Iterator[Cell]:
    """Trials that cluster on prompts: the interval for new prompts, and what others would say."""
    count = max(1, campaigns // 5)
    for name, draw in _CLUSTERS.items():
        for number in (5, 16, 64, 256):
            held, boot, pooled = [], [], []
            truth = _TRUTHS[name]
            each = 32
            for _ in range(count):
                events = random.binomial(each, draw(number, random))
                found = interval_for_new_prompts([(int(n), each) for n in events])
                assert found is not None
                held.append(found[0] <= truth <= found[1])
                low, high = bootstrap(events / each, random)
                boot.append(low <= truth <= high)
                low, high = interval_of(int(events.sum()), number * each)
                pooled.append(low <= truth <= high)
            yield Cell(
                "new prompts",
                f"{name}, {number} prompts",
                truth,
                number * each,
                count,
                float(np.mean(held)),
                beside=f"bootstrap {100 * np.mean(boot):.1f} %, exact interval of the pooled "
                f"trials {100 * np.mean(pooled):.1f} %",
            )


def stopped_prompts(campaigns: int, random: np.random.Generator) -> Iterator[Cell]:
    """The interval for new prompts, where whoever looks stops as soon as it misses the truth."""
    count = max(1, campaigns // 5)
    for name, draw in _CLUSTERS.items():
        for number in (5, 16, 64):
            truth, rounds = _TRUTHS[name], (1, 2, 4, 8, 16, 32, 64)
            held = []
            for _ in range(count):
                rates = draw(number, random)
                events = random.binomial(1, rates[:, None], (number, rounds[-1])).cumsum(axis=1)
                looks = (
                    interval_for_new_prompts([(int(each), seen) for each in events[:, seen - 1]])
                    for seen in rounds
                )
                held.append(all(look and look[0] <= truth <= look[1] for look in looks))
            yield Cell(
                "new prompts, any stop",
                f"{name}, {number} prompts",
                truth,
                number * rounds[-1],
                count,
                float(np.mean(held)),
            )


def weighted(campaigns: int, random: np.random.Generator) -> Iterator[Cell]:
    """The rate under another measure, from trials drawn under the declared one."""
    count = max(1, campaigns // 5)
    # A first token with a tenth of the steps and half of the work, say.
    shares, weights = np.array([0.1, 0.9]), np.array([5.0, 0.5 / 0.9])
    for rates in ((0.0, 0.0), (0.001, 0.005), (0.05, 0.01)):
        truth = 100 * float((shares * weights * np.array(rates)).sum())
        for trials in (500, 5000):
            held = []
            for _ in range(count):
                kind = (random.random(trials) < shares[1]).astype(int)
                events = random.random(trials) < np.array(rates)[kind]
                low, high = weighted_interval(weights[kind].tolist(), events.tolist(), 5.0)
                held.append(low <= truth + 1e-12 and truth <= high)
            yield Cell("other measure", "two phases", truth, trials, count, float(np.mean(held)))


def pairs(campaigns: int, random: np.random.Generator) -> Iterator[Cell]:
    """The same faults twice: the paired interval, and proofs of a reduction that is not there."""
    count = max(1, campaigns // 5)
    cases = {
        "no effect": (0.01, 0.005, 0.005),
        "none in either": (0.0, 0.0, 0.0),
        "cut by half": (0.01, 0.01, 0.0),
        "cut by nine in ten": (0.001, 0.019, 0.001),
    }
    for name, chances in cases.items():
        for trials in (500, 5000):
            held, proven, refuted = [], [], []
            truth = 100 * (chances[2] - chances[1])
            before = chances[0] + chances[1]
            cut = 100 * (1 - (chances[0] + chances[2]) / before) if before else None
            for _ in range(count):
                seen = random.multinomial(trials, [*chances, 1 - sum(chances)])
                found = Pairs(*map(int, seen))
                low, high = found.difference_interval()
                held.append(low <= truth <= high)
                if cut is not None:
                    proven.append(found.reduction_proven(NOMINAL) > cut + 1e-6)
                    refuted.append(found.reduction_possible(NOMINAL) < cut - 1e-6)
            yield Cell(
                "pairs",
                name,
                truth,
                trials,
                count,
                float(np.mean(held)),
                float(np.mean(proven)) if proven else None,
                float(np.mean(refuted)) if refuted else None,
            )


PARTS: dict[str, Callable[[int, np.random.Generator], Iterator[Cell]]] = {
    "fixed": fixed_plans,
    "early": early_stops,
    "strata": strata,
    "parts": parts,
    "prompts": prompts,
    "stopped-prompts": stopped_prompts,
    "weighted": weighted,
    "pairs": pairs,
}


def row(cell: Cell) -> list[str]:
    """Return a cell as a row of the table."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    return [
        cell.part,
        cell.case,
        f"{cell.truth:.4g}",
        str(cell.trials),
        str(cell.campaigns),
        share(cell.coverage),
        share(cell.false_pass),
        share(cell.false_fail),
        "" if cell.used is None else f"{cell.used:.0f}",
        "" if cell.gain is None else f"{cell.gain:.2f}",
        cell.beside,
        "" if cell.keeps_its_promise else "BROKEN",
    ]


HEADERS = (
    "part",
    "case",
    "truth %",
    "trials",
    "campaigns",
    "held %",
    "false pass %",
    "false fail %",
    "used",
    "gain",
    "beside",
    "",
)


def main() -> int:
    """Simulate, print the table, write the JSON; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaigns", type=int, default=10_000, help="campaigns a cell")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--strata-of", type=Path, help="a JSON document: its models' strata alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the cells there")
    arguments = parser.parse_args()
    cells: list[Cell] = []
    if arguments.strata_of is not None:
        arguments.only = []
        random = np.random.default_rng(arguments.seed)
        cells += measured_strata(arguments.strata_of, arguments.campaigns, random)
    for part in arguments.only:
        started = time.perf_counter()
        cells += PARTS[part](arguments.campaigns, np.random.default_rng(arguments.seed))
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(tabulate([row(cell) for cell in cells], HEADERS, disable_numparse=True))
    print(f"\nfixed plan that proves 0.5 %: {least_trials(0.5, NOMINAL)} trials without an SDC")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(
                {"nominal": NOMINAL, "cells": [asdict(cell) for cell in cells]}, file, indent=1
            )
    return 0 if all(cell.keeps_its_promise for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
