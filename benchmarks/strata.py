"""Which strata would pay? What an ideal allocation of the trials gains, by what strata are made of.

Reads campaigns that were sampled uniformly, as ``--ft2-json`` writes them. For each way to part the
space, one half of the trials teaches where SDCs are, and the other half tells what Neyman's
allocation by that would make of the variance; then the other way round. The intervals of so many
strata, which cost some of that, are left out: it is what no design of those strata can exceed.

Run it from the project's root: ``python benchmarks/strata.py JSON …``. ``benchmarks/README.md``
says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ft2.faults import Fault, flips_top_bit, number_format
from ft2.report import layer_kind

Trial = dict[str, Any]
# Of each trial its stratum, and whether it was wrong.
Labelled = list[tuple[Hashable, bool]]

# Halves are made of runs of trials, so that each holds all prompts alike.
RUN = 32
# Rates are shrunk towards the mean as if so many more trials had shown it, and of each stratum's
# proportional share at least this part is kept: what is learned is not trusted blindly.
SHRINKAGE, KEPT = 2.0, 0.3
# Powers of two beyond which changes are not told apart.
SMALLEST, LARGEST = -20, 20


def size(trial: Trial) -> int:
    """Return the power of two up to which a fault changed its value; not finite: the largest."""
    change = abs(float(trial["after"]) - float(trial["before"]))
    if not math.isfinite(change):
        return LARGEST
    return SMALLEST if change == 0 else min(max(math.frexp(change)[1], SMALLEST), LARGEST)


def is_hot(trial: Trial) -> bool:
    """Whether a fault flips the highest exponent bit."""
    fault = Fault.parse(trial["fault"])
    assert fault.encoding is not None
    return flips_top_bit(fault.bits, number_format(fault.encoding))


def bit(trial: Trial) -> int:
    """Return the highest bit that a fault flips."""
    return max(Fault.parse(trial["fault"]).bits)


def kind(trial: Trial) -> str:
    """Return the kind of layer that a fault struck."""
    return layer_kind(Fault.parse(trial["fault"]).layer)


def phase(trial: Trial) -> str:
    """Return whether a fault struck in the first token or later."""
    return "later" if Fault.parse(trial["fault"]).step else "first"


def cell(trial: Trial) -> tuple[int, str, str]:
    """Return all three: the bit, the kind of layer and the phase."""
    return bit(trial), kind(trial), phase(trial)


STRATA: dict[str, Callable[[Trial], Hashable]] = {
    "top exponent bit": is_hot,
    "change ≥ 16": lambda trial: size(trial) > 4,
    "each bit": bit,
    "change, by powers of 2": size,
    "top bit x kind": lambda trial: is_hot(trial) and kind(trial),
    "top bit x phase": lambda trial: is_hot(trial) and phase(trial),
    "top bit x change": lambda trial: is_hot(trial) and (0, size(trial)),
    "bit x kind x phase": cell,
}


def gain(trials: list[Trial], stratum: Callable[[Trial], Hashable]) -> float:
    """Return how many times the variance uniform sampling has, halves taking turns."""
    halves = _halves(trials, stratum)
    return _gain([(learnt, told) for learnt, told in (halves, halves[::-1])])


def gain_of_two(trials: list[Trial], stratum: Callable[[Trial], Hashable]) -> float:
    """Return the same of two strata only: the best that one half finds, made of whole ones."""
    halves = _halves(trials, stratum)
    turns = []
    for learnt, told in (halves, halves[::-1]):
        hot = _hottest(learnt, _shares(learnt + told))
        turns.append((_merged(learnt, hot), _merged(told, hot)))
    return _gain(turns)


def _halves(trials: list[Trial], stratum: Callable[[Trial], Hashable]) -> list[Labelled]:
    halves: list[Labelled] = [[], []]
    for number, trial in enumerate(trials):
        halves[number // RUN % 2].append((stratum(trial), trial["outcome"] == "sdc"))
    return halves


def _shares(labelled: Labelled) -> dict[Hashable, float]:
    counts = Counter(name for name, _ in labelled)
    return {name: count / len(labelled) for name, count in counts.items()}


def _rates(learnt: Labelled, shares: dict[Hashable, float]) -> dict[Hashable, float]:
    mean = sum(wrong for _, wrong in learnt) / len(learnt)
    seen, events = Counter(name for name, _ in learnt), Counter(n for n, e in learnt if e)
    return {name: (events[name] + SHRINKAGE * mean) / (seen[name] + SHRINKAGE) for name in shares}


def _hottest(learnt: Labelled, shares: dict[Hashable, float]) -> set[Hashable]:
    """Return the strata that, merged into one beside all others, leave the least variance."""
    rates = _rates(learnt, shares)
    order = sorted(shares, key=lambda name: -rates[name])

    def deviation(count: int) -> float:
        parts = order[:count], order[count:]
        weights = [sum(shares[name] for name in part) for part in parts]
        events = [sum(shares[name] * rates[name] for name in part) for part in parts]
        return sum(math.sqrt(w * e) for w, e in zip(weights, events, strict=True))

    return set(order[: min(range(1, max(len(order), 2)), key=deviation)])


def _merged(labelled: Labelled, hot: set[Hashable]) -> Labelled:
    return [(name in hot, wrong) for name, wrong in labelled]


def _gain(turns: list[tuple[Labelled, Labelled]]) -> float:
    uniform = stratified = 0.0
    for learnt, told in turns:
        shares = _shares(learnt + told)
        rates = _rates(learnt, shares)
        ideal = {name: share * math.sqrt(rates[name]) for name, share in shares.items()}
        total = sum(ideal.values())
        rate = sum(wrong for _, wrong in told) / len(told)
        uniform += rate * (1 - rate)
        found, wrong = Counter(name for name, _ in told), Counter(n for n, e in told if e)
        for name, share in shares.items():
            drawn = (1 - KEPT) * ideal[name] / total + KEPT * share
            weight = share / drawn
            stratified += weight * wrong[name] / len(told)
            if found[name]:
                stratified -= weight * share * (wrong[name] / found[name]) ** 2
    return uniform / stratified


def main() -> None:
    """Print a row for each campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", nargs="+", type=Path, metavar="JSON")
    rows = []
    for path in parser.parse_args().documents:
        for campaign in json.loads(path.read_text(encoding="utf-8"))["campaigns"]:
            trials = [trial for trial in campaign["trials"] if trial["fault"] is not None]
            wrong = [trial for trial in trials if trial["outcome"] == "sdc"]
            rows.append(
                (
                    f"{campaign['nodeid'].rpartition('::')[2]}, {campaign['protection']}",
                    f"{len(wrong)} of {len(trials)}",
                    f"{100 * sum(map(is_hot, wrong)) / max(1, len(wrong)):.0f} %",
                    *(f"{gain(trials, stratum):.1f}" for stratum in STRATA.values()),
                    f"{gain_of_two(trials, cell):.1f}",
                )
            )
    headers = ("campaign", "SDCs", "in the top bit", *STRATA, "two of bit x kind x phase")
    print(tabulate(rows, headers, disable_numparse=True))


if __name__ == "__main__":
    main()
