"""Each decision about what is critical, in the smallest model that shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.layers.small import of_block

_Compute = Callable[[Any, Tensor], Tensor]

_ENDING: dict[str, _Compute] = {
    "silu": lambda b, x: b.last(functional.silu(b.first(x))),
    "gelu": lambda b, x: b.last(functional.gelu(b.first(x))),
    "gelu tanh": lambda b, x: b.last(functional.gelu(b.first(x), approximate="tanh")),
    "relu": lambda b, x: b.last(functional.relu(b.first(x))),
    "squared relu": lambda b, x: b.last(functional.relu(b.first(x)).square()),
    "sigmoid": lambda b, x: b.last(b.first(x).sigmoid()),
    "tanh": lambda b, x: b.last(b.first(x).tanh()),
    "softplus": lambda b, x: b.last(functional.softplus(b.first(x))),
    "exp": lambda b, x: b.last(b.first(x).exp()),
    "softmax": lambda b, x: b.last(b.first(x).softmax(-1)),
    "silu written out": lambda b, x: b.last((y := b.first(x)) * y.sigmoid()),
    "gelu written out": lambda b, x: b.last(
        0.5 * (y := b.first(x)) * (1 + torch.tanh(0.8 * (y + 0.04 * y**3)))
    ),
    "an activation after a norm": lambda b, x: b.last(b.norm(b.first(x)).sigmoid()),
    "an activation after a constant factor": lambda b, x: b.last((b.first(x) * 3).tanh()),
    "only a choice": lambda b, x: b.last(x * b.first(x).argmax(-1, keepdim=True)),
    "only a comparison": lambda b, x: b.last(torch.where(b.first(x) > 0, x, 0.0)),
}


@pytest.mark.parametrize("way", _ENDING)
def test_a_path_ends_at(way: str) -> None:
    found = of_block(_ENDING[way])
    assert not found["first"].critical, found["first"].reason
    assert found["last"].critical


_PASSING: dict[str, _Compute] = {
    "nothing": lambda b, x: b.last(b.first(x)),
    "a constant factor": lambda b, x: b.last(b.first(x) * 0.3),
    "division by a constant": lambda b, x: b.last(b.first(x) / 4),
    "a residual addition": lambda b, x: b.last(x + b.first(x)),
    "a residual multiplier": lambda b, x: b.last(x + 0.2 * b.first(x)),
    "a layer norm": lambda b, x: b.last(b.norm(b.first(x))),
    "a root-mean-square norm": lambda b, x: b.last(functional.rms_norm(b.first(x), (8,))),
    "such a norm written out": lambda b, x: b.last(
        (y := b.first(x)) * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
    ),
    "a norm by division": lambda b, x: b.last((y := b.first(x)) / y.norm(dim=-1, keepdim=True)),
    "a clamp": lambda b, x: b.last(b.first(x).clamp(-5, 5)),
    "a rotation": lambda b, x: b.last(
        torch.cat([-(y := b.first(x))[..., 4:], y[..., :4]], -1) * torch.ones(8).sin() + y
    ),
    "a product with an activated gate": lambda b, x: b.last(
        b.first(x) * functional.silu(b.other(x))
    ),
    "a routing weight": lambda b, x: b.last(b.first(x) * b.other(x).softmax(-1)[..., :1]),
    "a convolution along the tokens": lambda b, x: b.last(
        b.along(b.first(x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
    ),
    "reshapes and a transpose": lambda b, x: b.last(
        b.first(x).view(*x.shape[:2], 2, 4).transpose(1, 2).transpose(1, 2).flatten(2)
    ),
    "one of two paths": lambda b, x: b.last((y := b.first(x)).tanh() + y),
    "an expert's scatter": lambda b, x: b.last(
        torch.zeros(x.shape[0] * x.shape[1], 8)
        .index_add_(0, torch.arange(x.shape[0] * x.shape[1]), b.first(x).flatten(0, 1))
        .view(x.shape)
    ),
    "the way out of the model": lambda b, x: x + b.first(x),
}


@pytest.mark.parametrize("way", _PASSING)
def test_a_path_goes_on_through(way: str) -> None:
    found = of_block(_PASSING[way])
    assert found["first"].critical, found["first"].reason
    assert found["first"].columns == ((0, 8, True),)


def test_a_gate_is_not_critical_and_what_it_gates_is() -> None:
    found = of_block(lambda b, x: b.last(functional.silu(b.first(x)) * b.other(x)))
    assert (found["first"].critical, found["other"].critical) == (False, True)
    assert "through silu" in found["first"].reason
    assert "through a product with silu" in found["other"].reason


@pytest.mark.parametrize(("gate", "value"), [(0, 1), (1, 0)])
def test_the_halves_of_a_fused_gate_are_told_apart_in_either_order(gate: int, value: int) -> None:
    def compute(b: Any, x: Tensor) -> Tensor:
        halves = b.fused(x)[..., :16].chunk(2, -1)
        return b.last(functional.silu(halves[gate]) * halves[value]) + b.fused(x)[..., 16:].tanh()

    merged = [(0, 8, False), (8, 16, True), (16, 24, False)]
    if gate == 1:
        merged = [(0, 8, True), (8, 24, False)]
    assert list(of_block(compute)["fused"].columns) == merged


def test_interleaved_columns_of_a_fused_gate_are_told_apart() -> None:
    def compute(b: Any, x: Tensor) -> Tensor:
        both = b.fused(x)[..., :16]
        return b.last(functional.silu(both[..., ::2]) * both[..., 1::2])

    columns = of_block(compute)["fused"].columns
    assert columns[:15] == tuple((i, i + 1, i % 2 == 1) for i in range(15))


def _attention(fused: Tensor, by_head: bool, fuse: bool) -> Tensor:
    rows, tokens = fused.shape[:2]
    if by_head:
        q, k, v = fused.view(rows, tokens, 2, 3, 4).unbind(3)
    else:
        q, k, v = fused.view(rows, tokens, 3, 2, 4).unbind(2)
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    if fuse:
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        out = (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("fuse", [True, False])
def test_query_and_key_go_into_scaled_scores_and_the_value_passes(fuse: bool) -> None:
    found = of_block(lambda b, x: b.last(_attention(b.fused(x), False, fuse)))
    assert found["fused"].columns == ((0, 16, False), (16, 24, True))
    assert "attention scores" in found["fused"].reason or fuse


@pytest.mark.parametrize("fuse", [True, False])
def test_the_values_of_a_projection_interleaved_by_head_are_found(fuse: bool) -> None:
    found = of_block(lambda b, x: b.last(_attention(b.fused(x), True, fuse)))
    assert found["fused"].columns == (
        (0, 8, False),
        (8, 12, True),
        (12, 20, False),
        (20, 24, True),
    )


def test_several_linears_in_a_row_are_all_critical() -> None:
    found = of_block(lambda b, x: b.last(b.other(b.first(x))))
    assert all(each.critical for each in found.values())
    assert found["first"].reason.startswith("reaches other")


def test_attention_and_mlp_side_by_side_are_each_followed_to_the_output() -> None:
    found = of_block(
        lambda b, x: x + b.last(_attention(b.fused(x), False, True)) + b.other(b.first(x).relu())
    )
    assert {kind: each.critical for kind, each in found.items()} == {
        "fused": True,
        "last": True,
        "first": False,
        "other": True,
    }


def test_a_linear_that_leads_nowhere_is_protected_and_says_so() -> None:
    found = of_block(lambda b, x: b.last(x) + 0 * x.new_tensor(b.first(x).shape[0]))
    assert found["first"].critical
    assert "could not be followed" in found["first"].reason
