"""The space of sites: each element exactly once, each step equally likely."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ft2.faults import (
    FAULT_MODELS,
    Draw,
    EmptySpaceError,
    Execution,
    Fault,
    Space,
    Step,
    fault_model,
)

_ONE_BIT = FAULT_MODELS["1-bit"]


def _execution(
    layer: str = "a",
    columns: int = 3,
    first: int = 0,
    tokens: int = 2,
    real: tuple[tuple[int, int, int], ...] | None = None,
    encoding: str = "fp32",
) -> Execution:
    return Execution(
        layer=layer,
        columns=columns,
        macs=5,
        encoding=encoding,
        first_position=first,
        tokens=tokens,
        real=((0, 0, tokens),) if real is None else real,
    )


_RANGES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4)), max_size=3
).map(lambda ranges: tuple((row, start, start + length) for row, start, length in ranges))


@st.composite
def _steps(draw: st.DrawFn) -> Step:
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9), _RANGES), max_size=4))
    executions = tuple(
        _execution(layer=f"layer{index}", columns=columns, first=first, tokens=9, real=real)
        for index, (columns, first, real) in enumerate(shapes)
    )
    return Step(call=0, step=0, executions=executions)


@given(_steps())
def test_a_steps_elements_cover_each_real_token_and_neuron_once(step: Step) -> None:
    expected = Counter(
        (execution.layer, row, execution.first_position + token, neuron)
        for execution in step.executions
        for row, start, stop in execution.real
        for token in range(start, stop)
        for neuron in range(execution.columns)
    )
    found = Counter(
        (execution.layer, *site)
        for execution, *site in (step.element(index) for index in range(step.elements))
    )
    assert found == expected
    assert step.elements == sum(execution.elements for execution in step.executions)


@given(_steps())
def test_there_is_no_element_past_the_last(step: Step) -> None:
    with pytest.raises(IndexError):
        step.element(step.elements)


def test_positions_count_on_over_the_runs_of_a_layer() -> None:
    chunks = (_execution(tokens=2), _execution(first=2, tokens=3))
    step = Step(call=0, step=0, executions=chunks)
    positions = {step.element(index)[2] for index in range(step.elements)}
    assert positions == {0, 1, 2, 3, 4}


def _space() -> Space:
    """A prefill of many elements and three steps of few."""
    prefill = Step(0, 0, (_execution("a", tokens=40), _execution("b", columns=1, tokens=40)))
    later = [Step(0, step, (_execution("a", tokens=1),)) for step in (1, 2, 3)]
    return Space((prefill, *later))


def test_each_step_is_equally_likely_however_many_elements_it_has() -> None:
    counts = Counter(_space().sample(Draw(0, "t", trial), _ONE_BIT).step for trial in range(4000))
    assert stats.chisquare([counts[step] for step in range(4)]).pvalue > 1e-4


def test_inside_a_step_each_element_is_equally_likely() -> None:
    real = ((0, 1, 3), (2, 0, 1))
    step = Step(0, 0, (_execution("a", real=real, tokens=3), _execution("b", columns=1, tokens=3)))
    faults = [Space((step,)).sample(Draw(1, "t", trial), _ONE_BIT) for trial in range(6000)]
    counts = Counter((each.layer, each.row, each.position, each.neuron) for each in faults)
    elements = [step.element(index) for index in range(step.elements)]
    sites = [(each.layer, row, position, neuron) for each, row, position, neuron in elements]
    assert set(counts) <= set(sites)
    assert stats.chisquare([counts[site] for site in sites]).pvalue > 1e-4


@given(st.integers(0, 10**6), st.sampled_from(list(FAULT_MODELS)))
def test_a_sampled_fault_is_a_site_of_the_space_and_the_same_again(trial: int, name: str) -> None:
    space = _space()
    fault = space.sample(Draw(0, "t", trial), fault_model(name))
    assert fault == space.sample(Draw(0, "t", trial), fault_model(name))
    step, execution = space.find(fault)
    assert (step.call, step.step, execution.layer) == (fault.call, fault.step, fault.layer)
    assert Fault.parse(str(fault)) == fault


@given(st.integers(0, 10**6))
def test_the_site_does_not_depend_on_the_fault_model_or_the_encoding(trial: int) -> None:
    faults = [
        _space().sample(Draw(0, "t", trial), model, encoding)
        for model in FAULT_MODELS.values()
        for encoding in (None, "fp16", "bf16")
    ]
    sites = {
        (each.call, each.step, each.layer, each.row, each.position, each.neuron) for each in faults
    }
    assert len(sites) == 1


def test_the_encoding_is_the_layers_own_unless_another_is_asked_for() -> None:
    space = _space()
    assert space.sample(Draw(0, "t", 0), _ONE_BIT).encoding == "fp32"
    bits = {space.sample(Draw(0, "t", trial), _ONE_BIT, "bf16").bits[0] for trial in range(300)}
    assert bits == set(range(16))
    assert space.sample(Draw(0, "t", 0), _ONE_BIT, "bf16").encoding == "bf16"


def test_an_encoding_that_a_layer_cannot_hold_is_refused_by_the_layers_name() -> None:
    space = Space((Step(0, 0, (_execution("model.a", encoding="fp16"),)),))
    with pytest.raises(ValueError, match=r"encoding bf16 cannot be tested on model\.a"):
        space.sample(Draw(0, "t", 0), _ONE_BIT, "bf16")


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown number format"):
        _space().sample(Draw(0, "t", 0), _ONE_BIT, "fp12")


def test_steps_without_a_site_are_never_drawn() -> None:
    empty = Step(0, 1, (_execution(real=()),))
    space = Space((empty, Step(0, 2, (_execution(),)), Step(0, 3, ())))
    assert {space.sample(Draw(0, "t", trial), _ONE_BIT).step for trial in range(50)} == {2}
    assert space.elements == 6


@pytest.mark.parametrize("steps", [(), (Step(0, 0, ()),), (Step(0, 0, (_execution(real=()),)),)])
def test_a_run_without_a_site_is_refused(steps: tuple[Step, ...]) -> None:
    with pytest.raises(EmptySpaceError, match="computed a real token"):
        Space(steps).sample(Draw(0, "t", 0), _ONE_BIT)


@pytest.mark.parametrize(
    "changes",
    [{"call": 1}, {"step": 4}, {"layer": "c"}, {"row": 1}, {"position": 40}],
    ids=str,
)
def test_a_fault_that_the_run_has_no_site_for_is_not_found(
    changes: dict[str, int | str],
) -> None:
    site = {"call": 0, "step": 0, "layer": "a", "row": 0, "position": 39, "neuron": 2, "bits": (1,)}
    assert _space().find(Fault(**site))[0].step == 0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the run has no site"):
        _space().find(Fault(**{**site, **changes}))  # type: ignore[arg-type]
