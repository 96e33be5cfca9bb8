"""Do verdicts over strata keep their promises? Campaigns with a known truth, run by the rule.

The truth is a world of ``fault_worlds.py``; the rule sees of it what a campaign's trials show. The
columns and the exit status are those of ``coverage.py``.

Run it from the project's root: ``python benchmarks/coverage_strata.py [--campaigns N]
[--only PART …] [--trials N …] [--jobs N] [--strata-of JSON] [--json FILE]``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from coverage_table import JUST_BELOW, NOMINAL, PRICE, Cell, report
from fault_worlds import World
from numpy.typing import NDArray
from scipy.special import bdtri
from scipy.stats import binom

from ft2.verdict import (
    Allocation,
    AllocationRule,
    LaterStratum,
    TwoStageSample,
    interval_over_strata,
    stratified_campaigns,
)
from ft2.verdict import Cell as FaultCell

TRIALS = (1000, 4000, 16_000)
RATES = (0.0, 0.0005, 0.0015, 0.007, 0.03)
# Intervals computed for a cell's mean width.
WIDTHS = 300

Task = Callable[[np.random.Generator], list[Cell]]


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


def exact(
    events: NDArray[np.int64], trials: NDArray[np.int64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Clopper and Pearson's intervals of shares; of no trial, that from 0 to 1."""
    tail = (1 - confidence) / 2
    some = np.maximum(trials, 1)
    low = np.where(events > 0, bdtri(np.maximum(events, 1) - 1, some, 1 - tail), 0.0)
    high = np.where(events < trials, bdtri(np.minimum(events, some - 1), some, tail), 1.0)
    return low, high


def stratified_cell(
    name: str, world: World, planned: int, campaigns: int, random: np.random.Generator
) -> list[Cell]:
    """Run campaigns over strata; compare their intervals with those of uniform sampling.

    Where the sampling stayed uniform the interval is uniform sampling's. A campaign that allotted
    its trials is compared with what uniform sampling would have gone on to from the same first
    ones, on average: so the difference of the mean widths has little error.
    """
    rule = AllocationRule(planned, len(world.by_prompt))
    level, rate = (1 - NOMINAL) / 2, world.rate
    missed = passed = learned = 0
    estimates: list[float] = []
    widened: list[float] = []
    allotted = 0
    uniform_ones: Counter[TwoStageSample] = Counter()

    def wrong(sample: TwoStageSample) -> tuple[bool, bool]:
        return (
            sample.refutes_at_most(rate, level) or sample.refutes_at_least(rate, level),
            bool(rate) and sample.refutes_at_least(rate * JUST_BELOW, 1 - NOMINAL),
        )

    for allocation, sample in stratified_campaigns(
        rule, world.masses, world.by_prompt, campaigns, random
    ):
        estimates.append(sample.rate)
        if allocation is None:
            uniform_ones[sample] += 1
            continue
        misses, passes = wrong(sample)
        missed, passed = missed + misses, passed + passes
        allotted += 1
        learned += len(sample.later) > 2
        # An interval takes longer than a decision, and some hundred tell the mean well enough.
        if len(widened) < WIDTHS:
            low, high = sample.interval()
            first = sample.first_trials, sample.first_events
            widened.append(high - low - mean_width(rate, planned, *first))
    for sample, times in uniform_ones.items():
        misses, passes = wrong(sample)
        missed, passed = missed + times * misses, passed + times * passes
    share, uniform = allotted / campaigns, mean_width(rate, planned)
    excess, error = 0.0, 0.0
    if widened:
        mean = float(np.mean(widened))
        excess = share * mean
        spread = share**2 * float(np.var(widened)) / len(widened)
        spread += share * (1 - share) * mean**2 / campaigns
        error = 4 * math.sqrt(spread)
    cell = Cell(
        "strata",
        name,
        100 * rate,
        planned,
        campaigns,
        1 - missed / campaigns,
        passed / campaigns if rate else None,
        None,
        float(planned),
        (uniform / (uniform + excess)) ** 2,
        f"allots in {100 * share:.1f} %, by a score in {100 * learned / campaigns:.1f} %; "
        f"width {100 * excess / uniform:+.2f} % (± {100 * error / uniform:.2f}); "
        f"mean estimate {np.mean(estimates):.4g} %",
        excess > PRICE * uniform + error,
    )
    return [cell]


def strata(campaigns: int, trials: Sequence[int]) -> Iterator[Task]:
    """``--ft2-sampling=stratified``: looks at uniform trials, then trials of strata."""
    for held in (1.0, 0.95, 0.5, 0.25, 1 / 16, 0.0):
        name = f"{100 * held:.3g} % of SDCs in 1/16"
        for rate in RATES if held == 1.0 else RATES[1:]:
            for planned in trials:
                world = World.by_top_bit(rate, held)
                yield partial(stratified_cell, name, world, planned, campaigns)
    for held in (1.0, 0.4):
        name = f"{100 * held:.3g} % of SDCs in 1/5"
        for rate in (0.0015, 0.03):
            for planned in trials:
                world = World.by_top_bit(rate, held, weight=1 / 5)
                yield partial(stratified_cell, name, world, planned, campaigns)
    for rate in (*RATES[1:], 0.1):
        for planned in trials:
            world = World.by_size(rate)
            yield partial(stratified_cell, "SDCs by size", world, planned, campaigns)
    for rate in (0.0015, 0.007):
        for planned in trials:
            world = World.by_top_bit(rate, 0.95, prompts=8)
            name = "95 % of SDCs in 1/16, all on one of 8 prompts"
            yield partial(stratified_cell, name, world, planned, campaigns)
    one = World.by_size(0.02)
    clustered = replace(one, by_prompt=(one.by_prompt[0], *[dict.fromkeys(one.masses, 0.0)] * 7))
    for planned in trials:
        name = "SDCs by size, all on one of 8 prompts"
        yield partial(stratified_cell, name, clustered, planned, campaigns)


def measured_strata(path: Path, campaigns: int, trials: Sequence[int]) -> Iterator[Task]:
    """The same for models as measured: what a JSON document says of the cells."""
    for campaign in json.loads(path.read_text(encoding="utf-8"))["campaigns"]:
        allocation = campaign.get("allocation")
        # Trials that were drawn from strata alone would count too much.
        uniform = allocation["first"] + allocation["uniform"] if allocation else math.inf
        known = [
            trial for trial in campaign["trials"] if trial["outcome"] and trial["trial"] < uniform
        ]
        name = f"{campaign['nodeid'].rpartition('::')[2]}, {campaign['protection']}"
        for planned in trials:
            yield partial(stratified_cell, name, World.measured(known), planned, campaigns)


PARTS_OF_SPACE: dict[str, Callable[[FaultCell], bool]] = {
    "top bit": lambda cell: cell.top,
    "other bits": lambda cell: not cell.top,
    "a phase": lambda cell: cell.phase == "first",
    "a kind": lambda cell: cell.kind == "down",
}


def parts(campaigns: int, trials: Sequence[int]) -> Iterator[Task]:
    """Parts of the space under ``--ft2-sampling=stratified``: bits, a phase, a kind."""
    worlds = {
        f"{100 * held:.3g} % of SDCs in 1/16": partial(World.by_top_bit, held=held)
        for held in (1.0, 0.35)
    } | {"SDCs by size": World.by_size}
    for name, make in worlds.items():
        for rate in (0.0015, 0.007, 0.03):
            for planned in trials:
                yield partial(cells_of_parts, name, make(rate), planned, campaigns)


def cells_of_parts(
    name: str, world: World, planned: int, campaigns: int, random: np.random.Generator
) -> list[Cell]:
    """Run campaigns over strata, and see which parts' intervals hold the truth."""
    held = Counter[str]()
    allots = 0
    for allocation, sample in stratified_campaigns(
        AllocationRule(planned), world.masses, world.by_prompt, campaigns, random
    ):
        allots += allocation is not None
        for part, belongs in PARTS_OF_SPACE.items():
            low, high = part_interval(world, allocation, sample, belongs, random)
            held[part] += low <= rate_within(world, belongs) <= high
    return [
        Cell(
            "parts",
            f"{part}, {name}",
            100 * rate_within(world, belongs),
            planned,
            campaigns,
            held[part] / campaigns,
            beside=f"allots in {100 * allots / campaigns:.1f} %",
        )
        for part, belongs in PARTS_OF_SPACE.items()
    ]


def rate_within(world: World, belongs: Callable[[FaultCell], bool]) -> float:
    """Return the rate over a part of the space."""
    inside = np.array([belongs(cell) for cell in world.cells])
    return float(world.shares[inside] @ world.rates[inside] / world.shares[inside].sum())


def part_interval(
    world: World,
    allocation: Allocation | None,
    sample: TwoStageSample,
    belongs: Callable[[FaultCell], bool],
    random: np.random.Generator,
) -> tuple[float, float]:
    """Return the interval of a part's rate, a share, of the trials that happen to be in the part.

    Those behind the first ones where the campaign allotted them, all where it stayed uniform.
    """
    inside = np.array([belongs(cell) for cell in world.cells])
    numbers = np.zeros(len(inside), dtype=int)
    if allocation is not None:
        numbers = np.array([allocation.strata.numbers[cell] for cell in world.cells])
    ends: list[tuple[float, Callable[[float], tuple[Any, Any]]]] = []
    for number, seen in enumerate(sample.later):
        here = numbers == number
        share = float(world.shares[here & inside].sum())
        if share:
            ends.append((share, partial(exact, *_in_part(world, seen, here, inside, random))))
    whole = sum(share for share, _ in ends)
    return interval_over_strata([(share / whole, end) for share, end in ends], NOMINAL)


def _in_part(
    world: World,
    seen: LaterStratum,
    here: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    random: np.random.Generator,
) -> tuple[Any, Any]:
    """Draw how many of a stratum's events and trials are in a part, given all of both."""

    def some(number: int, masses: NDArray[np.float64]) -> int:
        whole = masses[here].sum()
        chance = masses[here & inside].sum() / whole if whole else 0.0
        return int(random.binomial(number, min(chance, 1.0)))

    events = some(seen.events, world.shares * world.rates)
    others = some(seen.trials - seen.events, world.shares * (1 - world.rates))
    return np.array(events), np.array(events + others)


PARTS = {"strata": strata, "parts": parts}


def simulated(tasks: Sequence[Task], jobs: int, random: np.random.Generator) -> Iterator[Cell]:
    """Run tasks, so many at a time, each from random numbers of its own."""
    with ProcessPoolExecutor(jobs) as pool:
        for cells in pool.map(_run, tasks, random.spawn(len(tasks))):
            yield from cells


def _run(task: Task, random: np.random.Generator) -> list[Cell]:
    return task(random)


def main() -> int:
    """Simulate, print the table, write the JSON; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaigns", type=int, default=1000, help="campaigns a cell")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--trials", type=int, nargs="+", default=TRIALS, help="of a campaign")
    parser.add_argument("--strata-of", type=Path, help="a JSON document: its models' cells alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the cells there")
    arguments = parser.parse_args()
    campaigns, trials = arguments.campaigns, arguments.trials
    tasks = {part: [*PARTS[part](campaigns, trials)] for part in arguments.only}
    if arguments.strata_of is not None:
        tasks = {"measured strata": [*measured_strata(arguments.strata_of, campaigns, trials)]}
    chosen = {part: partial(simulated, some, arguments.jobs) for part, some in tasks.items()}
    return report(chosen, arguments.seed, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
