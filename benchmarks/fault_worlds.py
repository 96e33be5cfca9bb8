"""Worlds of faults: cells with their shares of the space, and known rates of SDCs in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm
from strata import size

from ft2.verdict import Cell as FaultCell

__all__ = ["World"]

# Kinds of layers, each with its share of the faults, and the mean exponent of its values.
KINDS = {"attention": (0.25, -2.0), "up": (0.35, -3.0), "down": (0.25, -1.0), "norm": (0.15, 0.0)}
PHASES = {"first": 0.12, "later": 0.88}
# The standard deviation of the exponents, and those that are left out as too rare.
SPREAD, FARTHEST = 2.0, 7


@dataclass(frozen=True)
class World:
    """Cells of faults, and where SDCs come from.

    Attributes
    ----------
    masses:
        The cells' shares of the space.
    by_prompt:
        The cells' rates on each prompt; trials are dealt to the prompts in turn.
    """

    masses: dict[FaultCell, float]
    by_prompt: tuple[dict[FaultCell, float], ...]

    @cached_property
    def cells(self) -> list[FaultCell]:
        """The cells, in one order."""
        return [*self.masses]

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """Their shares of the space."""
        return np.array([*self.masses.values()])

    @cached_property
    def rates(self) -> NDArray[np.float64]:
        """Their rates, over all prompts."""
        each = [[rates[cell] for cell in self.cells] for rates in self.by_prompt]
        return np.asarray(np.mean(each, axis=0))

    @property
    def rate(self) -> float:
        """The overall rate."""
        return float(self.shares @ self.rates)

    @classmethod
    def by_top_bit(
        cls, rate: float, held: float, weight: float = 1 / 16, prompts: int = 1
    ) -> World:
        """Return a world of an overall rate, and the share of SDCs that flip the top bit.

        Of each `prompts` prompts, one alone is ever answered wrongly.
        """
        masses = population(weight)
        on_one = {
            cell: prompts * rate * (held / weight if cell.top else (1 - held) / (1 - weight))
            for cell in masses
        }
        none = dict.fromkeys(masses, 0.0)
        return cls(masses, (on_one, *[none] * (prompts - 1)))

    @classmethod
    def by_size(cls, rate: float) -> World:
        """Return a world whose SDCs come of large changes, whatever bit makes them.

        As where every token is judged: the logits of the rates grow with the sizes, and differ by
        kind and phase.
        """
        masses = population()
        slopes = {"attention": 0.8, "up": 0.5, "down": 0.9, "norm": 0.6}
        logits = np.array(
            [
                slopes[cell.kind] * min(cell.size, 6)
                + (cell.kind == "down")
                - 0.5 * (cell.phase == "first")
                for cell in masses
            ]
        )
        shares = np.array([*masses.values()])

        def excess(start: float) -> float:
            return float(shares @ expit(start + logits)) - rate

        rates = expit(brentq(excess, -40, 20) + logits)
        return cls(masses, (dict(zip(masses, rates.tolist(), strict=True)),))

    @classmethod
    def measured(cls, trials: Sequence[dict[str, Any]]) -> World:
        """Return the world of a campaign's trials: each cell has the rate that it showed."""
        from ft2.faults import Fault, flips_top_bit, number_format
        from ft2.report import layer_kind

        seen: Counter[FaultCell] = Counter()
        events: Counter[FaultCell] = Counter()
        for trial in trials:
            fault = Fault.parse(trial["fault"])
            assert fault.encoding is not None
            top = flips_top_bit(fault.bits, number_format(fault.encoding))
            phase = "later" if fault.step else "first"
            cell = FaultCell(layer_kind(fault.layer), phase, max(fault.bits), top, size(trial))
            seen[cell] += 1
            events[cell] += trial["outcome"] == "sdc"
        masses = {cell: number / len(trials) for cell, number in seen.items()}
        return cls(masses, ({cell: events[cell] / number for cell, number in seen.items()},))


def population(weight: float = 1 / 16) -> dict[FaultCell, float]:
    """Return the shares of the cells where one of fp16's 16 bits flips.

    Parameters
    ----------
    weight:
        The share of the faults that flip the top bit.
    """
    masses: dict[FaultCell, float] = {}
    for kind, (share, centre) in KINDS.items():
        exponents = np.arange(round(centre) - FARTHEST, round(centre) + FARTHEST + 1)
        chances = norm.pdf(exponents, centre, SPREAD)
        for exponent, chance in zip(exponents.tolist(), chances / chances.sum(), strict=True):
            for bit in range(16):
                top = bit == 14
                of_bit = weight if top else (1 - weight) / 15
                size = size_of(exponent, bit)
                for phase, part in PHASES.items():
                    cell = FaultCell(kind, phase, bit, top, size)
                    mass = share * float(chance) * of_bit * part
                    masses[cell] = masses.get(cell, 0.0) + mass
    return masses


def size_of(exponent: int, bit: int) -> int:
    """Return how much flipping a bit of fp16 changes a value between 2**exponent and its double."""
    if bit < 10:
        return exponent + bit - 10
    if bit == 15:
        return exponent + 1
    place = 1 << (bit - 10)
    return exponent if (exponent + 15) & place else exponent + place
