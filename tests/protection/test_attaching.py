"""Putting a policy on a model leaves the model what it is, and taking it off leaves no trace."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

import ft2
from ft2.protection import POLICIES, Policy
from tests.protection.watch import generate, prompts, watching
from tests.tiny_models import ARCHITECTURES, tiny_model

UP = "model.layers.0.mlp.up_proj"
STRUCK = {1: {(0, 0, 0): torch.inf}}


def is_restricted(model: Any) -> bool:
    with watching(model, UP, strikes=STRUCK) as watch:
        generate(model, prompts(), max_new_tokens=2)
    return bool(watch.passed_on[1].isfinite().all())


@pytest.mark.parametrize("policy", POLICIES)
def test_attaching_leaves_the_model_what_it_is(policy: str) -> None:
    model = tiny_model()
    unprofiled = policy in ("ft2", "none", "ft2-recompute")
    bounds = None if unprofiled else ft2.profile(model, prompts(), policy)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    protection = ft2.protect(model, policy, bounds=bounds)
    assert protection.model is model
    assert isinstance(model, LlamaForCausalLM)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.state_dict().keys() == before.keys()
    generate(model, prompts(), max_new_tokens=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert repr(model) == repr(tiny_model())


def test_removing_leaves_no_trace_and_may_be_done_twice() -> None:
    model = tiny_model()
    classes = [type(module) for module in model.modules()]
    unprotected = generate(model, prompts())
    protection = ft2.protect(model)
    assert is_restricted(model)
    counts = protection.counts
    assert sum(counts) > 0
    protection.remove()
    assert [type(module) for module in model.modules()] == classes
    protection.remove()
    assert not is_restricted(model)
    assert torch.equal(generate(model, prompts()), unprotected)
    assert protection.counts == counts
    assert protection.left_first_token


def test_leaving_the_context_removes_it_whatever_happened() -> None:
    model = tiny_model()
    with pytest.raises(KeyboardInterrupt), ft2.protect(model):
        raise KeyboardInterrupt
    assert type(model) is LlamaForCausalLM
    assert not is_restricted(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_policy_leaves_every_number_as_it_is(architecture: str) -> None:
    model = tiny_model(architecture)
    ids = prompts()
    settings: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
    plain: Any = generate(model, ids, **settings)
    with ft2.protect(model, "none") as protection:
        other: Any = generate(model, ids, **settings)
    assert all(map(torch.equal, plain.logits, other.logits))
    assert protection.counts == []
    assert not protection.left_first_token


def test_no_policy_needs_no_known_architecture() -> None:
    with ft2.protect(nn.Linear(2, 2), "none") as protection:
        assert protection.counts == []


def test_a_copy_is_unprotected_and_independent() -> None:
    model = tiny_model()
    with ft2.protect(model) as protection:
        twin = copy.deepcopy(model)
        assert [type(module) for module in twin.modules()] == [
            type(module) for module in tiny_model().modules()
        ]
        assert not is_restricted(twin)
        assert protection.counts == []
        with ft2.protect(twin) as other:
            assert is_restricted(twin)
        assert protection.counts == []
        assert len(other.counts) == 1
        assert is_restricted(model)
    assert torch.equal(generate(twin, prompts()), generate(model, prompts()))


def test_a_pickle_of_a_protected_model_is_unprotected() -> None:
    model = tiny_model()
    with ft2.protect(model):
        twin = pickle.loads(pickle.dumps(model))
    assert type(twin) is LlamaForCausalLM
    assert not is_restricted(twin)


def test_a_protected_model_saves_as_itself(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "plain")
    with ft2.protect(model):
        model.save_pretrained(tmp_path / "protected")
    for name in ("config.json", "model.safetensors"):
        plain, protected = ((tmp_path / kind / name) for kind in ("plain", "protected"))
        assert plain.read_bytes() == protected.read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "protected")
    assert type(loaded) is LlamaForCausalLM


def test_a_protected_model_can_change_its_type() -> None:
    model = tiny_model()
    with ft2.protect(model) as protection:
        generate(model, prompts(), max_new_tokens=2)
        assert model.to(torch.float64) is model
        assert is_restricted(model)
        model.to(torch.bfloat16)
        assert is_restricted(model)
    assert len(protection.counts) == 3


def test_protections_may_be_nested_and_removed_in_any_order() -> None:
    model = tiny_model()
    outer = ft2.protect(model, scale=4.0)
    inner = ft2.protect(model, scale=2.0)
    assert is_restricted(model)
    assert sum(outer.counts) > 0
    outer.remove()
    assert is_restricted(model)
    assert len(outer.counts) == 1
    assert len(inner.counts) == 2
    inner.remove()
    assert not is_restricted(model)
    assert type(model) is LlamaForCausalLM


def test_two_models_are_protected_each_for_itself() -> None:
    one, other = tiny_model(seed=1), tiny_model(seed=2)
    with ft2.protect(one) as first, ft2.protect(other) as second:
        assert is_restricted(one)
        assert len(first.counts) == 1
        assert second.counts == []
        assert is_restricted(other)
        assert len(first.counts) == len(second.counts) == 1


def test_a_model_can_be_protected_again_and_again() -> None:
    model = tiny_model()
    for _ in range(3):
        with ft2.protect(model) as protection:
            assert is_restricted(model)
            assert len(protection.counts) == 1
        assert not is_restricted(model)


def test_a_model_whose_generation_failed_is_still_protected() -> None:
    model = tiny_model()
    ids = prompts(1, seed=3)
    unprotected = generate(model, ids)

    class StopError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StopError

    with ft2.protect(model) as protection:
        hook = model.get_submodule(UP).register_forward_hook(stop)
        with pytest.raises(StopError):
            generate(model, ids)
        hook.remove()
        assert torch.equal(generate(model, ids), unprotected)
        assert is_restricted(model)
    assert len(protection.counts) == 3
    assert protection.counts[:2] == [0, 0]


def test_a_protected_model_is_let_go_with_its_protection() -> None:
    model = tiny_model()
    protection = ft2.protect(model)
    generate(model, prompts(), max_new_tokens=2)
    gone = weakref.ref(model)
    del model, protection
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("scale", [0.99, 0.0, -2.0, float("nan"), float("inf"), 1e39])
def test_a_scale_that_widens_nothing_or_everything_is_refused(scale: float) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"^scale widens the bounds, so it is .*, not \S+$"):
        ft2.protect(model, scale=scale)
    assert type(model) is LlamaForCausalLM


def test_an_unknown_policy_is_refused_by_naming_the_known() -> None:
    with pytest.raises(
        ValueError, match=r"^unknown protection 'armour': use one of ft2, none, .*$"
    ):
        ft2.protect(tiny_model(), "armour")


def test_what_is_no_module_is_refused() -> None:
    class Wrapper:
        model = tiny_model()

    with pytest.raises(TypeError, match=r"torch\.nn\.Module, and was given .*Wrapper; pass its"):
        ft2.protect(Wrapper())  # type: ignore[arg-type]


def test_a_model_of_unknown_architecture_is_refused_and_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(
        ft2.UnsupportedModelError, match="could not run this Sequential on token ids"
    ):
        ft2.protect(model)
    assert type(model) is nn.Sequential


def test_a_model_without_critical_layers_is_refused_and_left_alone() -> None:
    class Squashed(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.tanh(super().forward(hidden))

    model = tiny_model()
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = Squashed
    with pytest.raises(
        ft2.UnsupportedModelError, match="no critical layer was found in this Llama"
    ):
        ft2.protect(model)
    assert type(model) is LlamaForCausalLM


def test_a_policy_that_leaves_something_out_cannot_be_made() -> None:
    class Half(Policy):
        def find(self, model: nn.Module) -> list[Any]:
            return []

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_the_decoder_stack_may_be_called_past_its_head() -> None:
    model: PreTrainedModel = tiny_model()
    with ft2.protect(model) as protection, watching(model, UP, strikes=STRUCK) as watch:
        cache = model.model(prompts(), use_cache=True).past_key_values
        model.model(prompts(1, 1), past_key_values=cache)
    assert watch.passed_on[1][0, 0, 0] == 2 * watch.range(0)[1]
    assert len(protection.counts) == 1
