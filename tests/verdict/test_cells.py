"""Strata made of cells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.verdict import Cell, Strata


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=30), st.data())
def test_a_stratum_weighs_what_its_cells_weigh(shares: list[float], data: st.DataObject) -> None:
    cells = [Cell("mlp", "later", bit, False, bit) for bit in range(len(shares))]
    masses = {cell: share / sum(shares) for cell, share in zip(cells, shares, strict=True)}
    numbers = {cell: data.draw(st.integers(0, 2)) for cell in cells}
    strata = Strata.of(masses, numbers, ("a", "b", "c"))
    assert sum(strata.weights) == pytest.approx(1)
    for number, weight in enumerate(strata.weights):
        here = [mass for cell, mass in masses.items() if numbers[cell] == number]
        assert weight == pytest.approx(sum(here))
