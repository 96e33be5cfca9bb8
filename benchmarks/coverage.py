"""Do the verdicts keep their promises? Campaigns with a known truth, simulated by the thousand.

Every cell is one truth and one plan. Its interval must hold the truth in as many campaigns as it
promises, and a gate whose budget lies just below the truth must not pass more often than its
confidence allows; a cell that does worse than simulation error explains is marked, and the exit
status is 1.

Run it from the project's root: ``python benchmarks/coverage.py [--campaigns N] [--only PART …]
[--json FILE]``; strata have a script of their own, ``coverage_strata.py``. ``benchmarks/README.md``
says what the columns mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
from coverage_table import JUST_BELOW, NOMINAL, Cell, report
from numpy.typing import NDArray
from scipy.stats import beta, binom

from ft2.verdict import (
    Budget,
    Counts,
    Pairs,
    SequentialRule,
    always_valid_interval,
    decide,
    interval,
    interval_for_new_prompts,
    least_trials,
    sequential_campaigns,
    weighted_interval,
)

TRIALS = (50, 200, 500, 2000, 20_000)
RATES = (0.0, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0)

interval_of = cache(interval)
always_valid = cache(always_valid_interval)


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
    "prompts": prompts,
    "stopped-prompts": stopped_prompts,
    "weighted": weighted,
    "pairs": pairs,
}


def main() -> int:
    """Simulate, print the table, write the JSON; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaigns", type=int, default=10_000, help="campaigns a cell")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the cells there")
    arguments = parser.parse_args()
    parts = {part: partial(PARTS[part], arguments.campaigns) for part in arguments.only}
    status = report(parts, arguments.seed, arguments.json)
    print(f"\nfixed plan that proves 0.5 %: {least_trials(0.5, NOMINAL)} trials without an SDC")
    return status


if __name__ == "__main__":
    sys.exit(main())
