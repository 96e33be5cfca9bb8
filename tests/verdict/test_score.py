"""A score that is learned from trials."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.verdict import Cell
from ft2.verdict.score import cell_features, learned_chances


def cell(size: int, kind: str = "mlp", phase: str = "later", top: bool = False) -> Cell:
    return Cell(kind, phase, 14 if top else 9, top, size)


def learned(seen: dict[Cell, tuple[int, int]], asked: list[Cell] | None = None) -> np.ndarray:
    """Return what is learned of the cells asked for, those seen if none are."""
    cells = list(dict.fromkeys([*seen, *(asked or [])]))
    trials, events = np.array([seen.get(each, (0, 0)) for each in cells], dtype=float).T
    chances = dict(zip(cells, learned_chances(cell_features(cells), trials, events), strict=True))
    return np.array([chances[each] for each in asked or seen])


def test_larger_changes_are_learned_to_be_more_dangerous() -> None:
    seen = {cell(size): (200, max(0, 10 * size)) for size in range(-10, 11)}
    chances = learned(seen)
    assert (np.diff(chances[9:]) > 0).all()
    assert chances[0] < 0.01
    assert 0.3 < chances[-1] < 0.7


def test_kinds_phases_and_the_top_bit_are_told_apart() -> None:
    seen = {
        cell(4, "attention"): (400, 20),
        cell(4, "mlp"): (400, 200),
        cell(4, "mlp", "first"): (400, 40),
        cell(4, "mlp", top=True): (400, 320),
    }
    chances = learned(seen)
    assert list(np.argsort(chances)) == [0, 2, 1, 3]


def test_a_kind_that_was_never_struck_has_the_chance_of_its_size() -> None:
    seen = {cell(size): (300, 150 if size > 0 else 0) for size in range(-8, 9)}
    low, high = learned(seen, [cell(-5, "new"), cell(6, "new")])
    assert low < 0.1 < high


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-20, 20), st.sampled_from(["a", "b"]), st.integers(1, 50), st.floats(0, 1)
        ),
        min_size=1,
        max_size=20,
    )
)
def test_whatever_was_seen_the_chances_are_chances(
    rows: list[tuple[int, str, int, float]],
) -> None:
    seen = {cell(size, kind): (trials, int(trials * part)) for size, kind, trials, part in rows}
    chances = learned(seen)
    assert ((chances >= 0) & (chances <= 1)).all()


def test_the_order_of_what_was_seen_changes_little() -> None:
    seen = {cell(size, kind): (50, max(0, size)) for size in range(-9, 10) for kind in ("a", "b")}
    backwards = dict(reversed(seen.items()))
    np.testing.assert_allclose(learned(seen), learned(backwards)[::-1], atol=1e-4)
