"""Looking into a model: what it may not change, and in what surroundings it answers the same."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from transformers import PreTrainedModel

from ft2.layers import Projection, projections
from tests.layers.small import Model
from tests.tiny_models import tiny_model
from tests.zoo.configs import small_model

_SURROUNDINGS: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "recording gradients": torch.enable_grad,
    "the meta device": lambda: torch.device("meta"),
    "the cpu": lambda: torch.device("cpu"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("surroundings", _SURROUNDINGS)
def test_the_answer_is_the_same_in(surroundings: str) -> None:
    expected = projections(tiny_model("llama"))
    model = tiny_model("llama")
    context: AbstractContextManager[Any] = _SURROUNDINGS[surroundings]()
    with context:
        assert projections(model) == expected


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_answer_is_the_same_in_any_type(model_type: str, dtype: torch.dtype) -> None:
    assert projections(tiny_model(model_type, dtype)) == projections(tiny_model(model_type))


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gpt_neox", "falcon", "bloom"])
def test_the_answer_is_the_same_with_either_attention(model_type: str) -> None:
    def critical(implementation: str) -> dict[str, Any]:
        model = small_model(model_type)
        model.set_attn_implementation(implementation)
        return {each.name: each.columns for each in projections(model)}

    assert critical("eager") == critical("sdpa")


def test_a_model_on_the_meta_device_has_the_same_projections() -> None:
    assert projections(tiny_model("llama").to("meta")) == projections(tiny_model("llama"))


@pytest.mark.parametrize("model_type", ["llama", "reformer", "mixtral"])
def test_random_states_are_left_alone(model_type: str) -> None:
    model = small_model(model_type)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    projections(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.initial_seed() == 5


def test_a_model_in_training_stays_in_training() -> None:
    model = tiny_model("llama").train()
    projections(model)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_hooks_of_the_user_are_not_called() -> None:
    model = tiny_model("llama")
    calls: list[str] = []
    model.register_forward_pre_hook(lambda *_: calls.append("before the model"))
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append("after an mlp"))
    handles = [
        modules.register_module_forward_hook(lambda *_: calls.append("after any")),
        modules.register_module_forward_pre_hook(lambda *_: calls.append("before any")),
    ]
    projections(model)
    assert calls == []
    model(torch.tensor([[5]]))
    assert set(calls) == {"before the model", "after an mlp", "after any", "before any"}
    for handle in handles:
        handle.remove()


def test_a_forward_that_was_set_on_a_module_is_the_one_that_is_followed() -> None:
    model = tiny_model("llama")
    before = projections(model)
    for layer in model.model.layers:
        mlp = layer.mlp

        def without_activation(hidden: Tensor, mlp: Any = mlp) -> Tensor:
            return mlp.down_proj(mlp.gate_proj(hidden) * mlp.up_proj(hidden))

        mlp.forward = without_activation
    after = projections(model)
    critical = {each.kind: each.critical for each in after}
    assert critical["gate_proj"]
    assert {each.kind: each.critical for each in before}["gate_proj"] is False
    assert len(after) == len(before)


def test_a_forward_that_wraps_the_modules_own_is_followed() -> None:
    model = tiny_model("llama")
    before = {each.name: each.columns for each in projections(model)}
    for layer in model.model.layers:
        own = layer.mlp.forward
        layer.mlp.forward = lambda hidden, own=own: own(hidden)
    assert {each.name: each.columns for each in projections(model)} == before


class _LoRA(nn.Module):
    """A linear layer with a low-rank addition, as adapters wrap it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.lora_A = nn.ModuleDict({"default": nn.Linear(self.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, self.out_features, bias=False)})

    def forward(self, hidden: Tensor) -> Tensor:
        added = self.lora_B["default"](self.lora_A["default"](hidden))
        return torch.as_tensor(self.base_layer(hidden) + 2 * added)


def _by_name(model: PreTrainedModel) -> dict[str, Projection]:
    return {each.name: each for each in projections(model)}


def test_a_linear_layer_is_found_inside_its_adapter_as_soon_as_it_is_wrapped() -> None:
    model = tiny_model("llama")
    plain = _by_name(model)
    attention = model.model.layers[0].self_attn
    for name in ("q_proj", "v_proj"):
        setattr(attention, name, _LoRA(getattr(attention, name)))
    wrapped = _by_name(model)
    for name, is_critical in (("q_proj", False), ("v_proj", True)):
        path = f"model.layers.0.self_attn.{name}"
        assert plain[path].critical == is_critical
        assert wrapped[f"{path}.base_layer"].critical == is_critical
        assert wrapped[f"{path}.base_layer"].kind == name
        assert wrapped[f"{path}.lora_B.default"].critical == is_critical
        # What goes into another linear layer as it is, is critical whatever that layer's fate.
        assert wrapped[f"{path}.lora_A.default"].critical
        assert wrapped[f"{path}.lora_A.default"].kind == "lora_A"


def test_the_answer_follows_an_exchanged_layer() -> None:
    model = tiny_model("llama")
    assert _by_name(model)["model.layers.0.mlp.up_proj"].out_features == 24
    for name in ("gate_proj", "up_proj"):
        setattr(model.model.layers[0].mlp, name, nn.Linear(16, 32))
    model.model.layers[0].mlp.down_proj = nn.Linear(32, 16)
    assert _by_name(model)["model.layers.0.mlp.up_proj"].out_features == 32


def test_layers_that_share_a_weight_are_each_listed() -> None:
    model = tiny_model("llama")
    first, second = (layer.self_attn for layer in model.model.layers)
    second.v_proj.weight = first.v_proj.weight
    first.o_proj.weight = first.q_proj.weight
    found = _by_name(model)
    assert len(found) == 14
    assert found["model.layers.1.self_attn.v_proj"].critical
    assert found["model.layers.0.self_attn.o_proj"].critical
    assert not found["model.layers.0.self_attn.q_proj"].critical


def test_a_normed_weight_is_found_as_its_layers_output() -> None:
    model = tiny_model("llama")
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
    found = [each for each in projections(model) if "layers.0.mlp.up_proj" in each.name]
    assert len(found) == 1
    assert found[0].critical
    assert found[0].weight is None


def test_a_query_that_is_a_parameter_makes_attention_no_linear_layer() -> None:
    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.zeros(8))

        def forward(self, hidden: Tensor) -> Tensor:
            query = self.query.view(1, 1, 8).expand(*hidden.shape[:-1], 8)
            return nn.functional.scaled_dot_product_attention(query, hidden, hidden)

    model = Model(lambda b, x: b.last(b.pooling(b.first(x))))
    model.blocks[0].pooling = Pooling()
    assert [each.kind for each in projections(model)] == ["first", "last"]


def test_two_threads_get_the_same_answer() -> None:
    expected = projections(tiny_model("llama"))
    answers: list[list[Projection]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(projections(tiny_model("llama"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 4


def test_layers_whose_forwards_are_wrapped_for_other_devices_are_found() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = tiny_model("llama")
    before = projections(model)
    for module in model.modules():
        hooks.add_hook_to_module(module, hooks.ModelHook())
    assert projections(model) == before
