"""Faults in products with raw parameters: they land in their token's and their expert's vector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import ft2
from ft2 import Fault
from tests.forward.vectors import recording
from tests.zoo.configs import small_model

_IDS = torch.tensor([[1, 17, 5, 42, 23, 9], [0, 0, 1, 30, 12, 7]])
_MASK = (torch.arange(6) >= torch.tensor([0, 2])[:, None]).long()
_MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 2},
    "chunked prefill": {"prefill_chunk_size": 3},
    "static cache": {"cache_implementation": "static"},
    "sampling": {"do_sample": True},
}


def _generate(model: PreTrainedModel, mode: str) -> None:
    options = {"do_sample": False, "max_new_tokens": 3, **_MODES[mode]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.generate(_IDS, attention_mask=_MASK, **options)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
@torch.no_grad()
def test_a_fault_strikes_its_tokens_vector_of_its_expert(
    name: str, implementation: str, mode: str
) -> None:
    model = small_model("mixtral")
    model.set_experts_implementation(implementation)
    weight = f"model.layers.0.mlp.experts.{name}"
    with recording(model) as recorded:
        _generate(model, mode)
    rows = 4 if mode == "beams" else 2
    # The first step's forwards see the prompt, in chunks or at once.
    sizes = [3, 3] if mode == "chunked prefill" else [6]
    row, position = rows - 1, 4
    first = position // sizes[0] * sizes[0]
    place = row * sizes[0] + position - first
    seen = 0
    runs = []
    for vectors in recorded[weight]:
        runs.append(vectors)
        seen += len(vectors.tokens)
        if seen == rows * 6 * 2:
            break
    if len(sizes) > 1:
        half = 0
        for index, vectors in enumerate(runs):
            half += len(vectors.tokens)
            if half == rows * 3 * 2:
                runs = runs[index + 1 :]
                break
    expected = {
        int(expert): value
        for vectors in runs
        for value, token, expert in zip(
            vectors.values,
            vectors.tokens,
            vectors.experts if vectors.experts is not None else [],
            strict=True,
        )
        if token == place
    }
    assert len(expected) == 2
    for expert, value in expected.items():
        fault = Fault(0, 0, f"{weight}.{expert}", row, position, 5, (30,))
        with ft2.inject(model, fault) as injection:
            _generate(model, mode)
        assert injection.landed
        assert injection.before == value[5].item()
    idle = min({0, 1, 2, 3} - expected.keys())
    fault = Fault(0, 0, f"{weight}.{idle}", row, position, 5, (30,))
    with ft2.inject(model, fault) as injection:
        _generate(model, mode)
    assert not injection.fired


@pytest.mark.parametrize("model_type", ["mamba", "jetmoe", "llama4_text", "dbrx", "gpt_oss"])
@torch.no_grad()
def test_a_fault_changes_its_own_row_only_from_its_position_on(model_type: str) -> None:
    model = small_model(model_type)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    plain = model(ids).logits
    with recording(model) as recorded:
        model(ids)
    assert recorded
    for weight, runs in recorded.items():
        vectors = next(each for each in runs if (each.tokens == 6).any())
        at = int((vectors.tokens == 6).nonzero()[0, 0])
        name = weight.removesuffix(".weight")
        if vectors.experts is not None:
            name = f"{name}.{int(vectors.experts[at])}"
        with ft2.inject(model, Fault(0, 0, name, 1, 2, 0, (24,))) as injection:
            faulty = model(ids).logits
        assert injection.before == vectors.values[at, 0].item()
        # Experts that get more or fewer tokens round otherwise.
        torch.testing.assert_close(faulty[0], plain[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(faulty[1, :2], plain[1, :2], rtol=1e-4, atol=1e-4)
