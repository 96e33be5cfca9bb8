"""What ``coverage.py`` and ``coverage_strata.py`` tell of simulated campaigns, as a table."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from tabulate import tabulate

NOMINAL = 0.95
# A budget that the truth exceeds by as little as can be.
JUST_BELOW = 1 - 1e-9
# What the looks may cost where they mislead, as a share of the width: a rule that ever departs from
# uniform sampling also does so by chance where that is best.
PRICE = 0.002


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


def report(
    parts: Mapping[str, Callable[[np.random.Generator], Iterator[Cell]]],
    seed: int,
    file: str | None,
) -> int:
    """Simulate, print the table, write the JSON; return the exit status.

    Parameters
    ----------
    parts:
        What simulates the cells, by the part's name.
    seed:
        Each part starts from it.
    file:
        Where the cells are written to, if anywhere.
    """
    cells: list[Cell] = []
    for part, simulate in parts.items():
        started = time.perf_counter()
        cells += simulate(np.random.default_rng(seed))
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(tabulate([row(cell) for cell in cells], HEADERS, disable_numparse=True))
    if file:
        with open(file, "w", encoding="utf-8") as written:
            json.dump(
                {"nominal": NOMINAL, "cells": [asdict(cell) for cell in cells]}, written, indent=1
            )
    return 0 if all(cell.keeps_its_promise for cell in cells) else 1
