"""Cells of the space of faults, and strata made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Cell", "Strata"]


class Cell(NamedTuple):
    """What is known of a fault before it strikes.

    Attributes
    ----------
    kind:
        The kind of layer that it strikes.
    phase:
        ``first`` for the first token's step, ``later`` for all others.
    bit:
        The highest bit that it flips.
    top:
        Whether it flips the highest bit of the exponent.
    size:
        How much it changes the value: a power of two.
    """

    kind: str
    phase: str
    bit: int
    top: bool
    size: int


@dataclass(frozen=True)
class Strata:
    """The space of faults, parted by cells.

    Attributes
    ----------
    names:
        The strata's names, that with the most SDCs first.
    weights:
        Their shares of the space; they add up to 1.
    numbers:
        Of each cell the number of its stratum.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    numbers: Mapping[Cell, int]

    @classmethod
    def of(
        cls, masses: Mapping[Cell, float], numbers: Mapping[Cell, int], names: tuple[str, ...]
    ) -> Strata:
        """Return the strata that `numbers` makes of the cells.

        Parameters
        ----------
        masses:
            The cells' shares of the space.
        numbers:
            Of each cell the number of its stratum.
        names:
            The strata's names, by number.
        """
        weights = [0.0] * len(names)
        for cell, mass in masses.items():
            weights[numbers[cell]] += mass
        return cls(names, tuple(weights), numbers)
