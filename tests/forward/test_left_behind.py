"""What a forward leaves in a model's modules is noticed, and a model that leaves nothing is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ft2.forward.left_behind import LeftBehind
from tests.tiny_models import ARCHITECTURES, tiny_model


class _Leaving(nn.Module):
    def __init__(self, leave: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.heard: list[Tensor] = []
        self.count = 0
        self.kept = torch.zeros(2)
        self._leave = leave

    def forward(self, hidden: Tensor) -> Tensor:
        output = self.linear(hidden)
        self._leave(self, output)
        return output


def _set(module: Any, output: Tensor) -> None:
    module.last = output


@pytest.mark.parametrize(
    ("leave", "attribute"),
    [
        (_set, "last"),
        (lambda module, output: module.heard.append(output), "heard"),
        (lambda module, output: setattr(module, "count", module.count + 1), "count"),
        (lambda module, output: module.kept.add_(1), "kept"),
        (lambda module, output: None, None),
    ],
)
@torch.no_grad()
def test_what_a_forward_leaves_is_named(
    leave: Callable[[Any, Tensor], None], attribute: str | None
) -> None:
    model = nn.Sequential(_Leaving(leave))
    model(torch.ones(1, 2))
    before = LeftBehind(model)
    model(torch.ones(1, 2))
    assert before.changed(model) == (attribute and f"0.{attribute}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_says_that_it_has_a_length_and_has_none_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    before = LeftBehind(quantised)
    quantised(torch.ones(1, 2))
    assert before.changed(quantised) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_of_transformers_leave_nothing(architecture: str) -> None:
    model = tiny_model(architecture)
    before = LeftBehind(model)
    ids = torch.tensor([[1, 5, 9, 11]])
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert before.changed(model) is None
