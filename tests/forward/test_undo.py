"""What a forward changed in its cache is undone exactly, and rows are adopted one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    StaticCache,
)

from ft2.forward import CacheRecord, Kept, LengthRecord, UndoError, adopted, copied
from tests.tiny_models import tiny_model
from tests.zoo.configs import small_model

_WINDOW = 6


def _sliding() -> Any:
    return tiny_model("mistral", sliding_window=_WINDOW)


def _dynamic(model: Any) -> Cache:
    return DynamicCache(config=model.config)


def _static(model: Any) -> Cache:
    return StaticCache(config=model.config, max_cache_len=24)


_CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Cache]]] = {
    "dynamic": (tiny_model, _dynamic),
    "dynamic, layers made late": (tiny_model, lambda model: DynamicCache()),
    "static": (tiny_model, _static),
    "sliding": (_sliding, _dynamic),
    "static sliding": (_sliding, _static),
    "recurrent": (lambda: small_model("mamba"), _dynamic),
    "recurrent and attention": (lambda: small_model("falcon_h1"), _dynamic),
    "recurrent and static": (lambda: small_model("falcon_h1"), _static),
    "convolutions": (lambda: small_model("lfm2"), _dynamic),
    "gated delta": (lambda: small_model("qwen3_next"), _dynamic),
}

_PLAIN = ("dynamic", "dynamic, layers made late", "static")


def _forward(model: Any, ids: Tensor, cache: Cache) -> Tensor:
    logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
    return logits.clone()


def _held(cache: Any) -> list[Tensor]:
    """Everything that a cache's layers hold, copied."""
    found = []
    for layer in cache.layers:
        for _, value in sorted(vars(layer).items()):
            values = list(value.values()) if isinstance(value, dict) else [value]
            found += [each.clone() for each in values if isinstance(each, Tensor)]
    return found


def _ids(rows: int, tokens: int, seed: int) -> Tensor:
    return torch.randint(4, 56, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", _CASES)
@torch.no_grad()
def test_a_forward_that_was_undone_computes_the_same_again_at_every_step(case: str) -> None:
    make, cache_of = _CASES[case]
    model = make()
    plain, undone = cache_of(model), cache_of(model)
    # The prompt, steps of one token until any window has moved on, several tokens, one more.
    for step, tokens in enumerate([5, 1, 1, 1, 1, 3, 1]):
        if case in ("recurrent and attention", "recurrent and static", "gated delta", "recurrent"):
            tokens = tokens if step == 0 else 1
        ids = _ids(2, tokens, step)
        expected = _forward(model, ids, plain)
        record = CacheRecord([undone], tokens)
        # Other tokens: whatever they leave behind must not be seen.
        _forward(model, _ids(2, tokens, step + 100), undone)
        record.undo()
        assert torch.equal(_forward(model, ids, undone), expected)
        for one, other in zip(_held(plain), _held(undone), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("case", _PLAIN)
@torch.no_grad()
def test_lengths_alone_undo_what_is_added_to_plain_layers(case: str) -> None:
    make, cache_of = _CASES[case]
    model = make()
    plain, undone = cache_of(model), cache_of(model)
    assert LengthRecord.of(_static(model)) is None
    for cache in (plain, undone):
        _forward(model, _ids(2, 5, 0), cache)
    for step, tokens in enumerate([1, 1, 3, 1]):
        ids = _ids(2, tokens, step)
        expected = _forward(model, ids, plain)
        record = LengthRecord.of(undone)
        assert record is not None
        for wrong in (100, 200):
            _forward(model, _ids(2, tokens, step + wrong), undone)
            record.undo()
        assert torch.equal(_forward(model, ids, undone), expected)
        for one, other in zip(_held(plain), _held(undone), strict=True):
            assert torch.equal(one, other)


@torch.no_grad()
def test_layers_that_a_forward_skips_or_makes_are_put_back_too() -> None:
    model = tiny_model(num_hidden_layers=4)
    for cache in (DynamicCache(), _static(model)):
        _forward(model, _ids(2, 5, 0), cache)
        record = LengthRecord.of(cache)
        assert record is not None
        model.config.num_hidden_layers = 2
        _forward(model, _ids(2, 1, 1), cache)
        model.config.num_hidden_layers = 4
        record.undo()
        _forward(model, _ids(2, 1, 2), cache)
        expected = _static(model) if isinstance(cache, StaticCache) else DynamicCache()
        for ids in (_ids(2, 5, 0), _ids(2, 1, 2)):
            _forward(model, ids, expected)
        for one, other in zip(_held(cache), _held(expected), strict=True):
            assert torch.equal(one, other)
    made = DynamicCache()
    model.config.num_hidden_layers = 2
    _forward(model, _ids(2, 5, 0), made)
    late = LengthRecord.of(made)
    assert late is not None
    model.config.num_hidden_layers = 4
    _forward(model, _ids(2, 1, 1), made)
    late.undo()
    assert len(made.layers) == 2
    assert {layer.get_seq_length() for layer in made.layers} == {5}


@pytest.mark.parametrize("case", [case for case in _CASES if case not in _PLAIN])
@torch.no_grad()
def test_lengths_alone_do_not_suit_what_forgets_or_remembers_otherwise(case: str) -> None:
    make, cache_of = _CASES[case]
    model = make()
    cache = cache_of(model)
    for step in range(_WINDOW + 3):
        _forward(model, _ids(2, 1 if step else 4, step), cache)
        assert LengthRecord.of(cache) is None


@torch.no_grad()
def test_lengths_alone_suit_one_cache_of_transformers_on_one_device() -> None:
    model = tiny_model()

    class Own(DynamicCache):
        pass

    own = Own()
    _forward(model, _ids(2, 5, 0), own)
    assert LengthRecord.of(own) is None
    assert LengthRecord.of(EncoderDecoderCache(DynamicCache(), DynamicCache())) is None
    moved = DynamicCache()
    _forward(model, _ids(2, 5, 0), moved)
    assert LengthRecord.of(moved) is not None
    moved.offloading = True
    assert LengthRecord.of(moved) is None
    spread, old = _static(model), _static(model)
    for cache in (spread, old):
        _forward(model, _ids(2, 5, 0), cache)
        assert LengthRecord.of(cache) is not None
    layer: Any = spread.layers[1]
    layer.cumulative_length = layer.cumulative_length.to("meta")
    assert LengthRecord.of(spread) is None
    # As it is in transformers before 5.4.
    layer = old.layers[1]
    del layer.cumulative_length
    assert LengthRecord.of(old) is None


@torch.no_grad()
def test_a_cache_that_was_emptied_has_no_lengths() -> None:
    model = tiny_model()
    cache = DynamicCache()
    _forward(model, _ids(2, 5, 0), cache)
    cache.reset()
    assert LengthRecord.of(cache) is None


@pytest.mark.parametrize("trained", ["", "k_proj", "v_proj"])
@torch.enable_grad()
def test_gradients_go_through_what_the_cache_held_and_not_through_what_was_undone(
    trained: str,
) -> None:
    model: Any = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    found = []
    for undoing in (False, True):
        cache = DynamicCache()
        _forward(model, _ids(2, 5, 0), cache)
        assert LengthRecord.of(cache) is None
        if undoing:
            before = CacheRecord([cache], 1)
            model(input_ids=_ids(2, 1, 1), past_key_values=cache)
            # Whatever still goes through it would have no gradient that is a number.
            for layer in cache.layers:
                for each in (layer.keys, layer.values):
                    if each.requires_grad:
                        each.register_hook(lambda gradient: gradient * torch.nan)
            before.undo()
        _forward(model, _ids(2, 1, 2), cache).sum().backward()
        found.append([each.grad.clone() for each in model.parameters() if each.requires_grad])
        model.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("case", _CASES)
@torch.no_grad()
def test_rows_that_are_not_chosen_keep_what_they_had_in_the_cache(case: str) -> None:
    make, cache_of = _CASES[case]
    model = make()
    first, second, mixed = cache_of(model), cache_of(model), cache_of(model)
    cached = 0
    for step, tokens in enumerate([5, 1, 1, 1, 1]):
        ids, others = _ids(3, tokens, step), _ids(3, tokens, step + 100)
        # The middle row computes something else at first.
        wrong = torch.stack([ids[0], others[1], ids[2]])
        for cache, given in ((first, wrong), (second, ids)):
            _forward(model, given, cache)
        record = CacheRecord([mixed], tokens)
        output = _forward(model, wrong, mixed)
        before, kept = copied(output), Kept(mixed, cached, tokens)
        record.undo()
        # Then the rows beside it do; only the middle row is to be adopted.
        again = _forward(model, torch.stack([others[0], ids[1], others[2]]), mixed)
        chosen = torch.tensor([False, True, False])
        kept.adopt(mixed, chosen)
        joined = adopted(again, before, chosen)
        assert torch.equal(joined[0], output[0])
        cached += tokens
        for held, one, other in zip(_held(mixed), _held(first), _held(second), strict=True):
            if held.dim() and held.shape[0] == 3:
                assert torch.equal(held[0], one[0])
                assert torch.equal(held[2], one[2])
                assert torch.equal(held[1], other[1])
        first, second = copy.deepcopy(mixed), copy.deepcopy(mixed)


def test_every_field_of_an_output_is_adopted_by_row() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    options = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        one, other = (model(_ids(2, 4, seed), **options) for seed in (1, 2))
    expected = {name: copied(each) for name, each in other.items()}
    before = copied(one)
    joined = adopted(other, before, torch.tensor([False, True]))
    assert joined is other
    assert torch.equal(joined.logits[0], before["logits"][0])
    assert torch.equal(joined["logits"][1], expected["logits"][1])
    for name in ("hidden_states", "attentions"):
        assert isinstance(joined[name], tuple)
        for got, old, new in zip(joined[name], before[name], expected[name], strict=True):
            assert torch.equal(got[0], old[0])
            assert torch.equal(got[1], new[1])


def test_what_has_no_rows_is_taken_from_the_last_computation() -> None:
    loss, rows = torch.tensor(1.0), torch.zeros(3, 2)
    tokens = torch.zeros(6, 2)
    joined = adopted((loss, rows, tokens, None), (loss + 1, rows + 1, tokens + 1, None), _MIDDLE)
    assert joined[0] is loss
    assert joined[1].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert joined[2][:, 0].tolist() == [1, 1, 0, 0, 1, 1]
    assert joined[3] is None


_MIDDLE = torch.tensor([False, True, False])


class _HandMade(DynamicLayer):
    """A cache layer of somebody's own."""


def test_a_cache_of_ones_own_is_refused_by_its_name() -> None:
    with pytest.raises(
        UndoError, match=r"writes to a tests\.forward\.test_undo\._HandMade: use one"
    ):
        CacheRecord([Cache(layers=[_HandMade()])], 1)
    with pytest.raises(UndoError, match=r"writes to a builtins\.list"):
        CacheRecord([[1]], 1)
