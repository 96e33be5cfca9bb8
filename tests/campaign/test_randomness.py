"""The random states of Python, numpy and torch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ft2.campaign import preserved_randomness, seed_everything


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def _draw_and_raise() -> None:
    with preserved_randomness():
        seed_everything(4, "inside")
        draw()
        raise KeyError


@given(st.integers(0, 2**70), st.text())
def test_equal_seeds_and_names_give_equal_numbers(seed: int, name: str) -> None:
    with preserved_randomness():
        seed_everything(seed, name)
        first = draw()
        draw()
        seed_everything(seed, name)
        assert draw() == first


@pytest.mark.parametrize(("seed", "name"), [(1, "a"), (0, "b"), (0, "")])
def test_other_seeds_or_names_give_other_numbers(seed: int, name: str) -> None:
    with preserved_randomness():
        seed_everything(0, "a")
        first = draw()
        seed_everything(seed, name)
        assert all(one != other for one, other in zip(first, draw(), strict=True))


def test_states_are_put_back_also_after_an_error() -> None:
    seed_everything(3, "before")
    expected = [draw(), draw()]
    seed_everything(3, "before")
    seen = [draw()]
    with pytest.raises(KeyError):
        _draw_and_raise()
    seen.append(draw())
    assert seen == expected
