"""A fault as text, there and back."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.faults import FORMATS, Fault

_TEXT = "call=0,step=3,layer=model.layers.0.mlp.up_proj,row=0,position=0,neuron=17,bits=14"
_COUNTS = st.integers(0, 10**9)


def _faults_in(encoding: str | None) -> st.SearchStrategy[Fault]:
    width = 64 if encoding is None else FORMATS[encoding].width
    bits = st.sets(st.integers(0, width - 1), min_size=1, max_size=4)
    return st.builds(
        Fault,
        call=_COUNTS,
        step=_COUNTS,
        layer=st.from_regex(r"[A-Za-z0-9._]+", fullmatch=True),
        row=_COUNTS,
        position=_COUNTS,
        neuron=_COUNTS,
        bits=bits.map(lambda bits: tuple(sorted(bits))),
        encoding=st.just(encoding),
    )


_FAULTS = st.sampled_from([None, *FORMATS]).flatmap(_faults_in)


def _fault(**changes: Any) -> Fault:
    site: dict[str, Any] = {"call": 0, "step": 0, "layer": "a", "row": 0, "position": 0}
    return Fault(**{**site, "neuron": 0, "bits": (0,), **changes})


@given(_FAULTS)
def test_the_text_of_a_fault_reads_back_as_that_fault(fault: Fault) -> None:
    assert Fault.parse(str(fault)) == fault
    assert hash(Fault.parse(str(fault))) == hash(fault)


@given(_FAULTS)
def test_the_text_of_a_fault_fits_in_a_test_id_and_a_shell_word(fault: Fault) -> None:
    assert re.fullmatch(r"[A-Za-z0-9.:=,_-]+", str(fault))


@given(_FAULTS, _FAULTS)
def test_different_faults_have_different_texts(one: Fault, other: Fault) -> None:
    assert (str(one) == str(other)) == (one == other)


def test_the_text_names_the_site() -> None:
    fault = _fault(step=3, layer="model.layers.0.mlp.up_proj", neuron=17, bits=(3, 14))
    assert str(fault) == f"{_TEXT[: -len('14')]}3:14"
    assert str(_fault(encoding="bf16")).endswith(",encoding=bf16")


@given(st.permutations(_TEXT.split(",")))
def test_the_order_of_the_parts_does_not_matter(parts: list[str]) -> None:
    assert str(Fault.parse(",".join(parts))) == _TEXT


def test_space_around_the_text_does_not_matter() -> None:
    assert str(Fault.parse(f"  {_TEXT}\n")) == _TEXT


@given(st.text())
def test_any_other_text_is_refused_with_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Fault.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should read name=value"),
        (f"{_TEXT},", "should read name=value"),
        (f"{_TEXT},bits=3", "'bits=3' .* once"),
        (_TEXT.replace("row=0,", ""), "row is missing"),
        (f"{_TEXT},colour=red", "'colour' is not part of one"),
        (_TEXT.replace("neuron=17", "neuron=-17"), "neuron='-17' should be a whole number"),
        (_TEXT.replace("neuron=17", "neuron=1.7"), "neuron='1.7' should be a whole number"),
        (_TEXT.replace("neuron=17", "neuron=\u0661"), "should be a whole number"),
        (_TEXT.replace("bits=14", "bits="), "bits='' should be a whole number"),
        (_TEXT.replace("bits=14", "bits=14:14"), "distinct, ascending"),
        (_TEXT.replace("bits=14", "bits=14:3"), "distinct, ascending"),
        (_TEXT.replace("layer=model", "layer=my model"), "is not the name of a layer"),
        (f"{_TEXT},encoding=fp12", "unknown number format 'fp12'"),
        (f"{_TEXT},encoding=", "unknown number format ''"),
    ],
)
def test_a_wrong_text_is_refused_and_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fault.parse(text)


@pytest.mark.parametrize("name", ["call", "step", "row", "position", "neuron"])
@pytest.mark.parametrize("wrong", [-1, True, 0.5])
def test_numbers_are_whole_and_count_from_zero(name: str, wrong: Any) -> None:
    assert getattr(_fault(**{name: 0}), name) == 0
    with pytest.raises(ValueError, match=f"{name} is a whole number from 0, not {wrong}"):
        _fault(**{name: wrong})


def test_bits_are_those_of_the_encoding() -> None:
    assert _fault(bits=(15,), encoding="bf16").bits == (15,)
    with pytest.raises(ValueError, match=r"\[16\] are not all bits of fp16: use 0 to 15"):
        _fault(bits=(16,), encoding="fp16")


@pytest.mark.parametrize("bits", [(), (3, 3), (4, 3), (-1,), (-2, 4)])
def test_bits_are_distinct_ascending_and_at_least_one(bits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="distinct, ascending and at least one"):
        _fault(bits=bits)


@pytest.mark.parametrize("layer", ["", "a,b", "a=b", "a b", "a\n", "é"])
def test_a_layers_name_has_no_characters_of_the_texts_own(layer: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a layer"):
        _fault(layer=layer)
