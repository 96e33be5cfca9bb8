"""Models of a shape, with weights at random."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

__all__ = ["build", "twin"]


def build(shape: dict[str, Any], device: str) -> Any:
    """Return a model, in fp32 on a CPU and in fp16 elsewhere."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=dtype).eval()


def twin(model: Any) -> Any:
    """Return another module object over the same weights."""
    shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
