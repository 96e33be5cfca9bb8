"""The fast way of clipping keeps its promises when things do not go as planned."""

from __future__ import annotations

import gc
import weakref
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

import ft2
from ft2 import native
from tests.protection.watch import generate, prompts
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.skipif(
    not native.load().cpu.active, reason=f"plain torch only: {native.load().cpu.detail}"
)


def test_an_interrupted_request_leaves_nothing_to_the_next() -> None:
    model: Any = tiny_model("llama")
    ids, others = prompts(1), prompts(1, seed=7)
    with ft2.protect(model, scale=1.0) as clean:
        expected = generate(model, others)
    forwards = []

    def interrupt(*args: Any) -> None:
        forwards.append(1)
        if len(forwards) == 4:
            raise KeyboardInterrupt

    with ft2.protect(model, scale=1.0) as protection:
        hook = model.model.layers[1].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate(model, ids)
        hook.remove()
        assert torch.equal(generate(model, others), expected)
    assert protection.counts[1:] == clean.counts


def test_a_helper_that_is_compiled_by_itself_may_use_what_a_layer_puts_out() -> None:
    torch._dynamo.reset()
    model: Any = tiny_model("llama")
    ids = prompts(1)
    expected = generate(model, ids)
    with ft2.protect(model, scale=1.0) as eager:
        protected = generate(model, ids)

    @torch.compile(backend="eager", fullgraph=True)
    def gated(gate: Tensor, up: Tensor) -> Tensor:
        return functional.silu(gate) * up

    def forward(self: Any, hidden: Tensor) -> Tensor:
        return self.down_proj(gated(self.gate_proj(hidden), self.up_proj(hidden)))

    for layer in model.model.layers:
        layer.mlp.forward = MethodType(forward, layer.mlp)
    assert torch.equal(generate(model, ids), expected)
    with ft2.protect(model, scale=1.0) as protection:
        assert torch.equal(generate(model, ids), protected)
    assert protection.counts == eager.counts
    torch._dynamo.reset()


def test_a_layer_exchanged_between_two_protections_is_protected() -> None:
    model: Any = tiny_model("llama")
    ids = prompts(1)
    with ft2.protect(model):
        generate(model, ids)
    block = model.model.layers[0].mlp
    old = weakref.ref(block.down_proj)
    block.down_proj = nn.Linear(
        block.down_proj.in_features, block.down_proj.out_features, bias=False
    ).eval()
    with ft2.protect(model, scale=1.0) as protection:
        generate(model, ids)
    assert sum(protection.counts) > 0
    gc.collect()
    assert old() is None


def test_what_a_users_hook_returns_stays_the_users() -> None:
    model: Any = tiny_model("llama")
    layer = model.model.layers[0].mlp.up_proj
    mine = torch.full((1, 1, layer.out_features), 50.0)
    layer.register_forward_hook(lambda module, args, output: mine if output.shape[1] == 1 else None)
    with ft2.protect(model, scale=1.0) as protection:
        generate(model, prompts(1))
    assert sum(protection.counts) > 0
    assert torch.equal(mine, torch.full_like(mine, 50.0))


def test_a_protected_model_is_freed_with_whoever_hears_of_its_corrections() -> None:
    model = tiny_model("llama")
    heard: list[Any] = []
    protection = ft2.protect(model, on_detection=heard.append)
    generate(model, prompts(1))
    alive = weakref.ref(model)
    del model, protection
    gc.collect()
    assert alive() is None


@torch.no_grad()
def test_what_is_traced_while_protected_holds_no_address() -> None:
    model: Any = tiny_model("llama")
    with ft2.protect(model, scale=1.0) as protection, ft2.request(model):
        one, other = (model(prompts(1), use_cache=True)[1] for _ in range(2))
        token = torch.tensor([[7]])
        expected = model(token, past_key_values=one, use_cache=True)[0]
        traced = make_fx(lambda token: model(token, past_key_values=other, use_cache=True)[0])(
            token
        )
        assert sum(protection.counts) > 0
    called = {str(node.target) for node in traced.graph.nodes}
    assert not any("restrict_at" in name for name in called)
    torch.testing.assert_close(traced(token), expected)


@torch.no_grad()
def test_what_is_traced_within_a_protected_forward_is_restricted() -> None:
    model: Any = tiny_model("llama")
    with ft2.protect(model, scale=1.0) as protection:
        expected = generate(model, prompts(1))
    for layer in model.model.layers:

        def traced(hidden: Tensor, forward: Any = layer.mlp.forward) -> Tensor:
            if hidden.shape[1] > 1:
                return forward(hidden)
            return make_fx(lambda hidden: forward(hidden))(torch.zeros_like(hidden))(hidden)

        layer.mlp.forward = traced
    with ft2.protect(model, scale=1.0) as again:
        assert torch.equal(generate(model, prompts(1)), expected)
    assert sum(protection.counts) > 0
    assert again.counts == protection.counts
