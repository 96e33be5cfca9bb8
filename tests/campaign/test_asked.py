"""What a call of ``generate`` asks, and when another one asks exactly that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ft2
from ft2.campaign import Run, RunSpec
from ft2.campaign.asked import Asked
from tests.tiny_models import tiny_model

PROMPT = torch.tensor([[1, 5, 9, 11]])


def asked_by(model: Any, prompt: torch.Tensor = PROMPT, **given: Any) -> Asked:
    run = Run(RunSpec(record=True))
    run.attach(model)
    given = {"attention_mask": torch.ones_like(prompt), **given}
    model.generate(prompt, max_new_tokens=2, do_sample=False, **given)
    run.detach()
    return run.asked[0]


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[1, 0, 1, 1]]),
        torch.tensor([[1, 1, 1, 0]]),
        torch.tensor([[True, False, True, True]]),
    ],
    ids=["hole", "right", "hole in a mask of bools"],
)
def test_a_prompt_with_padding_elsewhere_than_on_the_left_goes_alone(mask: torch.Tensor) -> None:
    assert asked_by(tiny_model(), attention_mask=mask).alone == "its padding is not on the left"


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_padding_on_the_left_is_no_part_of_a_prompt(dtype: torch.dtype) -> None:
    asked = asked_by(tiny_model(), attention_mask=torch.tensor([[0, 0, 1, 1]]).to(dtype))
    assert asked.alone is None
    assert [prompt.tokens for prompt in asked.prompts] == [(9, 11)]
    assert asked.paddings == [2]


@pytest.mark.parametrize(
    ("positions", "alone"),
    [([[0, 1, 2, 3]], None), ([[1, 2, 3, 4]], "it passes position_ids")],
)
def test_positions_that_do_not_count_tokens_go_alone(
    positions: list[list[int]], alone: str | None
) -> None:
    assert asked_by(tiny_model(), position_ids=torch.tensor(positions)).alone == alone


def train_a_layer(model: Any) -> None:
    model.model.layers[0].mlp.train()


def hook_a_layer(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: None)


def patch_a_layer(model: Any) -> None:
    model.model.layers[0].mlp.forward = model.model.layers[1].mlp.forward


@pytest.mark.parametrize(
    ("change", "alone"),
    [
        (train_a_layer, "the model is in training mode"),
        (hook_a_layer, "a hook is registered on model.layers.0.mlp"),
        (patch_a_layer, "the forward of model.layers.0.mlp is exchanged"),
    ],
)
def test_what_a_batch_would_not_see_is_named(change: Callable[[Any], None], alone: str) -> None:
    model = tiny_model()
    change(model)
    assert asked_by(model).alone == alone


def exchange_a_layer(model: Any) -> None:
    model.model.layers[0].mlp = copy.deepcopy(model.model.layers[0].mlp)


def leave_out_an_activation(model: Any) -> None:
    model.model.layers[0].mlp.act_fn = nn.Identity().eval()


def leave_out_another_activation(model: Any) -> None:
    """Another module of a kind that is in the model already, and has no weights."""
    model.model.layers[1].mlp.act_fn = nn.Identity().eval()


def write_a_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(1.0)


@pytest.mark.parametrize("change", [exchange_a_layer, leave_out_another_activation, write_a_buffer])
def test_a_changed_model_is_asked_something_else(change: Callable[[Any], None]) -> None:
    model = tiny_model()
    leave_out_an_activation(model)
    before = asked_by(model)
    assert before.is_current()
    assert before.is_as(asked_by(model))
    change(model)
    after = asked_by(model)
    assert after.alone is None
    assert not before.is_as(after)


def test_a_patched_class_is_asked_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    before = asked_by(model)
    kind: Any = type(model.model.layers[0].mlp)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda module, states: forward(module, states))
    assert not before.is_as(asked_by(model))


def patch_a_class(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    kind: Any = type(model.model.layers[0].mlp)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda module, states: forward(module, states))


def multiply_coarsely(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")


def attend_otherwise(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "eager")


def tell_a_layer(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(model.model.layers[0].mlp, "guard", False, raising=False)


def tell_a_layer_in_a_list(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(model.model.layers[0].mlp, "scales", [1.0, 2.0], raising=False)


def tell_a_layer_in_a_table(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    table = {"all": {"guards": [torch.zeros(2)]}}
    monkeypatch.setattr(model.model.layers[0].mlp, "table", table, raising=False)


def configure_otherwise(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(model.config, "guard", False, raising=False)


@pytest.mark.parametrize(
    "change",
    [
        patch_a_class,
        multiply_coarsely,
        attend_otherwise,
        tell_a_layer,
        tell_a_layer_in_a_list,
        tell_a_layer_in_a_table,
        configure_otherwise,
    ],
)
def test_what_a_test_changes_for_itself_is_not_what_a_batch_computes(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch, Any], None]
) -> None:
    model = tiny_model()
    with monkeypatch.context() as inside:
        change(inside, model)
        asked = asked_by(model)
        assert asked.is_current()
    assert asked.alone is None
    assert not asked.is_current()
    assert not asked.is_as(asked_by(model))


def test_a_batch_computes_what_is_asked_in_inference_mode_under_protection() -> None:
    model = tiny_model()
    with torch.inference_mode(), ft2.protect(model, "ft2"):
        asked = asked_by(model)
    assert asked.is_current()


@pytest.mark.parametrize(
    "given",
    [
        {"return_dict_in_generate": True, "output_hidden_states": True},
        {"cache_implementation": "static"},
    ],
    ids=["hidden states", "static cache"],
)
def test_what_transformers_notes_on_a_model_changes_nothing_of_it(given: dict[str, Any]) -> None:
    model = tiny_model()
    asked = asked_by(model)
    asked_by(model, **given)
    assert asked.is_current()
    assert asked.is_as(asked_by(model))


def test_token_ids_of_another_type_are_another_call() -> None:
    model = tiny_model()
    assert not asked_by(model).is_as(asked_by(model, PROMPT.to(torch.int32)))
