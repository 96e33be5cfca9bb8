"""Strata of faults: their exact weights, and draws that stay uniform within each."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.faults import (
    FAULT_MODELS,
    FORMATS,
    TOP_BIT,
    Draw,
    Execution,
    Space,
    Step,
    fault_model,
    sample_top_bit,
    stratum_of,
    top_bit_weight,
)


def space(*encodings: str) -> Space:
    executions = tuple(
        Execution(f"model.layers.0.layer{number}", 8, 4, encoding, 0, 3, ((0, 0, 3),))
        for number, encoding in enumerate(encodings)
    )
    return Space((Step(0, 0, executions), Step(0, 1, executions[:1])))


@pytest.mark.parametrize("encoding", FORMATS)
def test_the_weight_is_the_exact_chance_of_the_highest_exponent_bit(encoding: str) -> None:
    chosen = FORMATS[encoding]
    expected = {
        "1-bit": Fraction(1, chosen.width),
        "2-bit": Fraction(2, chosen.width),
        "exp": Fraction(1, chosen.exponent_bits),
    }
    assert expected.keys() == FAULT_MODELS.keys()
    for name, weight in expected.items():
        assert top_bit_weight(space(encoding), fault_model(name), None) == weight


@given(st.sampled_from(list(FAULT_MODELS)), st.integers(0, 10**6), st.text(max_size=5))
def test_a_fault_of_the_top_bit_hits_the_element_that_uniform_sampling_would_hit(
    name: str, trial: int, key: str
) -> None:
    model, whole = fault_model(name), space("fp32", "fp32")
    found = sample_top_bit(whole, Draw(0, key, trial), model, "fp16")
    uniform = whole.sample(Draw(0, key, trial), model, "fp16")
    assert stratum_of(found) == TOP_BIT
    for part in ("call", "step", "layer", "row", "position", "neuron", "encoding"):
        assert getattr(found, part) == getattr(uniform, part)


@pytest.mark.parametrize("name", FAULT_MODELS)
def test_faults_of_the_top_bit_are_those_of_uniform_sampling_that_flip_it(name: str) -> None:
    model, whole, trials = fault_model(name), space("fp16"), 6000
    uniform = [whole.sample(Draw(1, "", trial), model) for trial in range(trials)]
    drawn = Counter(
        sample_top_bit(whole, Draw(0, "", trial), model, None).bits for trial in range(trials)
    )
    expected = Counter(fault.bits for fault in uniform if stratum_of(fault) == TOP_BIT)
    assert set(drawn) == set(expected)
    share, weight = expected.total() / trials, float(top_bit_weight(whole, model, None))
    assert share == pytest.approx(weight, abs=4 * math.sqrt(weight * (1 - weight) / trials))
    each = trials / len(drawn)
    assert max(abs(count - each) for count in drawn.values()) < 6 * math.sqrt(each)


def test_layers_of_several_formats_need_the_encoding_named() -> None:
    model = fault_model("1-bit")
    with pytest.raises(ValueError, match="compute in bf16, fp32: name one with --ft2-encoding"):
        top_bit_weight(space("fp32", "bf16"), model, None)
    assert top_bit_weight(space("fp32", "fp16"), model, "fp16") == Fraction(1, 16)


def test_a_fault_model_with_one_stratum_is_refused() -> None:
    with pytest.raises(ValueError, match="highest exponent bit of fp16 in some faults and not in"):
        top_bit_weight(space("fp16"), lambda encoding, draw: (0,), None)
    with pytest.raises(ValueError, match="highest exponent bit of fp16 in some faults and not in"):
        sample_top_bit(space("fp16"), Draw(0, "", 0), lambda encoding, draw: (0,), None)
