"""Later requests learn at addresses that stay; they learn what the first one does, and count it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ft2
from ft2 import Protection, native
from tests.protection.watch import generate, learned, prompts, watching
from tests.tiny_models import ARCHITECTURES, tiny_model

pytestmark = pytest.mark.skipif(
    not native.load().cpu.active, reason=f"plain torch only: {native.load().cpu.detail}"
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
UP = "model.layers.0.mlp.up_proj"


def _all_learned(protection: Protection, model: Any) -> Tensor:
    critical = [each for each in ft2.projections(model) if each.critical]
    starts = [next(start for start, _, chosen in each.columns if chosen) for each in critical]
    return torch.stack(
        [
            torch.stack(learned(protection, each.name, start))
            for each, start in zip(critical, starts, strict=True)
        ]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_request_learns_what_it_learns_alone(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture, dtype=dtype)
    alone, texts, counts = [], [], []
    for seed in range(3):
        with ft2.protect(model, scale=1.0) as protection:
            texts.append(generate(model, prompts(2, seed=seed)))
            alone.append(_all_learned(protection, model))
            counts += protection.counts
    with ft2.protect(model, scale=1.0) as protection:
        for seed in range(3):
            assert torch.equal(generate(model, prompts(2, seed=seed)), texts[seed])
            assert torch.equal(_all_learned(protection, model), alone[seed])
    assert protection.counts == counts
    assert sum(counts) > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_finite_number_is_corrected_counted_and_not_learned(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    strikes = {0: {(0, 2, 0): torch.inf, (0, 3, 1): -torch.inf, (1, 1, 2): torch.nan}}
    found = []
    for before in range(2):
        with ft2.protect(model) as protection:
            for _ in range(before):
                generate(model, prompts(2, seed=5))
            with watching(model, UP, 2, strikes) as watch:
                generate(model, prompts(2), max_new_tokens=2)
            found.append((watch.passed_on[0], *learned(protection, UP), protection.counts[-2:]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert found[1][-1] == [2, 1]
    assert found[1][0][0, 2, 0] == torch.finfo(dtype).max


def test_all_chunks_of_a_later_prefill_are_learned_from() -> None:
    model = tiny_model()
    ids = prompts(2)
    with ft2.protect(model) as protection:
        generate(model, ids, max_new_tokens=2)
        at_once = _all_learned(protection, model)
        for _ in range(2):
            generate(model, ids, max_new_tokens=2, prefill_chunk_size=2)
            torch.testing.assert_close(_all_learned(protection, model), at_once)


def test_a_model_that_changes_its_type_learns_in_the_new_one() -> None:
    model = tiny_model()
    ids = prompts(1)
    with ft2.protect(model) as protection:
        generate(model, ids)
        model.half()
        for _ in range(2):
            generate(model, ids, max_new_tokens=3)
            found = _all_learned(protection, model)
    with ft2.protect(model) as protection:
        generate(model, ids, max_new_tokens=3)
        assert torch.equal(found, _all_learned(protection, model))


def test_a_prefill_that_fails_leaves_nothing_to_the_next_request() -> None:
    model: Any = tiny_model()
    ids, others = prompts(1), prompts(1, seed=7)
    with ft2.protect(model, scale=1.0) as clean:
        expected = generate(model, others)
        bounds = _all_learned(clean, model)

    def fail(*args: Any) -> None:
        raise ValueError("no answer")

    with ft2.protect(model, scale=1.0) as protection:
        generate(model, others)
        hook = model.model.layers[1].register_forward_hook(fail)
        with pytest.raises(ValueError, match="no answer"):
            generate(model, ids)
        hook.remove()
        assert torch.equal(generate(model, others), expected)
        assert torch.equal(_all_learned(protection, model), bounds)
    assert protection.counts == [*clean.counts, 0, *clean.counts]


@torch.no_grad()
def test_requests_that_take_turns_learn_and_count_for_themselves() -> None:
    model: Any = tiny_model()
    one, other = prompts(1), prompts(1, seed=7)
    token = torch.tensor([[7]])
    runs = []
    for turns in ([one], [other], [one, other]):
        with ft2.protect(model, scale=1.0) as protection:
            # From the third on, at addresses.
            for ids in (one, one):
                cache = model(ids, use_cache=True)[1]
                model(token, past_key_values=cache)
            caches = [model(ids, use_cache=True)[1] for ids in turns]
            logits = []
            for _ in range(4):
                logits += [model(token, past_key_values=cache)[0] for cache in caches]
            runs.append((logits, protection.counts[2:]))
    (first, first_counts), (second, second_counts), (both, both_counts) = runs
    assert both_counts == first_counts + second_counts
    assert sum(both_counts) > 0
    for mixed, alone in zip((both[::2], both[1::2]), (first, second), strict=True):
        assert torch.equal(torch.stack(mixed), torch.stack(alone))
