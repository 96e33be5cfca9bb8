"""Bounds of experts and of other products inside a module: each request's and each expert's own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import ft2
from ft2 import Protection
from ft2.forward import Clock, Listener, Order, Vectors, attach
from ft2.layers import projections
from tests.forward.vectors import Recorded, raw_projections, recording
from tests.zoo.configs import small_model

_IDS = torch.tensor([[1, 17, 5, 42, 23, 9], [0, 0, 1, 30, 12, 7]])
_MASK = (torch.arange(6) >= torch.tensor([0, 2])[:, None]).long()
_GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
_IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]


def _generate(model: PreTrainedModel, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    options = {"do_sample": False, "max_new_tokens": 4, **options}
    said: Tensor = model.generate(ids, attention_mask=mask, **options)
    return said


def _learned(protection: Protection, weight: str, column: int = 0) -> tuple[Tensor, Tensor]:
    """Minimum and maximum, each (experts, requests)."""
    current: Any = protection._policy._current  # type: ignore[attr-defined]
    cells = current._cells[weight, column]
    shape = (-1, current.requests)
    return cells._low.view(shape).clone(), cells._high.view(shape).clone()


def _critical(model: PreTrainedModel) -> dict[str, list[int]]:
    """Parameters of critical products, and their critical columns."""
    return {
        str(each.weight): [
            column
            for start, stop, critical in each.columns
            if critical
            for column in range(start, stop)
        ]
        for each in raw_projections(model)
        if each.critical
    }


_MODELS = ["mixtral", "gpt_oss", "llama4_text", "dbrx", "jetmoe", "deepseek_v4"]


@pytest.mark.parametrize("model_type", _MODELS)
@torch.no_grad()
def test_every_critical_product_is_protected(model_type: str) -> None:
    model = small_model(model_type)
    with ft2.protect(model) as protection:
        _generate(model, _IDS, _MASK)
        for weight, columns in _critical(model).items():
            low, high = _learned(protection, weight, columns[0])
            assert (low <= high).any(), weight


def _expected(
    recorded: Recorded, weight: str, columns: list[int], experts: int
) -> tuple[Tensor, Tensor]:
    low, high = torch.full((experts, 2), torch.inf), torch.full((experts, 2), -torch.inf)
    for vectors in recorded[weight]:
        assert vectors.count == 12
        numbers = [0] * len(vectors.tokens)
        if vectors.experts is not None:
            numbers = vectors.experts.tolist()
        places = zip(vectors.tokens.tolist(), numbers, strict=True)
        for value, (token, expert) in zip(vectors.values, places, strict=True):
            row, at = divmod(token, 6)
            if _MASK[row, at]:
                seen = value[columns]
                low[expert, row] = torch.minimum(low[expert, row], seen.min())
                high[expert, row] = torch.maximum(high[expert, row], seen.max())
    return low, high


@pytest.mark.parametrize("implementation", _IMPLEMENTATIONS)
@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
@torch.no_grad()
def test_bounds_are_those_of_the_requests_own_tokens_that_were_routed_there(
    model_type: str, implementation: str
) -> None:
    model = small_model(model_type)
    model.set_experts_implementation(implementation)
    with recording(model) as recorded, ft2.protect(model) as protection:
        model(_IDS, attention_mask=_MASK)
        for weight, columns in _critical(model).items():
            low, high = _learned(protection, weight, columns[0])
            expected = _expected(recorded, weight, columns, len(low))
            torch.testing.assert_close((low, high), expected, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "jetmoe", "dbrx"])
@torch.no_grad()
def test_each_prompt_of_a_batch_has_the_text_and_the_bounds_that_it_has_alone(
    model_type: str,
) -> None:
    model = small_model(model_type)
    critical = _critical(model)
    with ft2.protect(model) as protection:
        together = _generate(model, _IDS, _MASK)
        bounds = {each: _learned(protection, each, critical[each][0]) for each in critical}
        for row in range(2):
            real = _MASK[row].bool()
            ids = _IDS[row : row + 1, real]
            alone = _generate(model, ids, torch.ones_like(ids))
            assert torch.equal(alone[0, -4:], together[row, -4:])
            for weight, columns in critical.items():
                for side, batch in zip(
                    _learned(protection, weight, columns[0]), bounds[weight], strict=True
                ):
                    torch.testing.assert_close(side[:, 0], batch[:, row], rtol=1e-4, atol=1e-5)
    # Prompts this short do not show all that random weights can put out.
    assert protection.counts[2:] == protection.counts[:2]


@torch.no_grad()
def test_an_expert_that_was_given_nothing_has_learned_nothing() -> None:
    model = small_model("llama4_text")
    weight = "model.layers.1.feed_forward.experts.down_proj"
    with recording(model) as recorded, ft2.protect(model) as protection:
        model(_IDS[1:, 2:])
        low, high = _learned(protection, weight)
        (vectors,) = recorded[weight]
        assert vectors.experts is not None
        routed = {int(e) for v, e in zip(vectors.values, vectors.experts, strict=True) if v.any()}
        assert 0 < len(routed) < 4
        assert {int(each) for each in (low <= high).nonzero()[:, 0]} == routed
        _generate(model, _IDS[1:, 2:], _MASK[1:, 2:])
    # Bounds of nothing but zero would silence whole vectors, of 32 columns, on later tokens.
    assert protection.counts[1] < 32


def test_beams_of_a_request_share_bounds() -> None:
    model = small_model("mixtral")
    with ft2.protect(model) as protection:
        _generate(model, _IDS, _MASK, num_beams=3)
        assert _learned(protection, _GATE_UP, 48)[0].shape == (4, 2)


def test_columns_that_alternate_share_the_bounds_of_their_layer() -> None:
    model = small_model("gpt_oss")
    with ft2.protect(model) as protection:
        _generate(model, _IDS, _MASK)
        cells = protection._policy._current._cells  # type: ignore[attr-defined]
    gates = [key for key in cells if key[0].endswith("gate_up_proj")]
    assert len(gates) == len({weight for weight, _ in gates})


@contextmanager
def _striking(
    model: PreTrainedModel, weight: str, step: int, place: tuple[int, int], value: float
) -> Generator[list[Tensor], None, None]:
    """Put `value` into the last column of one (row, expert) in a step, and see what comes of it."""
    passed_on: list[Tensor] = []
    listener = Listener()
    clock = Clock.listen(model, listener)

    def of(vectors: Vectors) -> Tensor:
        assert vectors.experts is not None
        return (vectors.tokens == place[0]) & (vectors.experts == place[1])

    def strike(vectors: Vectors) -> Tensor:
        if clock.forward.step == step:
            vectors.values[of(vectors), -1] = value
        return vectors.values

    def look(vectors: Vectors) -> Tensor:
        if clock.forward.step == step:
            passed_on.extend(vectors.values[of(vectors), -1].clone())
        return vectors.values

    def whole(projection: Any) -> Any:
        raise AssertionError(projection)

    found = [each for each in projections(model) if each.weight == weight]
    taps = attach(model, found, Order.INJECT, whole, lambda group: strike)
    taps += attach(model, found, Order.PROTECT, whole, lambda group: look)
    try:
        yield passed_on
    finally:
        for each in taps:
            each.remove()
        clock.dismiss(model, listener)


@pytest.mark.parametrize("implementation", _IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@torch.no_grad()
def test_a_fault_in_an_expert_is_clipped_to_its_own_bounds(
    value: float, implementation: str
) -> None:
    model = small_model("mixtral")
    model.set_experts_implementation(implementation)
    row = 1
    with recording(model) as recorded:
        _generate(model, _IDS, _MASK, max_new_tokens=2)
    prefill = [each for each in recorded[_GATE_UP] if each.count == 12]
    decode = [each for each in recorded[_GATE_UP] if each.count == 2]
    known = {int(e) for v in prefill for t, e in _places(v) if t // 6 == row and _MASK[row, t % 6]}
    chosen = {int(e) for v in decode for t, e in _places(v) if t == row}
    expert = min(known & chosen)
    with ft2.protect(model) as protection:
        with _striking(model, _GATE_UP, 1, (row, expert), value) as passed_on:
            _generate(model, _IDS, _MASK, max_new_tokens=2)
        low, high = (side[expert, row] for side in _learned(protection, _GATE_UP, 48))
    limit = 0.0
    if value < 0:
        limit = float(low - low.abs())
    elif value > 0:
        limit = float(high + high.abs())
    assert [float(each) for each in passed_on] == [limit]
    assert protection.counts == [0, 1]


def _places(vectors: Vectors) -> list[tuple[int, int]]:
    assert vectors.experts is not None
    return list(zip(vectors.tokens.tolist(), vectors.experts.tolist(), strict=True))


@torch.no_grad()
def test_an_expert_that_is_new_to_one_request_corrects_nan_and_records_for_it_alone() -> None:
    model = small_model("mixtral")
    experts: Any = model.get_submodule("model.layers.0.mlp.experts")
    hidden = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    weights = torch.full((2, 1), 0.5)

    def run(*chosen: int) -> None:
        experts(hidden, torch.tensor([[each] for each in chosen]), weights)

    with ft2.protect(model) as protection, ft2.request(model):
        ids = torch.tensor([[5], [6]])
        routers = [layer.mlp for layer in model.model.layers]
        for router in routers:
            router.gate.register_forward_hook(
                lambda module, args, output: (
                    output[0],
                    torch.full_like(output[1], 0.5)[:, :1],
                    torch.tensor(module.wanted)[:, None],
                )
            )

        def forward(first: int, second: int) -> None:
            for router in routers:
                router.gate.wanted = [first, second]
            model(ids, use_cache=False)

        forward(0, 1)
        forward(1, 1)
        low, high = _learned(protection, _GATE_UP, 48)
        assert (low <= high).tolist() == [[True, False], [True, True], [False] * 2, [False] * 2]
        before = low[1, 1].clone(), high[1, 1].clone()
        forward(1, 1)
        after = _learned(protection, _GATE_UP, 48)
        assert (after[0][1, 1], after[1][1, 1]) == before
        with _striking(model, _GATE_UP, 3, (0, 2), torch.nan) as passed_on:
            forward(2, 1)
        low, high = _learned(protection, _GATE_UP, 48)
        assert (low <= high)[2].tolist() == [True, False]
        assert [float(each) for each in passed_on] == [0.0]
        assert protection.counts[0] > 0
        assert protection.counts[1] == 0


@torch.no_grad()
def test_experts_that_first_run_while_steps_repeat_are_restricted_from_the_next_one_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = small_model("mixtral")
    blocks = [layer.mlp for layer in model.model.layers]
    plain, is_left_out = type(blocks[0]).forward, [False]

    def forward(module: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        # As layers are skipped, or left early.
        if is_left_out[0]:
            return torch.zeros_like(hidden)
        return plain(module, hidden, *args, **kwargs)

    monkeypatch.setattr(type(blocks[0]), "forward", forward)
    with ft2.protect(model) as protection, ft2.request(model):
        is_left_out[0] = True
        cache = model(_IDS[:1], use_cache=True).past_key_values
        for step in range(1, 9):
            is_left_out[0] = step < 4
            if step == 7:
                for block in blocks:
                    block.experts.gate_up_proj.mul_(1e6)
            model(torch.tensor([[7]]), past_key_values=cache)
            if step == 6:
                assert protection.counts == [0]
    assert protection.counts[0] > 0
