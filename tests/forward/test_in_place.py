"""Layers are found whose inputs or outputs a model changes in place, without its numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ft2
from ft2.forward.in_place import changed_in_place
from tests.zoo.configs import small_model


def _layers(model: nn.Module) -> list[str]:
    return [each.name for each in ft2.projections(model) if each.weight is None]


def _seen_to_change(model: Any, layers: list[str]) -> set[str]:
    """What a forward with numbers writes to the inputs or outputs of."""
    kept: list[tuple[str, Tensor, int]] = []
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: kept.extend(
                [(name, given[0], given[0]._version), (name, output, output._version)]
            )
        )
        for name in layers
    ]
    with torch.no_grad():
        model(input_ids=torch.ones((2, 3), dtype=torch.int64))
    for handle in handles:
        handle.remove()
    return {name for name, tensor, version in kept if tensor._version != version}


# Routed experts, a mask made anew, shared layers, and none of these.
@pytest.mark.parametrize(
    "architecture",
    ["falcon", "llama", "mixtral", "qwen3_next", "openai-gpt", "jamba", "deepseek_v3", "opt"],
)
def test_what_a_forward_with_numbers_changes_is_found_without_them(architecture: str) -> None:
    model = small_model(architecture)
    layers = _layers(model)
    assert changed_in_place(model, layers) == _seen_to_change(model, layers)


def test_falcon_adds_to_the_outputs_of_its_layers() -> None:
    model = small_model("falcon")
    changed = changed_in_place(model, _layers(model))
    assert changed
    assert all(name.endswith(("dense_4h_to_h", "dense")) for name in changed)


class _Asking(nn.Module):
    """Asks about its tokens before it computes, and adds to the output of its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        if not bool((input_ids >= 0).all()) or 7 in input_ids:
            raise ValueError("no text")
        hidden = self.embedding(input_ids)
        return hidden + self.second(self.between(self.first(hidden).add_(1)))

    def between(self, hidden: Tensor) -> Tensor:
        return hidden


def test_a_model_may_ask_about_its_tokens() -> None:
    assert changed_in_place(_Asking(), ["first", "second"]) == {"first"}
    assert changed_in_place(_Asking(), ["second"]) == frozenset()


_GUARDS: dict[str, Callable[[Tensor], Any]] = {
    "any": lambda hidden: bool((hidden.abs() > 1).any()),
    "not all": lambda hidden: not torch.isfinite(hidden).all(),
    "a number": lambda hidden: hidden.sum().item() > 1,
    "a comparison": lambda hidden: hidden.sum() > 1,
    "a list": lambda hidden: 3 in hidden.argmax(-1).flatten().tolist(),
    "where": lambda hidden: len((hidden > 1).nonzero()) > 1,
    "how many": lambda hidden: hidden[hidden > 1].numel() > 2,
    "selected": lambda hidden: len(hidden.masked_select(hidden > 1)) > 2,
    "counted": lambda hidden: len(torch.bincount(hidden.argmax(-1).flatten())) > 2,
    "repeated": lambda hidden: len(torch.repeat_interleave(hidden.argmax(-1).flatten())) > 2,
    "equal": lambda hidden: not torch.equal(hidden, hidden + 0),
}


@pytest.mark.parametrize("guard", _GUARDS)
def test_where_numbers_decide_what_is_changed_all_layers_may_be(guard: str) -> None:
    class Guarded(_Asking):
        def between(self, hidden: Tensor) -> Tensor:
            return hidden.clamp_(-1, 1) if _GUARDS[guard](hidden) else hidden

    assert changed_in_place(Guarded(), ["first", "second"]) == {"first", "second"}


def test_of_a_model_that_does_not_run_without_numbers_all_layers_are_taken_to_change() -> None:
    class Failing(_Asking):
        def forward(self, input_ids: Tensor) -> Tensor:
            raise ValueError("none today")

    assert changed_in_place(Failing(), ["first", "second"]) == {"first", "second"}
