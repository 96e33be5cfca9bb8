"""What a run without a fault computed, said and cost."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ft2.campaign import Golden, Recorder
from ft2.faults import Draw, Fault, Space, fault_model, inject
from ft2.layers import projections
from ft2.protection import protect
from tests.tiny_models import ARCHITECTURES, tiny_model

PROMPT = torch.tensor([[1, 5, 9, 11]])


def record(model: nn.Module, run: Callable[[Any], object]) -> Golden:
    recorder = Recorder(model)
    try:
        run(model)
    finally:
        recorder.stop()
    return recorder.golden()


def generate(model: Any, prompt: Tensor = PROMPT, **options: Any) -> Tensor:
    options = {"max_new_tokens": 4, "do_sample": False, **options}
    options.setdefault("attention_mask", torch.ones_like(prompt))
    return model.generate(prompt, **options)


def tokens_by_step(golden: Golden) -> list[int]:
    """Return how many real tokens each step computes; all projections must agree."""
    counted = []
    for step in golden.space.steps:
        counts: dict[str, int] = {}
        for execution in step.executions:
            real = execution.elements // execution.columns
            counts[execution.layer] = counts.get(execution.layer, 0) + real
        assert len(set(counts.values())) == 1
        counted.append(next(iter(counts.values())))
    return counted


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_a_greedy_run_has_a_step_for_each_token(model_type: str) -> None:
    model = tiny_model(model_type)
    golden = record(model, lambda model: generate(model, min_new_tokens=4))
    assert (golden.calls, golden.steps) == (1, 4)
    assert [(step.call, step.step) for step in golden.space.steps] == [(0, n) for n in range(4)]
    assert tokens_by_step(golden) == [4, 1, 1, 1]
    columns = sum(each.out_features for each in projections(model))
    assert golden.space.elements == 7 * columns
    assert len(golden.seconds) == 4
    assert all(seconds > 0 for seconds in golden.seconds)


def test_outputs_are_what_generate_returned() -> None:
    model = tiny_model()
    assert record(model, generate).outputs == (tuple(generate(model).tolist()),)
    as_dict = record(model, lambda model: generate(model, return_dict_in_generate=True))
    assert as_dict.outputs == (tuple(generate(model).tolist()),)


def test_outputs_of_a_loop_are_the_most_likely_tokens() -> None:
    model = tiny_model()

    def loop(model: Any) -> None:
        cache, ids = None, PROMPT
        for _ in range(4):
            output = model(ids, past_key_values=cache, use_cache=True)
            cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)

    golden = record(model, loop)
    assert (golden.calls, golden.steps) == (1, 4)
    said = generate(model)[0, 4:].tolist()
    assert golden.outputs == (tuple([token] for token in said),)


def test_padding_is_no_site() -> None:
    prompt = torch.tensor([[0, 0, 0, 5], [1, 5, 9, 11]])
    mask = (prompt != 0).long()
    golden = record(tiny_model(), lambda model: generate(model, prompt, attention_mask=mask))
    assert tokens_by_step(golden)[0] == 1 + 4
    first = golden.space.steps[0].executions[0]
    assert first.tokens == 4
    assert first.real == ((0, 3, 4), (1, 0, 4))


def test_rows_that_have_ended_are_no_sites() -> None:
    model = tiny_model()
    prompt = torch.tensor([[1, 5, 9, 11], [1, 6, 7, 8]])
    answers = generate(model, prompt, max_new_tokens=6)[:, 4:].tolist()
    ends = answers[0][1]
    assert ends not in answers[0][:1]
    steps = next((n + 1 for n, token in enumerate(answers[1]) if token == ends), 6)
    assert steps > 3
    golden = record(
        model, lambda model: generate(model, prompt, max_new_tokens=6, eos_token_id=ends)
    )
    # The row that said the ending token in step 1 computes no further ones.
    assert tokens_by_step(golden) == [8, 2] + [1] * (steps - 2)


def test_all_beams_are_rows() -> None:
    golden = record(tiny_model(), lambda model: generate(model, num_beams=3))
    assert tokens_by_step(golden)[1:] == [3] * (golden.steps - 1)
    assert tokens_by_step(golden)[0] in (4, 12)


def test_a_prefill_in_chunks_is_one_step_with_positions_that_go_on() -> None:
    golden = record(tiny_model(), lambda model: generate(model, prefill_chunk_size=3))
    assert golden.steps == 4
    assert tokens_by_step(golden) == [4, 1, 1, 1]
    layer = golden.space.steps[0].executions[0].layer
    runs = [each for each in golden.space.steps[0].executions if each.layer == layer]
    assert [(each.first_position, each.tokens) for each in runs] == [(0, 3), (3, 1)]


def test_several_calls_are_counted_from_zero() -> None:
    def twice(model: Any) -> None:
        generate(model, max_new_tokens=2)
        generate(model, max_new_tokens=3)

    golden = record(tiny_model(), twice)
    assert golden.calls == 2
    assert [step.call for step in golden.space.steps] == [0, 0, 1, 1, 1]
    assert record(tiny_model(), lambda model: None).calls == 0


def test_equal_runs_have_equal_digests() -> None:
    model = tiny_model()
    golden = record(model, generate)
    assert record(model, generate).digest == golden.digest
    assert record(tiny_model(), generate).digest == golden.digest


DIFFERENT: dict[str, Callable[[Any], object]] = {
    "another prompt": lambda model: generate(model, PROMPT + 1),
    "more tokens": lambda model: generate(model, max_new_tokens=5),
    "two calls": lambda model: (generate(model), generate(model)),
    "another split of the prefill": lambda model: generate(model, prefill_chunk_size=3),
    "no cache": lambda model: generate(model, use_cache=False),
}


@pytest.mark.parametrize("way", list(DIFFERENT))
def test_different_runs_have_different_digests(way: str) -> None:
    model = tiny_model()
    assert record(model, DIFFERENT[way]).digest != record(model, generate).digest


def test_runs_in_different_formats_have_different_digests() -> None:
    model = tiny_model()
    golden = record(model, generate)
    assert golden.model.dtype == "float32"
    assert record(model.to(torch.bfloat16), generate).digest != golden.digest


def test_recording_changes_nothing_and_leaves_nothing_behind() -> None:
    model = tiny_model()
    before = [type(module) for module in model.modules()]
    expected = generate(model)
    recorder = Recorder(model)
    assert torch.equal(generate(model), expected)
    recorder.stop()
    recorder.stop()
    assert [type(module) for module in model.modules()] == before
    steps = recorder.golden().steps
    generate(model)
    assert recorder.golden().steps == steps


def test_a_protected_run_computes_at_the_same_sites() -> None:
    model = tiny_model()
    golden = record(model, generate)
    with protect(model, "ft2", scale=1e6):
        protected = record(model, generate)
    assert protected.space == golden.space
    assert protected.digest == golden.digest


def test_macs_are_those_of_the_layers() -> None:
    model = tiny_model()
    golden = record(model, generate)
    tokens = 7
    inside = sum(each.in_features * each.out_features for each in projections(model))
    assert golden.macs.projections == tokens * inside
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    # generate computes the logits of the last token only.
    assert golden.macs.lm_head == 4 * head.in_features * head.out_features
    # Two products of 16 columns and 2 layers for each pair of a query and a key not after it.
    pairs = (1 + 2 + 3 + 4) + 5 + 6 + 7
    assert golden.macs.attention == 2 * 2 * 16 * pairs
    outside = golden.macs.attention + golden.macs.lm_head
    assert golden.macs.share_outside == outside / (outside + golden.macs.projections)


def sites(space: Space) -> list[tuple[Fraction, Fault]]:
    """Return every site with its probability under the declared measure."""
    steps = [step for step in space.steps if step.elements]
    found = []
    for step in steps:
        for index in range(step.elements):
            execution, row, position, neuron = step.element(index)
            fault = Fault(step.call, step.step, execution.layer, row, position, neuron, (0,))
            found.append((Fraction(1, len(steps) * step.elements), fault))
    return found


@pytest.mark.parametrize("way", ["greedy", "padded", "chunked", "two calls"])
def test_weights_have_mean_1_over_all_sites(way: str) -> None:
    padded = torch.tensor([[0, 0, 0, 5], [1, 5, 9, 11]])
    ways: dict[str, Callable[[Any], object]] = {
        "greedy": lambda model: generate(model, max_new_tokens=2),
        "padded": lambda model: generate(
            model, padded, attention_mask=(padded != 0).long(), max_new_tokens=2
        ),
        "chunked": lambda model: generate(model, prefill_chunk_size=3, max_new_tokens=2),
        "two calls": lambda model: (
            generate(model, max_new_tokens=1),
            generate(model, max_new_tokens=2),
        ),
    }
    golden = record(tiny_model(num_hidden_layers=1), ways[way])
    everywhere = sites(golden.space)
    assert sum(p for p, _ in everywhere) == 1
    assert len({str(fault) for _, fault in everywhere}) == len(everywhere) == golden.space.elements
    weighed = [(p, golden.weights(fault)) for p, fault in everywhere]
    for measure in ("elements", "macs", "time"):
        mean = sum(p * Fraction(weights[measure]) for p, weights in weighed)
        assert float(mean) == pytest.approx(1, rel=1e-12)
        largest = max(weights[measure] for _, weights in weighed)
        assert golden.largest_weights[measure] == pytest.approx(largest)


def test_a_weight_is_the_ratio_of_the_measures() -> None:
    model = tiny_model(num_hidden_layers=1)
    golden = record(model, lambda model: generate(model, max_new_tokens=2))
    first, later = golden.space.steps
    down = next(each for each in projections(model) if each.name.endswith("down_proj"))
    fault = Fault(0, 1, down.name, 0, 0, 0, (0,))
    inside = sum(each.in_features * each.out_features for each in projections(model))
    declared = 1 / (2 * later.elements)
    assert golden.weights(fault)["macs"] == pytest.approx(
        down.in_features / (5 * inside) / declared
    )
    by_time = golden.seconds[1] / sum(golden.seconds) / later.elements
    assert golden.weights(fault)["time"] == pytest.approx(by_time / declared)
    assert first.elements == 4 * later.elements


def test_a_site_that_was_not_computed_has_no_weight() -> None:
    golden = record(tiny_model(), generate)
    with pytest.raises(ValueError, match="the run has no site call=0,step=9,"):
        golden.weights(Fault(0, 9, "model.layers.0.mlp.up_proj", 0, 0, 0, (0,)))


def test_what_a_loop_by_hand_is_told_is_recorded_however_it_asks() -> None:
    model: Any = tiny_model("llama")
    prompt = torch.tensor([[1, 5, 9, 11]])
    recorder = Recorder(model)
    with torch.no_grad():
        told = model(prompt).logits[:, -1].argmax(-1).tolist()
        model(prompt, return_dict=False)
        model.lm_head(model.model(prompt).last_hidden_state[:, -1])
    recorder.stop()
    assert recorder.golden().outputs == ((told,), (told,), (told,))


def test_a_call_that_computes_nothing_is_numbered_as_the_injector_numbers_it() -> None:
    model: Any = tiny_model("llama")
    prompt = torch.tensor([[1, 5, 9, 11]])

    def talk() -> None:
        with pytest.raises(ValueError):
            model.generate(prompt, max_new_tokens=-3)
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3)

    recorder = Recorder(model)
    talk()
    recorder.stop()
    steps = recorder.golden().space.steps
    assert {step.call for step in steps} == {1}
    fault = recorder.golden().space.sample(Draw(0, "", 0), fault_model("exp"))
    with inject(model, fault) as injection:
        talk()
    assert injection.landed


def test_the_model_is_identified_as_it_is_when_it_runs() -> None:
    model = tiny_model()
    recorder = Recorder(model)
    with torch.no_grad():
        model.lm_head.weight *= 0.5
    generate(model)
    recorder.stop()
    assert recorder.golden().model == record(model, generate).model
    assert recorder.golden().model != record(tiny_model(), generate).model
