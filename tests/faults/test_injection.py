"""Faults injected into real models: where they land, what they change and what they leave."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import ft2
from ft2 import Fault, Injection
from ft2.faults import FORMATS
from ft2.forward import Clock, Listener, Order, by_row, tap
from ft2.layers import projections
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.zoo.configs import small_model

_PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
_UP = "model.layers.1.mlp.up_proj"
_OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}

_Place = tuple[int, int]
_Recorded = dict[_Place, Tensor]


def _fault(**changes: Any) -> Fault:
    site: dict[str, Any] = {"call": 0, "step": 0, "layer": _UP, "row": 0, "position": 0}
    return Fault(**{**site, "neuron": 3, "bits": (30,), **changes})


@contextmanager
def _recording(
    model: PreTrainedModel, layer: str, order: Order
) -> Generator[_Recorded, None, None]:
    """Collect what a layer puts out: (call, step) -> (rows, tokens, columns)."""
    recorded: _Recorded = {}

    def record(output: Tensor) -> Tensor:
        forward = clock.forward
        place = (forward.call.index, forward.step)
        run = by_row(output, forward).detach().clone()
        recorded[place] = torch.cat([recorded[place], run], 1) if place in recorded else run
        return output

    listener = Listener()
    clock = Clock.listen(model, listener)
    attached = tap(model.get_submodule(layer), order, record)
    try:
        yield recorded
    finally:
        attached.remove()
        clock.dismiss(model, listener)


def _activations(model: PreTrainedModel, layer: str, run: Callable[[], object]) -> _Recorded:
    """What the layer puts out without a fault."""
    with _recording(model, layer, Order.OBSERVE) as recorded:
        run()
    return recorded


def _with_faults(
    model: PreTrainedModel, faults: Iterable[Fault], layer: str, run: Callable[[], object]
) -> tuple[list[Injection], _Recorded]:
    """What the layer puts out with the faults: a protection's place comes after the injector's."""
    with (
        _recording(model, layer, Order.PROTECT) as recorded,
        ft2.inject(model, faults) as injections,
    ):
        run()
    return injections, recorded


def _flipped(before: float, bits: tuple[int, ...]) -> float:
    """The flip of a single-precision value, as numpy computes it."""
    pattern = np.array([before], np.float32).view(np.uint32)
    for bit in bits:
        pattern ^= np.uint32(1 << bit)
    return float(pattern.view(np.float32)[0])


def _differences(one: Tensor, other: Tensor) -> list[list[int]]:
    """Where two recordings differ in their bits."""
    return (one.view(torch.int32) != other.view(torch.int32)).nonzero().tolist()


def _check(
    model: PreTrainedModel, fault: Fault, run: Callable[[], object], layer: str | None = None
) -> Injection:
    """Inject one fault: exactly its element changes in its step, and by exactly its bits."""
    clean = _activations(model, fault.layer, run)
    (injection,), faulty = _with_faults(model, [fault], fault.layer, run)
    place = (fault.call, fault.step)
    element = (fault.row, fault.position, fault.neuron)
    assert injection.landed
    assert injection.before == clean[place][element].item()
    expected = _flipped(clean[place][element].item(), fault.bits)
    np.testing.assert_equal(injection.after, expected)
    np.testing.assert_equal(faulty[place][element].item(), expected)
    assert _differences(clean[place], faulty[place]) == [list(element)]
    for earlier in clean:
        if earlier < place:
            assert torch.equal(clean[earlier], faulty[earlier])
    return injection


_MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 2},
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "beams": {"num_beams": 2},
}


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize(("step", "position"), [(0, 0), (0, 3), (0, 4), (1, 0), (2, 0)])
def test_a_fault_lands_at_its_place_in_every_mode_of_generate(
    mode: str, step: int, position: int
) -> None:
    model = tiny_model("llama")
    fault = _fault(step=step, position=position, bits=(22,))
    options = {**_OPTIONS, **_MODES[mode]}
    _check(model, fault, lambda: model.generate(_PROMPT, **options))


def test_a_fault_lands_in_sampling() -> None:
    model = tiny_model("llama")

    def run() -> None:
        torch.manual_seed(0)
        model.generate(_PROMPT, **{**_OPTIONS, "do_sample": True})

    _check(model, _fault(step=2, bits=(22,)), run)


def test_a_fault_lands_in_a_beam_of_its_own() -> None:
    model = tiny_model("llama")
    fault = _fault(step=1, row=2, bits=(22,))
    _check(model, fault, lambda: model.generate(_PROMPT, **_OPTIONS, num_beams=3))


def test_a_fault_lands_in_a_prompt_of_embeddings() -> None:
    model = tiny_model("llama")
    embeds = model.get_input_embeddings()(_PROMPT)
    _check(model, _fault(position=4), lambda: model.generate(inputs_embeds=embeds, **_OPTIONS))


def test_a_fault_lands_in_a_call_resumed_from_a_cache() -> None:
    model = tiny_model("llama")
    cache = DynamicCache(config=model.config)
    model(_PROMPT, past_key_values=cache)
    longer = torch.cat([_PROMPT, torch.tensor([[11, 12]])], 1)
    _check(
        model,
        _fault(position=1),
        lambda: model.generate(longer, **_OPTIONS, past_key_values=copy.deepcopy(cache)),
    )


@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_fault_lands_in_its_call_only(call: int) -> None:
    model = tiny_model("llama")
    fault = _fault(call=call, step=1)

    def run() -> None:
        for first in (5, 6, 7):
            model.generate(torch.tensor([[first, 8]]), **_OPTIONS)

    _check(model, fault, run)
    clean = _activations(model, _UP, run)
    _, faulty = _with_faults(model, [fault], _UP, run)
    for place in clean:
        if place[0] != call:
            assert torch.equal(clean[place], faulty[place])


def test_a_fault_lands_in_a_loop_by_hand() -> None:
    model = tiny_model("llama")

    def run() -> None:
        cache = DynamicCache(config=model.config)
        model(_PROMPT[:, :3], past_key_values=cache)
        model(_PROMPT[:, 3:], past_key_values=cache)
        model(torch.tensor([[11]]), past_key_values=cache)

    for site in ({"position": 1}, {"position": 4}, {"step": 1}):
        _check(model, _fault(**site), run)


def test_a_fault_lands_in_a_request_without_a_cache() -> None:
    model = tiny_model("llama")

    def run() -> None:
        with ft2.request(model):
            for tokens in (3, 4, 5):
                model(_PROMPT[:, :tokens], use_cache=False)

    _check(model, _fault(step=2, position=4), run)


def test_a_fault_lands_past_the_head() -> None:
    model = tiny_model("llama")
    _check(model, _fault(position=2), lambda: model.model(_PROMPT))


def test_calls_are_counted_from_the_request_that_is_running() -> None:
    model = tiny_model("llama")
    model.generate(_PROMPT, **_OPTIONS)
    with ft2.request(model), ft2.inject(model, _fault()) as injection:
        model(_PROMPT)
    assert injection.landed


def test_calls_are_counted_from_where_the_injector_is_attached() -> None:
    model = tiny_model("llama")
    with ft2.inject(model, _fault(call=3)) as never:
        for _ in range(2):
            model(_PROMPT)
        with ft2.inject(model, _fault(call=0)) as injection:
            model(_PROMPT)
    assert injection.landed
    assert not never.fired


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_fault_lands_in_every_projection(model_type: str) -> None:
    model = tiny_model(model_type)
    batch = torch.cat([_PROMPT, _PROMPT + 5])
    for each in projections(model):
        fault = _fault(
            layer=each.name, row=1, position=2, neuron=each.out_features - 1, bits=(3, 31)
        )
        _check(model, fault, lambda: model(batch))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(0, 23),
    st.sets(st.integers(0, 31), min_size=1, max_size=2),
)
def test_any_fault_changes_its_element_by_its_bits_and_nothing_else(
    step: int, position: int, neuron: int, bits: set[int]
) -> None:
    model = tiny_model("llama")
    fault = _fault(
        step=step,
        position=position if step == 0 else 0,
        neuron=neuron,
        bits=tuple(sorted(bits)),
    )
    with torch.no_grad():
        _check(model, fault, lambda: model.generate(_PROMPT, **_OPTIONS))


def test_each_row_of_a_batch_has_its_own_fault() -> None:
    model = tiny_model("llama")
    batch = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    faults = [
        _fault(row=0, position=2, neuron=1, bits=(22,)),
        _fault(row=2, step=1, neuron=5, bits=(0, 31)),
    ]

    def run() -> None:
        model.generate(batch, **_OPTIONS)

    clean = _activations(model, _UP, run)
    injections, faulty = _with_faults(model, faults, _UP, run)
    assert [each.fault for each in injections] == faults
    assert all(each.landed for each in injections)
    assert _differences(clean[0, 0], faulty[0, 0]) == [[0, 2, 1]]
    for place in clean:
        assert torch.equal(clean[place][1], faulty[place][1])


def test_other_rows_say_what_they_say_without_the_fault() -> None:
    model = tiny_model("llama")
    batch = torch.tensor([[5, 6, 7], [8, 9, 10]])
    clean = model.generate(batch, **_OPTIONS)
    with ft2.inject(model, _fault(row=1, step=1)):
        faulty = model.generate(batch, **_OPTIONS)
    assert torch.equal(clean[0], faulty[0])
    assert not torch.equal(clean[1], faulty[1])


def test_several_faults_land_in_one_layer_and_step() -> None:
    model = tiny_model("llama")
    faults = [_fault(position=position, bits=(22,)) for position in (4, 0, 2)]

    def run() -> None:
        model.generate(_PROMPT, **_OPTIONS, prefill_chunk_size=2)

    clean = _activations(model, _UP, run)
    injections, faulty = _with_faults(model, faults, _UP, run)
    assert all(each.landed for each in injections)
    assert _differences(clean[0, 0], faulty[0, 0]) == [[0, 0, 3], [0, 2, 3], [0, 4, 3]]


def test_two_faults_at_one_element_both_land() -> None:
    model = tiny_model("llama")
    with ft2.inject(model, [_fault(bits=(22,)), _fault(bits=(22,))]) as (first, second):
        faulty = model(_PROMPT).logits
    assert first.landed
    assert second.landed
    assert (first.before, first.after) == (second.after, second.before)
    assert torch.equal(faulty, model(_PROMPT).logits)


def test_faults_are_attached_without_any() -> None:
    model = tiny_model("llama")
    with ft2.inject(model, []) as injections:
        model(_PROMPT)
    assert injections == []


def test_padding_counts_as_a_position() -> None:
    model = tiny_model("llama")
    batch = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

    def run() -> Tensor:
        return model.generate(batch, attention_mask=mask, **_OPTIONS)

    clean = run()
    for position in range(4):
        _check(model, _fault(position=position, bits=(22,)), run)
    with ft2.inject(model, _fault(position=1)) as at_padding:
        assert torch.equal(run(), clean)
    assert at_padding.landed


@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("encoding", ["fp16", "bf16", "fp32", "fp64"])
def test_a_models_own_format_is_flipped_unless_another_is_named(
    model_type: str, encoding: str
) -> None:
    entry = FORMATS[encoding]
    model = tiny_model(model_type, dtype=entry.dtype)
    layer = projections(model)[-1].name
    for bit in (0, entry.width - 2, entry.width - 1):
        fault = _fault(layer=layer, step=1, bits=(bit,))
        clean = _activations(model, layer, lambda: model.generate(_PROMPT, **_OPTIONS))
        (injection,), faulty = _with_faults(
            model, [fault], layer, lambda: model.generate(_PROMPT, **_OPTIONS)
        )
        before, after = (
            int(values[0, 1].view(entry.pattern_dtype)[0, 0, 3]) for values in (clean, faulty)
        )
        assert before ^ after in (1 << bit, (1 << bit) - (1 << entry.width))
        assert injection.landed
        assert injection.before == clean[0, 1][0, 0, 3].item()


@pytest.mark.parametrize(
    ("encoding", "bit"),
    [("fp16", 14), ("bf16", 14), ("fp8-e5m2", 6), ("fp8-e4m3", 5)],
)
def test_a_narrower_encoding_is_flipped_in_a_wider_model(encoding: str, bit: int) -> None:
    model = tiny_model("llama")
    entry = FORMATS[encoding]
    fault = _fault(step=1, bits=(bit,), encoding=encoding)
    clean = _activations(model, _UP, lambda: model.generate(_PROMPT, **_OPTIONS))
    (injection,), faulty = _with_faults(
        model, [fault], _UP, lambda: model.generate(_PROMPT, **_OPTIONS)
    )
    rounded = clean[0, 1][0, 0, 3].to(entry.dtype)
    pattern = rounded.reshape(1).view(entry.pattern_dtype) ^ (1 << bit)
    assert injection.landed
    assert injection.before == clean[0, 1][0, 0, 3].item()
    assert injection.after == pattern.view(entry.dtype).float().item()
    assert faulty[0, 1][0, 0, 3].item() == injection.after


def test_half_precision_in_a_single_precision_model_is_what_numpy_computes() -> None:
    model = tiny_model("llama")
    with ft2.inject(model, _fault(bits=(9,), encoding="fp16")) as injection:
        model(_PROMPT)
    pattern = np.array([injection.before], np.float32).astype(np.float16).view(np.uint16)
    assert injection.after == float((pattern ^ np.uint16(1 << 9)).view(np.float16)[0])


@pytest.mark.parametrize(("dtype", "encoding"), [(torch.float16, "bf16"), (torch.bfloat16, "fp32")])
def test_an_encoding_that_the_layer_cannot_hold_is_refused(
    dtype: torch.dtype, encoding: str
) -> None:
    model = tiny_model("llama", dtype=dtype)
    with (
        ft2.inject(model, _fault(bits=(1,), encoding=encoding)) as injection,
        pytest.raises(ValueError, match=f"encoding {encoding} cannot be tested on a layer"),
    ):
        model(_PROMPT)
    assert not injection.landed


@pytest.mark.parametrize(
    "site",
    [{"call": 1}, {"step": 4}, {"position": 5}, {"step": 1, "position": 1}],
    ids=str,
)
def test_a_fault_that_is_never_computed_has_not_landed(site: dict[str, int]) -> None:
    model = tiny_model("llama")
    clean = model.generate(_PROMPT, **_OPTIONS)
    with ft2.inject(model, _fault(**site)) as injection:
        assert torch.equal(model.generate(_PROMPT, **_OPTIONS), clean)
    assert (injection.fired, injection.landed) == (False, False)
    assert (injection.before, injection.after) == (None, None)


def test_a_fault_strikes_once() -> None:
    model = tiny_model("llama")
    clean = model(_PROMPT).logits
    with ft2.inject(model, _fault()) as injection:
        assert not torch.equal(model(_PROMPT).logits, clean)
        before = injection.before
        assert torch.equal(model(_PROMPT).logits, clean)
    assert injection.before == before


@pytest.mark.parametrize(("step", "phase"), [(0, "first"), (1, "later"), (7, "later")])
def test_an_injection_names_its_step_and_phase(step: int, phase: str) -> None:
    injection = Injection(_fault(step=step))
    assert (injection.step, injection.phase) == (step, phase)


def test_leaving_the_context_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    classes = [type(module) for module in model.modules()]
    clean = model.generate(_PROMPT, **_OPTIONS)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with ft2.inject(model, _fault()):
        model.generate(_PROMPT, **_OPTIONS)
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model.generate(_PROMPT, **_OPTIONS), clean)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_an_exception_inside_the_context_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    classes = [type(module) for module in model.modules()]
    with pytest.raises(IndexError), ft2.inject(model, _fault()):
        model(torch.tensor([[999]]))
    assert [type(module) for module in model.modules()] == classes


def test_one_injector_leaves_and_the_other_stays() -> None:
    model = tiny_model("llama")
    with ft2.inject(model, _fault(call=1, neuron=4)) as outer:
        with ft2.inject(model, _fault(neuron=5)) as inner:
            model(_PROMPT)
        model(_PROMPT)
    assert inner.landed
    assert outer.landed


def test_a_copy_of_a_model_under_injection_has_no_fault() -> None:
    model = tiny_model("llama")
    clean = model(_PROMPT).logits
    with ft2.inject(model, _fault()) as injection:
        assert torch.equal(copy.deepcopy(model)(_PROMPT).logits, clean)
        assert not injection.fired


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_fault_lands_whatever_the_gradient_mode(mode: Callable[[], Any]) -> None:
    model = tiny_model("llama")
    with mode(), ft2.inject(model, _fault()) as injection:
        model(_PROMPT)
    assert injection.landed


def test_an_unknown_layer_is_refused_before_the_model_is_touched() -> None:
    model = tiny_model("llama")
    kind = type(model)
    with (
        pytest.raises(ValueError, match=r"no projection 'lm_head'; its first is 'model\.layers\.0"),
        ft2.inject(model, _fault(layer="lm_head")),
    ):
        pass
    assert type(model) is kind


def test_a_neuron_out_of_range_is_refused_before_the_model_is_touched() -> None:
    model = tiny_model("llama")
    kind = type(model)
    with (
        pytest.raises(ValueError, match=f"{_UP} has 24 neurons, so there is no neuron 24"),
        ft2.inject(model, [_fault(), _fault(neuron=24)]),
    ):
        pass
    assert type(model) is kind


def test_a_row_that_the_batch_lacks_is_refused() -> None:
    model = tiny_model("llama")
    with (
        ft2.inject(model, _fault(row=1)) as injection,
        pytest.raises(ValueError, match=r"lies outside the output of .*: 1 rows, 24 columns"),
    ):
        model(_PROMPT)
    assert not injection.fired


def test_a_row_that_the_batch_lacks_is_refused_by_experts_too() -> None:
    model = small_model("mixtral")
    layer = next(each.name for each in ft2.projections(model) if each.expert is not None)
    with (
        ft2.inject(model, _fault(row=1, layer=layer, neuron=0)) as injection,
        pytest.raises(ValueError, match=r"lies outside the output of .*: 1 rows"),
    ):
        model(_PROMPT)
    assert not injection.fired


def test_a_bit_that_the_layers_format_lacks_is_refused() -> None:
    model = tiny_model("llama", dtype=torch.float16)
    with (
        ft2.inject(model, _fault(bits=(16,))) as injection,
        pytest.raises(ValueError, match="not all bits of fp16"),
    ):
        model(_PROMPT)
    assert not injection.landed


def test_what_is_no_model_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"needs the model itself"):
        ft2.inject(None, _fault())  # type: ignore[call-overload]


def test_a_compiled_wrapper_stands_for_its_model() -> None:
    model = tiny_model("llama")
    wrapper: Any = torch.compile(model, backend="eager")
    with ft2.inject(wrapper, _fault()) as injection:
        model(_PROMPT)
    assert injection.landed


def test_a_sign_flip_of_zero_and_a_flip_inside_a_nan_have_landed() -> None:
    model = tiny_model("gpt2")
    layer = "transformer.h.1.mlp.c_fc"
    module = model.get_submodule(layer)
    module.weight.zero_()
    module.bias.zero_()
    with ft2.inject(model, _fault(layer=layer, bits=(31,))) as zero:
        model(_PROMPT)
    assert (zero.before, zero.after, zero.landed) == (0, 0, True)
    module.bias.fill_(float("nan"))
    with ft2.inject(model, replace(_fault(layer=layer), bits=(3,))) as nan:
        model(_PROMPT)
    assert nan.landed
    np.testing.assert_equal((nan.before, nan.after), (float("nan"), float("nan")))
