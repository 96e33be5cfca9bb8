"""A gate over a large model, as a team would run it: does it fit, and how long does it take?

A test file with a model of one of the shapes of ``shapes.py``, weights at random. Its answer is
right when each token is the fault-free one. Run it from the project's root, on a GPU if there is
one, else on the CPU:

    FT2_SHAPE=Llama2-7B pytest benchmarks/large_gate.py --ft2-faults=1000 --ft2-json=gate.json

The rate says nothing, with such weights: that the gate reaches its verdict does.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from models import build
from shapes import PROMPT, SHAPES
from transformers import GenerationConfig

_NEW_TOKENS = 60


@pytest.fixture(scope="module")
def ft2_model() -> Any:
    shape = SHAPES[os.environ.get("FT2_SHAPE", "Llama, 3M parameters")]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = build(shape, device)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    return model


def _answer(model: Any) -> list[int]:
    numbers = torch.Generator().manual_seed(1)
    prompt = torch.randint(5, 500, (1, PROMPT), generator=numbers).to(model.device)
    mask = torch.ones_like(prompt)
    output = model.generate(prompt, attention_mask=mask, max_new_tokens=_NEW_TOKENS)
    return list(output[0, PROMPT:].tolist())


@pytest.fixture(scope="module")
def answer(ft2_model: Any) -> list[int]:
    return _answer(ft2_model)


@pytest.mark.sdc_budget(100, due_budget=100)
def test_each_token_is_the_fault_free_one(ft2_model: Any, answer: list[int]) -> None:
    assert _answer(ft2_model) == answer
