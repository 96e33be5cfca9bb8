"""Uniform numbers that nothing but seed, name and trial decides, and the bits chosen by them."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ft2.faults import FAULT_MODELS, FORMATS, Draw, NumberFormat, fault_model

_BOUNDS = st.lists(st.integers(1, 2**40), min_size=1, max_size=6)
_FORMATS = st.sampled_from(list(FORMATS.values()))


@given(st.integers(), st.text(), st.integers(0, 10**6), _BOUNDS)
def test_the_same_seed_name_and_trial_draw_the_same(
    seed: int, name: str, trial: int, bounds: list[int]
) -> None:
    first, second = Draw(seed, name, trial), Draw(seed, name, trial)
    drawn = [first.below(bound) for bound in bounds]
    assert drawn == [second.below(bound) for bound in bounds]
    assert all(0 <= number < bound for number, bound in zip(drawn, bounds, strict=True))


@given(_BOUNDS)
def test_a_number_does_not_depend_on_what_those_before_it_were_used_for(bounds: list[int]) -> None:
    first, second = Draw(0, "test", 1), Draw(0, "test", 1)
    for bound in bounds:
        first.below(bound)
        second.below(2)
    assert first.below(10**9) == second.below(10**9)


@given(st.permutations(range(8)))
def test_a_trials_numbers_do_not_depend_on_the_order_of_trials(order: list[int]) -> None:
    expected = [Draw(0, "test", trial).below(10**9) for trial in range(8)]
    found = {trial: Draw(0, "test", trial).below(10**9) for trial in order}
    assert [found[trial] for trial in range(8)] == expected


def test_interleaved_draws_do_not_disturb_each_other() -> None:
    alone = Draw(0, "test", 0)
    expected = [alone.below(1000) for _ in range(4)]
    one, other = Draw(0, "test", 0), Draw(0, "test", 1)
    found = []
    for _ in range(4):
        found.append(one.below(1000))
        other.below(1000)
    assert found == expected


def test_no_librarys_random_state_is_read_or_changed() -> None:
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    expected = Draw(0, "test", 0).below(10**9)
    assert states == (
        random.getstate(),
        str(np.random.get_state()),
        torch.get_rng_state().tolist(),
    )
    random.seed(1)
    torch.manual_seed(1)
    assert Draw(0, "test", 0).below(10**9) == expected


def test_another_process_draws_the_same() -> None:
    code = "from ft2.faults.draw import Draw; print(Draw(7, 'test_ä', 3).below(10**12))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(found.stdout) == Draw(7, "test_ä", 3).below(10**12)


def test_known_draws_stay_what_they_are() -> None:
    draw = Draw(0, "test_qa.py::test_capital", 0)
    assert [draw.below(10**6) for _ in range(3)] == [394866, 406987, 562353]


def test_seed_name_and_trial_each_make_a_difference() -> None:
    draws = [Draw(0, "a", 0), Draw(1, "a", 0), Draw(0, "b", 0), Draw(0, "a", 1), Draw(0, "a0", 0)]
    assert len({draw.below(2**60) for draw in draws}) == len(draws)


@pytest.mark.parametrize("bound", [2, 3, 7, 16, 100])
def test_numbers_are_uniform_over_trials_and_within_one(bound: int) -> None:
    over_trials = Counter(Draw(0, "test", trial).below(bound) for trial in range(8000))
    one = Draw(0, "test", 0)
    within = Counter(one.below(bound) for _ in range(8000))
    for counts in (over_trials, within):
        assert stats.chisquare([counts[number] for number in range(bound)]).pvalue > 1e-4


def test_numbers_that_follow_each_other_are_independent() -> None:
    table = np.zeros((6, 6))
    for trial in range(8000):
        draw = Draw(3, "test", trial)
        table[draw.below(6), draw.below(6)] += 1
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_huge_bounds_are_drawn_below_without_bias_to_small_numbers() -> None:
    draws = [Draw(0, "test", trial).below(2**100) / 2**100 for trial in range(4000)]
    assert stats.kstest(draws, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("bound", [0, -3])
def test_nothing_can_be_drawn_below_zero(bound: int) -> None:
    with pytest.raises(ValueError, match=f"cannot draw a number below {bound}"):
        Draw(0, "test", 0).below(bound)


@given(_FORMATS, st.integers(0, 10**6))
def test_one_bit_faults_flip_one_bit_of_the_format(encoding: NumberFormat, trial: int) -> None:
    (bit,) = FAULT_MODELS["1-bit"](encoding, Draw(0, "test", trial))
    assert 0 <= bit < encoding.width


@given(_FORMATS, st.integers(0, 10**6))
def test_two_bit_faults_flip_two_distinct_bits(encoding: NumberFormat, trial: int) -> None:
    first, second = FAULT_MODELS["2-bit"](encoding, Draw(0, "test", trial))
    assert 0 <= first < second < encoding.width


@given(_FORMATS, st.integers(0, 10**6))
def test_exponent_faults_flip_one_bit_of_the_exponent(encoding: NumberFormat, trial: int) -> None:
    (bit,) = FAULT_MODELS["exp"](encoding, Draw(0, "test", trial))
    assert bit in encoding.exponent


@pytest.mark.parametrize("encoding", FORMATS.values(), ids=lambda each: each.name)
@pytest.mark.parametrize("name", FAULT_MODELS)
def test_every_choice_of_a_fault_model_is_equally_likely(name: str, encoding: NumberFormat) -> None:
    bits = encoding.exponent if name == "exp" else range(encoding.width)
    choices = list(combinations(bits, 2 if name == "2-bit" else 1))
    trials = max(20 * len(choices), 2000)
    counts = Counter(fault_model(name)(encoding, Draw(0, name, trial)) for trial in range(trials))
    assert set(counts) <= set(choices)
    assert stats.chisquare([counts[choice] for choice in choices]).pvalue > 1e-4


def test_an_unknown_fault_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown fault model '3-bit': use one of 1-bit, 2-bit, exp"
    ):
        fault_model("3-bit")
