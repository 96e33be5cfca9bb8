"""What becomes of a fault under protection, and who is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ft2
from ft2.protection.arithmetic import widen
from tests.protection.watch import generate, learned, prompts, watching
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.zoo.configs import small_model

UP = "model.layers.0.mlp.up_proj"
HALVES = [torch.float16, torch.bfloat16]
DTYPES = [*HALVES, torch.float32, torch.float64]


def exponent_fault(model: Any, step: int, neuron: int, row: int = 0) -> ft2.Fault:
    """Flip the exponent's highest bit: anything below 2 becomes huge."""
    top = {torch.float16: 14, torch.bfloat16: 14, torch.float32: 30, torch.float64: 62}
    bits = (top[model.dtype],)
    return ft2.Fault(call=0, step=step, layer=UP, row=row, position=0, neuron=neuron, bits=bits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_huge_value_in_a_later_step_is_clipped_to_the_bound(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    ids = prompts()
    with watching(model, UP) as fault_free:
        generate(model, ids)
    small = (fault_free.computed[3][0, 0].abs() < 1).nonzero().flatten()
    for neuron in small[:4].tolist():
        fault = exponent_fault(model, 3, neuron)
        with (
            ft2.protect(model) as protection,
            ft2.inject(model, fault) as injection,
            watching(model, UP) as watch,
        ):
            generate(model, ids)
        assert injection.landed
        low, high = watch.range(0)
        assert injection.after is not None
        bound = high + abs(high) if injection.after > 0 else low - abs(low)
        assert abs(injection.after) > abs(bound), "the fault is out of bounds"
        assert watch.passed_on[3][0, 0, neuron] == bound
        assert sum(protection.counts) >= 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_out_of_bounds_is_set_to_zero_where_that_is_asked_for(
    dtype: torch.dtype, architecture: str
) -> None:
    model = tiny_model(architecture, dtype=dtype)
    layer = {"llama": UP, "gpt2": "transformer.h.0.attn.c_attn"}[architecture]
    # The last columns of the fused layer are values, its first are queries.
    values = [torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).max]
    strikes = {1: {(0, 0, column - 4): value for column, value in enumerate(values)}}
    found: list[ft2.Detection] = []
    with (
        ft2.protect(model, correction="zero", on_detection=found.append) as protection,
        watching(model, layer, 1, strikes) as watch,
    ):
        generate(model, prompts(), max_new_tokens=2)
    assert watch.passed_on[1][0, 0, -4:].tolist() == [0.0] * 4
    assert torch.equal(watch.passed_on[1][0, 0, :-4], watch.computed[1][0, 0, :-4])
    assert sum(protection.counts) >= 4
    assert [each.step for each in found] == [1]


def test_zero_and_clip_learn_the_same_and_leave_the_same_alone() -> None:
    model = tiny_model()
    ids = prompts(3)
    counts = []
    for correction in ("clip", "zero"):
        with ft2.protect(model, correction=correction) as protection:
            model(ids, use_cache=False)
            low, high = learned(protection, UP)
        counts.append((protection.counts, low.tolist(), high.tolist()))
    assert counts[0] == counts[1]


def test_experts_are_set_to_zero_where_that_is_asked_for() -> None:
    model = small_model("mixtral")
    ids = prompts() % 50 + 4
    said = {}
    for correction in ("clip", "zero"):
        # At scale 1, later tokens leave the first one's bounds without any fault.
        with ft2.protect(model, scale=1.0, correction=correction) as protection:
            output: Any = generate(
                model, ids, output_logits=True, return_dict_in_generate=True, max_new_tokens=5
            )
        assert sum(protection.counts) > 0
        said[correction] = torch.stack(output.logits)
    assert not torch.equal(said["clip"], said["zero"])


def test_an_unknown_correction_is_refused_by_naming_the_known() -> None:
    with pytest.raises(ValueError, match=r"^unknown correction 'round': use one of clip, zero$"):
        ft2.protect(tiny_model(), correction="round")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 1.25, 2.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_are_clipped_to_the_scaled_bounds(dtype: torch.dtype, scale: float) -> None:
    model = tiny_model(dtype=dtype)
    strikes = {1: {(0, 0, 0): torch.inf, (0, 0, 1): -torch.inf}}
    with ft2.protect(model, scale=scale) as protection, watching(model, UP, 1, strikes) as watch:
        generate(model, prompts(), max_new_tokens=2)
    below, above = widen(*learned(protection, UP), scale, dtype, 1)
    assert watch.passed_on[1][0, 0, 0] == above.to(dtype).flatten()
    assert watch.passed_on[1][0, 0, 1] == below.to(dtype).flatten()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("run", [0, 2], ids=["first token", "later"])
def test_nan_becomes_zero_in_every_step(architecture: str, run: int) -> None:
    model = tiny_model(architecture)
    first = next(projection for projection in ft2.projections(model) if projection.critical)
    layer, column = first.name, first.out_features - 1
    strikes = {run: {(1, 0, column): torch.nan}}
    with ft2.protect(model) as protection, watching(model, layer, 2, strikes) as watch:
        generate(model, prompts(2, seed=3), max_new_tokens=4, eos_token_id=None)
    assert watch.passed_on[run][1, 0, column] == 0
    assert protection.counts[1] >= 1
    if run == 0:
        assert protection.counts == [0, 1]
        others = torch.ones_like(watch.passed_on[0], dtype=torch.bool)
        others[1, 0, column] = False
        assert torch.equal(watch.passed_on[0][others], watch.computed[0][others])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_infinity_in_the_first_token_is_saturated_and_not_learned(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    strikes = {0: {(0, 2, 0): torch.inf, (0, 3, 1): -torch.inf}}
    with ft2.protect(model) as protection, watching(model, UP, 1, strikes) as watch:
        generate(model, prompts(), max_new_tokens=2)
    largest = torch.finfo(dtype).max
    assert watch.passed_on[0][0, 2, 0] == largest
    assert watch.passed_on[0][0, 3, 1] == -largest
    sound = watch.computed[0].flatten()
    sound = torch.cat([sound[: 2 * 24], sound[2 * 24 + 1 : 3 * 24 + 1], sound[3 * 24 + 2 :]])
    low, high = learned(protection, UP)
    assert (low, high) == (sound.min(), sound.max())


def test_a_finite_fault_in_the_first_token_widens_the_bounds_of_its_layer_only() -> None:
    model = tiny_model()
    ids = prompts()
    last = "model.layers.1.mlp.down_proj"
    with ft2.protect(model) as sound:
        generate(model, ids, max_new_tokens=2)
        expected = learned(sound, UP)
    strikes = {0: {(0, 2, 0): 1e9}}
    with ft2.protect(model) as protection, watching(model, last, 1, strikes):
        generate(model, ids, max_new_tokens=2)
    assert learned(protection, last)[1] == 1e9
    assert learned(protection, UP) == expected


def test_the_order_of_attaching_makes_no_difference() -> None:
    model = tiny_model()
    ids = prompts(2)
    fault = exponent_fault(model, 2, neuron=3, row=1)
    with ft2.protect(model) as first, ft2.inject(model, fault) as injected_second:
        one = generate(model, ids)
    with ft2.inject(model, fault) as injected_first, ft2.protect(model) as second:
        other = generate(model, ids)
    assert torch.equal(one, other)
    assert first.counts == second.counts
    assert first.counts[1] > 0
    assert (injected_first.before, injected_first.after) == (
        injected_second.before,
        injected_second.after,
    )


def test_protection_keeps_a_text_that_a_fault_would_change() -> None:
    model = tiny_model()
    ids = prompts(1, seed=3)
    fault_free = generate(model, ids)
    kept = changed = 0
    for neuron in range(24):
        fault = exponent_fault(model, 2, neuron)
        with ft2.inject(model, fault):
            unprotected = generate(model, ids)
        if torch.equal(unprotected, fault_free):
            continue
        changed += 1
        with ft2.protect(model), ft2.inject(model, fault):
            kept += torch.equal(generate(model, ids), fault_free)
    assert changed > 0
    assert kept > 0


def test_a_detection_says_which_call_step_and_request() -> None:
    model = tiny_model()
    found: list[ft2.Detection] = []
    with ft2.protect(model, scale=4.0, on_detection=found.append) as protection:
        generate(model, prompts(2, seed=3), max_new_tokens=2)
        assert found == []
        strikes = {3: {(1, 0, 0): torch.nan, (1, 0, 4): torch.inf, (0, 0, 1): torch.nan}}
        last = "model.layers.1.mlp.down_proj"
        with watching(model, last, 2, strikes):
            generate(model, prompts(2, seed=3), max_new_tokens=4, eos_token_id=None)
    assert [(each.step, each.corrected) for each in found] == [(3, (1, 2))]
    assert protection.counts == [0, 0, 1, 2]
    assert found[0].call == 1


def test_a_detection_adds_up_what_all_layers_corrected() -> None:
    model = tiny_model()
    found: list[ft2.Detection] = []
    with (
        ft2.protect(model, on_detection=found.append) as protection,
        watching(model, UP, 1, {1: {(0, 0, 0): torch.inf}}),
    ):
        generate(model, prompts(), max_new_tokens=8)
    assert sum(sum(each.corrected) for each in found) == sum(protection.counts)


def test_a_detection_leaves_out_a_forward_that_failed() -> None:
    model = tiny_model()
    found: list[ft2.Detection] = []
    gate = "model.layers.1.mlp.gate_proj"

    def fail(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    with ft2.protect(model, on_detection=found.append), ft2.request(model):
        hook = model.get_submodule(gate).register_forward_hook(fail)
        struck = watching(model, UP, 1, {0: {(0, 0, 0): torch.nan}})
        with struck, pytest.raises(RuntimeError, match="gone"):
            model(prompts())
        hook.remove()
        model(prompts(1, 1))
    assert found == []


def test_an_error_raised_on_detection_reaches_the_caller_and_the_model_stays_usable() -> None:
    model = tiny_model()
    ids = prompts(1, seed=3)
    sound = generate(model, ids)

    def stop(detection: ft2.Detection) -> None:
        raise LookupError(f"{detection.corrected} in step {detection.step}")

    with ft2.protect(model, on_detection=stop) as protection:
        struck = watching(model, UP, 1, {0: {(0, 0, 0): torch.nan}})
        with struck, pytest.raises(LookupError, match=r"\(1,\) in step 0"):
            generate(model, ids)
        assert torch.equal(generate(model, ids), sound)
    assert protection.counts == [1, 0]


def test_protection_may_be_removed_on_detection() -> None:
    model = tiny_model()
    found: list[ft2.Detection] = []

    def remove(detection: ft2.Detection) -> None:
        found.append(detection)
        protection.remove()

    protection = ft2.protect(model, on_detection=remove)
    strikes: dict[int, dict[tuple[int, int, int], float]] = {
        0: {(0, 0, 0): torch.nan},
        1: {(0, 0, 0): torch.inf},
    }
    with watching(model, UP, 1, strikes) as watch:
        generate(model, prompts(), max_new_tokens=3)
    assert len(found) == 1
    assert watch.passed_on[1][0, 0, 0] == torch.inf


def values(outputs: list[Tensor]) -> list[list[float]]:
    return [output.flatten().tolist() for output in outputs]


@pytest.mark.parametrize("mode", ["inference_mode", "no_grad", "enable_grad"])
def test_protection_works_with_and_without_gradients(mode: str) -> None:
    model = tiny_model()
    strikes = {1: {(0, 0, 0): 1e30}}
    results = []
    for context in (torch.no_grad, getattr(torch, mode)):
        with ft2.protect(model) as protection, watching(model, UP, 1, strikes) as watch, context():
            cache = model(prompts(), use_cache=True).past_key_values
            model(prompts(1, 1), past_key_values=cache)
        results.append((protection.counts, values(watch.passed_on)))
    assert results[0] == results[1]


def test_one_request_may_go_from_inference_mode_to_gradients() -> None:
    model = tiny_model()
    with ft2.protect(model) as protection, ft2.request(model):
        with torch.inference_mode():
            model(prompts(), use_cache=False)
            model(prompts(), use_cache=False)
        model(prompts(), use_cache=False).logits.sum().backward()
    assert protection.left_first_token


def test_gradients_flow_through_a_protected_model() -> None:
    model = tiny_model()
    model.train()
    ids = prompts(2)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return [each.grad.clone() for each in model.parameters() if each.grad is not None]

    plain = gradients()
    with ft2.protect(model) as protection:
        protected = gradients()
    assert protection.counts == [0, 0]
    assert all(map(torch.equal, plain, protected))


def test_under_autocast_the_layers_own_type_counts() -> None:
    model = tiny_model()
    ids = prompts(1, seed=3)
    strikes = {1: {(0, 0, 0): torch.inf}}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        unprotected = generate(model, ids)
        with ft2.protect(model, scale=4.0) as protection:
            assert torch.equal(generate(model, ids), unprotected)
        with ft2.protect(model) as struck, watching(model, UP, 1, strikes) as watch:
            generate(model, ids)
    assert protection.counts == [0]
    assert struck.counts[0] > 0
    assert watch.passed_on[1].dtype == torch.bfloat16
    assert watch.passed_on[1][0, 0, 0] == 2 * watch.computed[0].max()
