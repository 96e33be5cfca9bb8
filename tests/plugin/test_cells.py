"""Cells of draws, and the draws that are chosen for strata."""

from __future__ import annotations

from collections import Counter

import pytest

from ft2.verdict import Cell
from pytest_ft2.cells import CampaignCells, UnknownCellsError

WIDE = Cell("mlp.up_proj", "later", 3, False, -8)
NARROW = Cell("mlp.up_proj", "later", 14, True, 12)
PLANNED, SETS = 1000, 500


def cells() -> CampaignCells:
    """Return the cells of a campaign whose every ninth draw is in the narrow stratum."""
    found = CampaignCells.of(9 * PLANNED)
    for draw in range(9 * PLANNED):
        found.put(draw, WIDE if draw % 9 else NARROW)
    found.masses = {0: {WIDE: 0.9, NARROW: 0.1}, 1: {WIDE: 0.7, NARROW: 0.3}}
    return found


def test_chosen_draws_are_of_their_stratum_and_of_all_parameter_sets_alike() -> None:
    numbers = {NARROW: 0, WIDE: 1}
    chosen = cells().chosen(PLANNED, numbers, (40, 200), seed=0)
    assert len(set(chosen)) == 240
    assert min(chosen) >= PLANNED
    assert sum(draw % 9 == 0 for draw in chosen) == 40
    # Draws are dealt to sets in turn: no tenth of the sets has a third of them.
    tenths = Counter(draw % SETS // 50 for draw in chosen)
    assert max(tenths.values()) < 240 / 3


def test_the_choice_depends_on_the_seed_alone() -> None:
    numbers = {NARROW: 0, WIDE: 1}
    one, other = (cells().chosen(PLANNED, numbers, (40, 200), seed) for seed in (3, 3))
    assert one == other != cells().chosen(PLANNED, numbers, (40, 200), 4)


def test_shares_are_those_of_all_parameter_sets_and_of_each() -> None:
    found = cells()
    assert found.shares == pytest.approx({WIDE: 0.8, NARROW: 0.2})
    by_set = found.shares_of_strata({NARROW: 0, WIDE: 1}, 2)
    assert by_set == {0: [0.1, 0.9], 1: [0.3, 0.7]}


def test_a_cell_without_a_stratum_is_told_by_a_sentence() -> None:
    with pytest.raises(UnknownCellsError, match="Two processes computed different values"):
        cells().chosen(PLANNED, {NARROW: 0}, (40,), seed=0)
    with pytest.raises(UnknownCellsError, match="Two processes computed different values"):
        cells().shares_of_strata({NARROW: 0}, 1)
