"""The cells of a campaign's space in one process: their shares, and those of its draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ft2.verdict import Cell

__all__ = ["CampaignCells", "UnknownCellsError"]


class UnknownCellsError(ValueError):
    """The cells of a campaign cannot be known."""


@dataclass
class CampaignCells:
    """Where the draws of a campaign fall.

    Attributes
    ----------
    masses:
        Of each parameter set that trials are dealt to the cells' shares of its space, by number.
    """

    masses: dict[int, dict[Cell, float]] = field(default_factory=dict)
    _cells: list[Cell] = field(default_factory=list)
    _places: dict[Cell, int] = field(default_factory=dict)
    _of_draws: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))

    @classmethod
    def of(cls, draws: int) -> CampaignCells:
        """Return room for so many draws."""
        return cls(_of_draws=np.full(draws, -1, dtype=np.int32))

    def put(self, draw: int, cell: Cell) -> None:
        """Note the cell of a draw."""
        place = self._places.setdefault(cell, len(self._cells))
        if place == len(self._cells):
            self._cells.append(cell)
        self._of_draws[draw] = place

    def cell(self, draw: int) -> Cell:
        """Return the cell of a draw."""
        return self._cells[self._of_draws[draw]]

    @property
    def shares(self) -> dict[Cell, float]:
        """The cells' shares of the space, over all parameter sets."""
        found: dict[Cell, float] = {}
        for masses in self.masses.values():
            for cell, mass in masses.items():
                found[cell] = found.get(cell, 0.0) + mass / len(self.masses)
        return found

    def shares_of_strata(self, numbers: Mapping[Cell, int], strata: int) -> dict[int, list[float]]:
        """Return the strata's shares of each parameter set's space.

        Raises
        ------
        UnknownCellsError
            If a cell has no stratum.
        """
        self._check({cell for masses in self.masses.values() for cell in masses}, numbers)
        found = {number: [0.0] * strata for number in self.masses}
        for number, masses in self.masses.items():
            for cell, mass in masses.items():
                found[number][numbers[cell]] += mass
        return found

    def chosen(
        self, planned: int, numbers: Mapping[Cell, int], more: Sequence[int], seed: int
    ) -> list[int]:
        """Return draws behind the planned ones, so many of each stratum, ascending.

        Those are chosen at random: draws are dealt to parameter sets in turn, so the first ones
        of a stratum would be of the first sets.

        Parameters
        ----------
        numbers:
            Of each cell the number of its stratum.
        more:
            How many of each stratum, where there are as many.
        seed:
            Determines the choice.

        Raises
        ------
        UnknownCellsError
            If a draw's cell has no stratum.
        """
        self._check(self._cells, numbers)
        strata = np.array([numbers[cell] for cell in self._cells])
        order = np.random.default_rng(seed).permutation(len(self._of_draws) - planned)
        behind = strata[self._of_draws[planned:]][order]
        places = [
            order[np.flatnonzero(behind == number)[:count]] for number, count in enumerate(more)
        ]
        return sorted(planned + int(place) for each in places for place in each)

    def _check(self, cells: Iterable[Cell], numbers: Mapping[Cell, int]) -> None:
        if any(cell not in numbers for cell in cells):
            raise UnknownCellsError(
                "Two processes computed different values without a fault, so strata differ between "
                "them: use --ft2-sampling=uniform, or one process."
            )
