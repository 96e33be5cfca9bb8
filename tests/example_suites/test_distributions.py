"""Distributions of projections' values: what is counted, and where it is read."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig

from distributions import (
    EDGES,
    HERE,
    block_projections,
    histogram,
    output_values,
    summary,
    tables,
)

NEW_TOKENS = 3


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=50,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        eos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def test_values_of_all_tokens_of_a_block_are_kept(model: torch.nn.Module) -> None:
    found = block_projections(model, 1)
    assert [each.kind for each in found] == ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    assert all(".layers.1." in each.name for each in found)
    prompt = torch.tensor([[4, 5, 6, 7]])
    values = output_values(model, found, prompt, NEW_TOKENS)
    # The last new token is not read any more.
    tokens = prompt.shape[1] + NEW_TOKENS - 1
    assert {each.kind: len(values[each.name]) // tokens for each in found} == {
        "q_proj": 16,
        "k_proj": 16,
        "v_proj": 16,
        "out_proj": 16,
        "fc1": 32,
        "fc2": 16,
    }


def test_values_are_those_that_the_modules_put_out(model: torch.nn.Module) -> None:
    (first, *_) = block_projections(model, 0)
    prompt = torch.tensor([[4, 5, 6, 7]])
    seen = []
    module = model.get_submodule(first.name)
    handle = module.register_forward_hook(lambda module, given, output: seen.append(output))
    values = output_values(model, [first], prompt, 1)
    handle.remove()
    assert torch.equal(values[first.name], seen[0].flatten())
    assert not module._forward_hooks


def test_a_block_that_is_not_there_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"no block 2: its projections are .*fc2"):
        block_projections(model, 2)


def test_a_summary_tells_the_range_and_where_the_values_lie() -> None:
    values = torch.tensor([0.0, -0.5, 1.5, -1.25, 2.5] + [0.0] * 995)
    values[5] = 90.0
    assert summary(values) == pytest.approx(
        {
            "least": -1.25,
            "largest": 90.0,
            "within ±1 %": 99.6,
            "NaN-vulnerable %": 0.2,
            "beyond 10 deviations %": 0.1,
        }
    )


def test_a_histogram_holds_every_value_once() -> None:
    values = torch.tensor([-100.0, -3.0, 0.0, 0.05, 0.3, 1.5, 100.0, 9.0])
    found = histogram(values)
    assert sum(found) == pytest.approx(100)
    assert len(found) == len(EDGES) + 1
    # Below -8, from -4 to -2, around zero, from 0.1 to 0.5, from 1 to 2, above 8.
    assert [found[at] for at in (0, 2, 6, 7, 9, 12)] == [12.5, 12.5, 25, 12.5, 12.5, 25]


@pytest.mark.skipif(not (HERE / "miniatures").is_dir(), reason="there are no miniatures")
def test_a_miniature_has_a_table_of_each_kind() -> None:
    text = tables("vicuna-7b-mini", 1, "squad", 0)
    for kind, critical in {"gate_proj": "no", "up_proj": "yes", "down_proj": "yes"}.items():
        assert f"| {kind}" in text
        rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith(f"| {kind} ")]
        # The first table says which are critical, the second has the histogram.
        assert rows[0][1].strip() == critical
        assert len(rows) == 2
