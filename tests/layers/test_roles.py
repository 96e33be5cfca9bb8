"""What projections are for, and where activations are, found by what becomes of the columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ft2.layers import Activation, Projection, activations, projections
from tests.layers.small import Model, of_block
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.zoo.configs import small_model


def _kinds(found: list[Projection], ends: str) -> set[str]:
    return {each.kind for each in found if each.ends == ends}


def _values(found: list[Projection]) -> dict[str, tuple[tuple[int, int], ...]]:
    return {each.kind: each.values for each in found if each.values}


# Kinds of the projections that hold values, that read attention's result, and that end the MLP.
_ROLES: dict[str, tuple[str, set[str], set[str]]] = {
    "bart": ("v_proj", {"out_proj"}, {"fc2"}),
    "bert": ("value", {"dense"}, {"dense"}),
    "bloom": ("query_key_value", {"dense"}, {"dense_4h_to_h"}),
    "ctrl": ("Wv", {"dense"}, {"ffn"}),
    "dbrx": ("Wqkv", {"out_proj"}, {"w2"}),
    "deepseek_v3": ("kv_b_proj", {"o_proj"}, {"down_proj"}),
    "gpt2": ("c_attn", {"c_proj"}, {"c_proj"}),
    "gpt_neox": ("query_key_value", {"dense"}, {"dense_4h_to_h"}),
    "gpt_oss": ("v_proj", {"o_proj"}, {"down_proj"}),
    "gptj": ("v_proj", {"out_proj"}, {"fc_out"}),
    "jamba": ("v_proj", {"o_proj"}, {"down_proj", "out_proj"}),
    "llama": ("v_proj", {"o_proj"}, {"down_proj"}),
    "mixtral": ("v_proj", {"o_proj"}, {"down_proj"}),
    "modernbert-decoder": ("v_proj", {"Wo"}, {"Wo"}),
    "mpt": ("Wqkv", {"out_proj"}, {"down_proj"}),
    "opt": ("v_proj", {"out_proj"}, {"fc2"}),
    "phi3": ("qkv_proj", {"o_proj"}, {"down_proj"}),
    "qwen3_next": ("v_proj", {"o_proj"}, {"down_proj", "out_proj"}),
    "xlm": ("v_lin", {"out_lin"}, {"lin2"}),
}


@pytest.mark.parametrize("architecture", _ROLES)
def test_the_roles_of_known_architectures_are_found_whatever_they_are_called(
    architecture: str,
) -> None:
    found = projections(small_model(architecture))
    value, attention, mlp = _ROLES[architecture]
    assert set(_values(found)) == {value}
    if architecture == "ctrl":
        # It numbers the layers of its MLP.
        assert {each.name[-5:] for each in found if each.ends == "mlp"} == {"ffn.2"}
    else:
        assert _kinds(found, "mlp") == mlp
    assert _kinds(found, "attention") == attention


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"gptj"}))
def test_roles_do_not_depend_on_how_attention_is_computed(
    architecture: str, implementation: str
) -> None:
    model = tiny_model(architecture)
    found = projections(model)
    other = tiny_model(architecture, attn_implementation=implementation)
    assert [(each.name, each.values, each.ends) for each in projections(other)] == [
        (each.name, each.values, each.ends) for each in found
    ]
    assert sum(each.ends == "attention" for each in found) == 2
    assert sum(each.ends == "mlp" for each in found) == 2


def test_of_fused_projections_the_columns_of_the_values_are_found() -> None:
    assert _values(projections(small_model("gpt2")))["c_attn"] == ((64, 96),)
    assert _values(projections(small_model("phi3")))["qkv_proj"] == ((48, 64),)
    assert _values(projections(small_model("gpt_neox")))["query_key_value"] == tuple(
        (start + 16, start + 24) for start in range(0, 96, 24)
    )


@pytest.mark.parametrize("architecture", ["mamba", "mamba2", "rwkv"])
def test_a_model_without_attention_has_no_values_and_no_attention_output(architecture: str) -> None:
    found = projections(small_model(architecture))
    assert not _values(found)
    assert not _kinds(found, "attention")


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v


def test_the_second_of_a_low_rank_pair_ends_the_attention() -> None:
    found = of_block(lambda b, x: x + b.last(b.other(_attend(x, x, b.first(x)))))
    assert {kind: each.ends for kind, each in found.items()} == {
        "first": None,
        "other": None,
        "last": "attention",
    }
    assert found["first"].values == ((0, 8),)


def test_sums_without_a_softmax_make_no_values() -> None:
    found = of_block(lambda b, x: x + b.last((x @ x.transpose(-1, -2)) @ b.first(x)))
    assert found["first"].values == ()
    assert found["last"].ends == "mlp"


def test_what_is_added_before_an_activated_gate_ends_no_mlp() -> None:
    def mlp(b: Any, x: Tensor) -> Tensor:
        up = b.first(x) + b.along(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return x + b.last(functional.silu(b.other(x)) * up)

    found = of_block(mlp)
    assert {kind for kind, each in found.items() if each.ends == "mlp"} == {"last"}


def _activations(architecture: str) -> dict[str, Activation]:
    return {each.name: each for each in activations(small_model(architecture))}


@pytest.mark.parametrize(
    ("architecture", "name", "into"),
    [
        ("llama", "model.layers.0.mlp.act_fn", "model.layers.0.mlp.down_proj"),
        ("gpt2", "transformer.h.0.mlp.act", "transformer.h.0.mlp.c_proj"),
        ("opt", "model.decoder.layers.0.activation_fn", "model.decoder.layers.0.fc2"),
        ("phi3", "model.layers.0.mlp.activation_fn", "model.layers.0.mlp.down_proj"),
        ("apertus", "model.layers.0.mlp.act_fn", "model.layers.0.mlp.down_proj"),
        ("bloom", "transformer.h.0.mlp.gelu_impl", "transformer.h.0.mlp.dense_4h_to_h"),
        ("nemotron", "model.layers.0.mlp.act_fn", "model.layers.0.mlp.down_proj"),
    ],
)
def test_the_activation_of_an_mlp_is_found_in_its_module(
    architecture: str, name: str, into: str
) -> None:
    found = _activations(architecture)
    assert len(found) == 2
    assert found[name].is_module
    assert found[name].by_token
    assert found[name].into == (into,)


def test_experts_share_an_activation_that_is_given_what_was_routed_to_them() -> None:
    found = _activations("mixtral")
    assert len(found) == 2
    assert all(each.is_module and not each.by_token for each in found.values())


@pytest.mark.parametrize("architecture", ["gpt_oss", "lfm2", "rwkv"])
def test_an_activation_that_is_called_as_a_function_is_no_module(architecture: str) -> None:
    assert not all(each.is_module for each in _activations(architecture).values())


def test_gates_of_attention_and_routers_are_no_activation_layers() -> None:
    assert {name.rpartition(".")[2] for name in _activations("afmoe")} == {"act_fn"}
    assert {name.rpartition(".")[2] for name in _activations("llama4_text")} == {
        "act_fn",
        "activation_fn",
    }


def test_an_activation_goes_into_the_second_of_a_low_rank_pair() -> None:
    model = Model(lambda b, x: x + b.last(b.other(b.own(b.first(x)))))
    model.blocks[0].own = nn.ReLU()
    (found,) = activations(model)
    assert found.into == ("blocks.0.last",)


class _Doubled(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * torch.sigmoid(hidden)


class _Gated(nn.Module):
    def forward(self, hidden: Tensor, gate: Tensor) -> Tensor:
        return hidden * functional.silu(gate)


@pytest.mark.parametrize(("module", "is_module"), [(_Doubled(), True), (_Gated(), False)])
def test_a_module_of_ones_own_is_an_activation_if_it_is_given_one_tensor(
    module: nn.Module, is_module: bool
) -> None:
    def compute(b: Any, x: Tensor) -> Tensor:
        hidden = b.first(x)
        return b.last(b.own(hidden) if is_module else b.own(x, hidden))

    model = Model(compute)
    model.blocks[0].own = module
    (found,) = activations(model)
    assert found.is_module == is_module
    assert found.name == "blocks.0.own"
