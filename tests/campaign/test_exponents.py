"""Exponents of what a run computes, compared with what faults find at their sites."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ft2.campaign import ExponentReader, Golden, Recorder, Run, RunSpec
from ft2.faults import (
    FORMATS,
    Draw,
    Execution,
    Fault,
    Space,
    Step,
    exponents,
    fault_model,
    inject,
    number_format,
)
from tests.tiny_models import tiny_model
from tests.zoo.configs import small_model

_IDS = torch.tensor([[1, 17, 5, 42, 23, 9], [0, 0, 1, 30, 12, 7]])
_MASK = (torch.arange(6) >= torch.tensor([0, 2])[:, None]).long()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _with_experts(name: str, implementation: str) -> PreTrainedModel:
    model = small_model(name)
    model.set_experts_implementation(implementation)
    return model


# The model, what generate is asked for beside the padded prompts, and the encoding.
_RUNS: dict[str, tuple[Callable[[], Any], dict[str, Any], str | None]] = {
    "llama": (tiny_model, {}, None),
    "llama in chunks": (tiny_model, {"prefill_chunk_size": 4}, None),
    "llama without a cache": (tiny_model, {"use_cache": False}, None),
    "llama in bf16": (lambda: tiny_model(dtype=torch.bfloat16), {}, None),
    "llama as fp16": (tiny_model, {}, "fp16"),
    "llama with beams": (tiny_model, {"num_beams": 2}, "fp8-e4m3"),
    "gpt2": (lambda: tiny_model("gpt2"), {}, None),
    "opt": (lambda: tiny_model("opt"), {}, None),
    "mixtral": (lambda: _with_experts("mixtral", "eager"), {}, None),
    "mixtral in chunks": (
        lambda: _with_experts("mixtral", "batched_mm"),
        {"prefill_chunk_size": 4},
        None,
    ),
    "qwen2_moe": (lambda: _with_experts("qwen2_moe", "grouped_mm"), {}, None),
    "gpt_oss": (lambda: small_model("gpt_oss"), {}, "bf16"),
}

_ON_A_GPU: dict[str, tuple[Callable[[], Any], dict[str, Any], str | None]] = {
    "llama on a GPU": (lambda: tiny_model().cuda(), {}, None),
    "llama in fp16 on a GPU": (lambda: tiny_model(dtype=torch.float16).cuda(), {}, None),
    "llama in bf16 on a GPU": (lambda: tiny_model(dtype=torch.bfloat16).cuda(), {}, None),
    "llama as fp8 on a GPU": (lambda: tiny_model(dtype=torch.float16).cuda(), {}, "fp8-e4m3"),
    "mixtral on a GPU": (lambda: _with_experts("mixtral", "grouped_mm").cuda(), {}, "fp16"),
}
_NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _generate(model: Any, options: dict[str, Any]) -> None:
    ids, mask = _IDS.to(model.device), _MASK.to(model.device)
    model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, **options)


def _record(model: Any, options: dict[str, Any], reader: ExponentReader | None = None) -> Golden:
    recorder = Recorder(model, reader)
    try:
        _generate(model, options)
    finally:
        recorder.stop()
    return recorder.golden()


def _faults(space: Space, count: int, encoding: str | None) -> dict[int, Fault]:
    model = fault_model("1-bit")
    return {trial: space.sample(Draw(0, "", trial), model, encoding) for trial in range(count)}


def _check_shares(space: Space, masses: Mapping[tuple[str, str, int], float]) -> None:
    """Compare all exponents of a layer and a phase with its elements."""
    expected: dict[tuple[str, str], float] = {}
    steps = [step for step in space.steps if step.elements]
    for step in steps:
        for each in step.executions:
            place = (each.layer, "later" if step.step else "first")
            share = each.elements / step.elements / len(steps)
            expected[place] = expected.get(place, 0.0) + share
    found: dict[tuple[str, str], float] = {}
    for (layer, phase, _), mass in masses.items():
        assert mass > 0
        found[layer, phase] = found.get((layer, phase), 0.0) + mass
    assert found == pytest.approx({place: share for place, share in expected.items() if share})


@pytest.mark.parametrize(
    "run", [*_RUNS, *(pytest.param(run, marks=_NEEDS_CUDA) for run in _ON_A_GPU)]
)
def test_exponents_are_those_of_the_values_that_faults_find(run: str) -> None:
    make, options, name = (_RUNS | _ON_A_GPU)[run]
    model = make()
    space = _record(model, options).space
    faults = _faults(space, 4000, name)
    encoding = number_format(str(faults[0].encoding))
    reader = ExponentReader(encoding, faults)
    assert _record(model, options, reader).space == space

    assert reader.found.keys() == faults.keys()
    for key in range(20):
        with inject(model, faults[key]) as injection:
            _generate(model, options)
        before = torch.tensor(injection.before, dtype=torch.float64)
        assert injection.fired
        assert reader.found[key] == int(exponents(before, encoding))

    masses = reader.masses(space)
    assert sum(masses.values()) == pytest.approx(1)
    _check_shares(space, masses)
    # Sampled sites have each exponent as often as its share of the space says.
    drawn = Counter(
        (fault.layer, "later" if fault.step else "first", reader.found[key])
        for key, fault in faults.items()
    )
    assert drawn.keys() <= masses.keys()
    for cell, mass in masses.items():
        expected = len(faults) * mass
        assert abs(drawn[cell] - expected) < 5 * math.sqrt(expected) + 5
    # All of them together: a chi-square's mean is its degrees of freedom.
    often = [cell for cell, mass in masses.items() if len(faults) * mass >= 5]
    chi_square = sum(
        (drawn[cell] - len(faults) * masses[cell]) ** 2 / (len(faults) * masses[cell])
        for cell in often
    )
    assert chi_square < len(often) + 5 * math.sqrt(2 * len(often))


def test_a_reader_of_two_runs_knows_the_last() -> None:
    model = tiny_model()
    space = _record(model, {}).space
    faults = _faults(space, 50, None)
    reader = ExponentReader(FORMATS["fp32"], faults)
    _record(tiny_model(seed=1), {}, reader)
    other = reader.masses(space), reader.found
    _record(model, {}, reader)
    assert (reader.masses(space), reader.found) != other
    again = ExponentReader(FORMATS["fp32"], faults)
    _record(model, {}, again)
    assert (again.masses(space), again.found) == (reader.masses(space), reader.found)


def test_how_many_elements_are_read_at_a_time_makes_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    space = _record(model, {}).space
    faults = _faults(space, 500, None)
    found = []
    for many in (1, 100, 1 << 20):
        monkeypatch.setattr("ft2.campaign.exponents._MANY", many)
        reader = ExponentReader(FORMATS["fp32"], faults)
        _record(model, {}, reader)
        found.append((reader.found, reader.masses(space)))
    for sites, masses in found[1:]:
        assert sites == found[0][0]
        assert masses == pytest.approx(found[0][1])


def test_a_run_shows_its_reader_what_is_recorded() -> None:
    model = tiny_model()
    golden = _record(model, {})
    faults = _faults(golden.space, 50, None)
    reader = ExponentReader(FORMATS["fp32"], faults)
    run = Run(RunSpec(record=True, exponents=reader))
    run.attach(model)
    _generate(model, {})
    run.detach()
    assert run.golden is not None
    assert run.golden.digest == golden.digest
    assert reader.found.keys() == faults.keys()
    _generate(model, {})
    assert sum(reader.masses(golden.space).values()) == pytest.approx(1)


def _step(call: int, step: int, *real: tuple[int, int, int]) -> Step:
    return Step(call, step, (Execution("layer", 2, 4, "fp16", 0, 8, real),))


def _site(call: int, row: int, position: int, neuron: int) -> Fault:
    return Fault(call, 0, "layer", row, position, neuron, (0,))


def test_sites_are_found_in_the_ranges_of_their_rows() -> None:
    step = _step(0, 0, (0, 2, 3), (0, 5, 7), (2, 0, 1))
    sites = [(0, 2, 1), (0, 5, 0), (0, 6, 1), (2, 0, 0), (0, 4, 0), (1, 2, 0), (2, 1, 0), (3, 0, 0)]
    faults = {key: _site(0, *site) for key, site in enumerate(sites)}
    reader = ExponentReader(FORMATS["fp16"], faults | {8: _site(1, 0, 2, 1)})
    values = torch.tensor([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0], [64.0, 0.0]])
    reader.read(0, 0, step.executions[0], values)
    assert reader.found == {0: 16, 1: 17, 2: 20, 3: 21}
    shares = {("layer", "first", field): 1 / 8 for field in (0, *range(15, 22))}
    assert reader.masses(Space((step,))) == shares


def test_of_an_element_that_is_computed_twice_the_first_counts() -> None:
    execution = Execution("layer", 2, 4, "fp16", 0, 1, ((0, 0, 1),))
    reader = ExponentReader(FORMATS["fp16"], {7: _site(0, 0, 0, 1)})
    reader.read(0, 0, execution, torch.tensor([[1.0, 2.0]]))
    reader.read(0, 0, execution, torch.tensor([[1.0, 8.0]]))
    assert reader.found == {7: 16}
    masses = reader.masses(Space((Step(0, 0, (execution, execution)),)))
    assert masses == {("layer", "first", 15): 0.5, ("layer", "first", 16): 0.25} | {
        ("layer", "first", 18): 0.25
    }


def test_steps_weigh_alike_however_much_they_compute_and_calls_may_take_turns() -> None:
    steps = (_step(0, 0, (0, 0, 3)), _step(0, 1, (0, 0, 1)), _step(1, 1, (0, 0, 1)), _step(1, 2))
    reader = ExponentReader(FORMATS["fp16"], {})
    half = Execution("layer", 2, 4, "fp16", 0, 1, ((0, 0, 1),))
    reader.read(0, 0, half, torch.ones(1, 2))
    reader.read(0, 1, half, torch.ones(1, 2) * 2)
    reader.read(0, 0, half, torch.ones(2, 2) * 4)
    reader.read(1, 1, half, torch.ones(1, 2))
    assert reader.masses(Space(steps)) == pytest.approx(
        {
            ("layer", "first", 15): 1 / 9,
            ("layer", "first", 17): 2 / 9,
            ("layer", "later", 16): 1 / 3,
            ("layer", "later", 15): 1 / 3,
        }
    )


def test_the_space_of_another_run_is_refused() -> None:
    reader = ExponentReader(FORMATS["fp16"], {})
    step = _step(0, 0, (0, 0, 1))
    reader.read(0, 0, step.executions[0], torch.ones(1, 2))
    with pytest.raises(ValueError, match="computed other elements than the space has"):
        reader.masses(Space((step, _step(0, 1, (0, 0, 1)))))
    with pytest.raises(ValueError, match="has another step"):
        reader.masses(Space((_step(1, 0, (0, 0, 1)),)))
    reader.start()
    assert reader.masses(Space(())) == {}
