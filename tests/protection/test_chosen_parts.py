"""Protecting all kinds of projections but one, or only one, whatever the rule says of them."""

from __future__ import annotations

from ft2.layers.parts import parts_of
from ft2.protection.policies.chosen_parts import ChosenPartsPolicy
from ft2.protection.settings import PolicySettings
from tests.tiny_models import tiny_model


def test_each_kind_of_projection_is_named_once_in_forward_order() -> None:
    labels = [part.label for part in parts_of(tiny_model("llama"))]
    assert labels == [
        *(f"self_attn.{each}_proj" for each in "qkvo"),
        *(f"mlp.{each}_proj" for each in ("gate", "up", "down")),
    ]


def test_the_critical_and_the_other_columns_of_a_fused_projection_are_two_parts() -> None:
    parts = [part for part in parts_of(tiny_model("gpt2")) if "c_attn" in part.label]
    assert {(part.label, part.critical) for part in parts} == {
        ("attn.c_attn, other columns", False),
        ("attn.c_attn, critical columns", True),
    }


def test_all_but_one_kind_are_protected_in_every_block() -> None:
    model = tiny_model("llama")
    left_out = next(part for part in parts_of(model) if part.label == "mlp.up_proj")
    layers = ChosenPartsPolicy(left_out.__ne__, PolicySettings()).find(model)
    everything = [name for name, _ in model.named_modules() if name.endswith("_proj")]
    assert sorted(layer.name for layer in layers) == sorted(
        name for name in everything if "up_proj" not in name
    )


def test_chosen_columns_can_be_those_of_a_fused_projection_that_the_rule_leaves_alone() -> None:
    model = tiny_model("gpt2")
    chosen = next(part for part in parts_of(model) if part.label == "attn.c_attn, other columns")
    layers = ChosenPartsPolicy(chosen.__eq__, PolicySettings()).find(model)
    width = model.config.hidden_size
    assert {layer.columns for layer in layers} == {
        ((0, 2 * width, True), (2 * width, 3 * width, False))
    }
