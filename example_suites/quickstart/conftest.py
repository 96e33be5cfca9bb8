"""Fixtures of the quickstart suite: the two models under test and their tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

MODELS = Path(__file__).resolve().parent / "models"

# The matrices are so small that a second thread would mostly be waited for.
torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["llama", "opt"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Return the model under test; each test runs once with either model."""
    return AutoModelForCausalLM.from_pretrained(MODELS / request.param, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Return the tokenizer saved beside the model under test."""
    return AutoTokenizer.from_pretrained(model.name_or_path)
