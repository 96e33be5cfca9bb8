"""The native operations and plain torch protect a model alike, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import ft2
from ft2 import native
from ft2.protection import detection, kernels, resident
from tests.protection.watch import generate, prompts
from tests.tiny_models import ARCHITECTURES, tiny_model

pytestmark = pytest.mark.skipif(
    not native.load().cpu.active, reason=f"plain torch only: {native.load().cpu.detail}"
)

_DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@contextmanager
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "_native_for", lambda device: None)
        yield


def _protected(model: Any, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
    with ft2.protect(model, scale=1.0) as protection:
        out: Any = generate(
            model,
            ids,
            mask,
            max_new_tokens=6,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
    return torch.stack(out.scores), out.sequences, protection.counts


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_paths_compute_the_same_bits(
    architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture, dtype)
    ids = prompts(2, seed=1)
    scores, sequences, counts = _protected(model, ids)
    with _plain_torch(monkeypatch):
        plain_scores, plain_sequences, plain_counts = _protected(model, ids)
    assert sum(counts) > 0
    assert counts == plain_counts
    assert torch.equal(sequences, plain_sequences)
    assert torch.equal(scores, plain_scores)


@pytest.mark.parametrize("beams", [1, 2])
def test_both_paths_agree_on_padded_prompts_and_beams(
    beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    ids = prompts(2, seed=2)
    mask = torch.ones_like(ids)
    ids[0, :2], mask[0, :2] = 0, 0
    scores, sequences, counts = _protected(model, ids, mask, num_beams=beams)
    with _plain_torch(monkeypatch):
        plain_scores, plain_sequences, plain_counts = _protected(model, ids, mask, num_beams=beams)
    assert counts == plain_counts
    assert torch.equal(sequences, plain_sequences)
    assert torch.equal(scores, plain_scores)


def test_a_torch_that_lets_no_c_read_its_tensors_runs_the_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama", torch.float16)
    ids = prompts(2, seed=1)
    scores, sequences, counts = _protected(model, ids)
    found: list[None] = []
    monkeypatch.setattr(detection, "exchange", lambda: found.append(None))
    monkeypatch.setattr(resident, "direct_restriction", lambda device: found.append(None))
    slow_scores, slow_sequences, slow_counts = _protected(model, ids)
    assert len(found) == 1
    assert sum(counts) > 0
    assert counts == slow_counts
    assert torch.equal(sequences, slow_sequences)
    assert torch.equal(scores, slow_scores)
    with ft2.protect(model, "ft2-recompute", detect="checksums+bounds") as recomputing:
        assert torch.equal(generate(model, ids), generate(model, ids))
        assert recomputing.counts == [0] * 4
    assert len(found) > 1


def test_layers_that_record_gradients_stay_on_plain_torch() -> None:
    model = tiny_model("llama")
    ids = prompts(1)
    loss = model(ids, labels=ids).loss
    loss.backward()
    expected = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    with ft2.protect(model):
        model(ids, labels=ids).loss.backward()
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad, expected[name])


def test_a_layer_in_double_precision_stays_on_plain_torch() -> None:
    model = tiny_model("llama", torch.float64)
    assert kernels._native(torch.zeros(1, dtype=torch.float64)) is None
    ids = prompts(1)
    expected = generate(model, ids, max_new_tokens=4)
    with ft2.protect(model, scale=4.0) as protection:
        assert torch.equal(generate(model, ids, max_new_tokens=4), expected)
    assert protection.left_first_token
