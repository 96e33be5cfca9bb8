"""What tells one model from another, whatever its size."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ft2.layers.identity import identify
from ft2.protection import protect
from tests.tiny_models import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_the_same_model_built_twice_is_one_model(model_type: str) -> None:
    assert identify(tiny_model(model_type)) == identify(tiny_model(model_type))


def last_weight_differs() -> nn.Module:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[-1, -1] += 1
    return model


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "other weights": lambda: tiny_model(seed=1),
    "one other weight": last_weight_differs,
    "another shape": lambda: tiny_model(intermediate_size=32),
    "another architecture": lambda: tiny_model("mistral"),
    "another configuration of the same weights": lambda: tiny_model(rms_norm_eps=1e-3),
}


@pytest.mark.parametrize("other", list(OTHERS))
def test_other_models_have_other_fingerprints(other: str) -> None:
    assert identify(OTHERS[other]()).fingerprint != identify(tiny_model()).fingerprint


def test_what_tests_and_tokenizers_set_makes_no_other_model() -> None:
    model: Any = tiny_model()
    before = identify(model)
    model.config.pad_token_id = 7
    model.config.use_cache = False
    model.config._name_or_path = "/elsewhere"
    model.train()
    with protect(model):
        assert identify(model) == before


def test_device_and_dtype_are_those_of_the_parameters() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    assert identify(model).dtype == "bfloat16"
    assert identify(model).device == platform.machine()
    model.get_output_embeddings().float()
    assert identify(model).dtype == "bfloat16 + float32"
    with torch.device("meta"):
        assert identify(nn.Linear(2, 2)).device == "unknown"


class Counting(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the most elements that any operation makes which lie in new memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.most = 0
        self._known = {each.untyped_storage().data_ptr() for each in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if result.untyped_storage().data_ptr() not in self._known:
            self.most = max(self.most, result.numel())
        return result


def test_few_weights_are_read_however_they_lie_in_memory() -> None:
    model = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 100))
    model[1].weight = nn.Parameter(torch.zeros(300, 200).t())
    model.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    model.register_parameter("nothing", nn.Parameter(torch.empty(0, 3)))
    with Counting(model) as counting:
        identify(model)
    assert 0 < counting.most <= 4 * 5
