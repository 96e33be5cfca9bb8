"""FT2-recompute in steps that repeat the one before: told in few words, and undone all the same."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor
from transformers.cache_utils import DynamicCache

import ft2
from ft2.forward import Forward
from ft2.native import WRONG_SUM
from ft2.protection.policies.recompute import RecomputePolicy
from tests.compiling import compiling
from tests.forward.known_steps import known_steps
from tests.protection.watch import prompts
from tests.tiny_models import tiny_model
from tests.zoo.configs import small_model

_LAYER = "model.layers.1.mlp.up_proj"
_NEW = 9
_STRUCK = 5
# So many tokens that the struck step is one of those that leave layers out.
_LEFT_AT = 12

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture
def in_full(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the steps that the policy is told of in full."""
    steps: list[int] = []
    started = RecomputePolicy.forward_started

    def noted(policy: RecomputePolicy, forward: Forward) -> None:
        steps.append(forward.step)
        started(policy, forward)

    monkeypatch.setattr(RecomputePolicy, "forward_started", noted)
    return steps


_MODES: dict[str, Callable[[], dict[str, Any]]] = {
    "dynamic": dict,
    "static": lambda: {"cache_implementation": "static", "disable_compile": True},
    "compiled": compiling,
}


def _say(model: Any, ids: Tensor, mode: str = "dynamic", **options: Any) -> tuple[Tensor, Tensor]:
    """Generate, and return the tokens and the logits of all steps."""
    said = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=_NEW,
        min_new_tokens=_NEW,
        output_logits=True,
        return_dict_in_generate=True,
        **{"do_sample": False, **options},
        **_MODES[mode](),
    )
    return said.sequences, torch.stack(said.logits)


class _Strike:
    """An error in one row of one step: what it put out and wrote to the cache, and a flag.

    Compiled code has no place where a test could put a wrong number.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, row: int, times: int = 1, value: float = torch.nan
    ) -> None:
        self.left = times
        self._row, self._value = row, value
        rejects = RecomputePolicy.rejects

        def struck(policy: RecomputePolicy, forward: Forward, output: Any) -> bool:
            if forward.step == _STRUCK and self.left:
                self.left -= 1
                self._spoil(policy, forward, output)
            return rejects(policy, forward, output)

        monkeypatch.setattr(RecomputePolicy, "rejects", struck)

    def _spoil(self, policy: Any, forward: Forward, output: Any) -> None:
        # Logits, or the hidden states of a decoder that a head was compiled around before.
        next(iter(output.values()))[self._row] = self._value
        layer = output.past_key_values.layers[0]
        for written in (layer.keys, layer.values):
            written[self._row, :, forward.cached] = self._value
        policy._watched[0]._flags[forward.rows][self._row] = WRONG_SUM


@pytest.mark.parametrize("mode", _MODES)
def test_only_the_first_step_after_the_prompt_is_told_in_full(
    mode: str, in_full: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = known_steps(monkeypatch)
    model: Any = tiny_model()
    ids = prompts(2)
    tokens, logits = _say(model, ids, mode)
    with ft2.protect(model, "ft2-recompute") as handle:
        for _ in range(2):
            in_full.clear()
            known.clear()
            got = _say(model, ids, mode)
            assert torch.equal(got[0], tokens)
            assert torch.equal(got[1], logits)
            assert in_full == [0, 1]
            # The code of step 2 is known from then on.
            assert known == ([*range(3, _NEW)] if mode == "compiled" else [])
    assert handle.counts == [0] * 4


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("mode", _MODES)
def test_what_goes_wrong_in_such_a_step_leaves_no_trace(
    mode: str, rows: int, in_full: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model()
    ids = prompts(rows)
    expected = _say(model, ids, mode)
    strike = _Strike(monkeypatch, rows - 1)
    with ft2.protect(model, "ft2-recompute") as handle:
        got = _say(model, ids, mode)
    assert strike.left == 0
    assert in_full == [0, 1]
    assert handle.counts == [0] * (rows - 1) + [1]
    assert [each.recomputed[-1] for each in handle.recomputations] == [1]
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


class _Leaving(LogitsProcessor):
    """Has some steps computed by half of the layers."""

    def __init__(self, model: Any) -> None:
        self._model, self._layers = model, model.config.num_hidden_layers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        early = input_ids.shape[1] % 3 == 0
        self._model.config.num_hidden_layers = self._layers // 2 if early else self._layers
        return scores


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_layers_that_a_step_leaves_out_keep_what_they_had(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model(num_hidden_layers=4)
    ids = prompts(2, tokens=_LEFT_AT - _STRUCK)
    leaving = {"logits_processor": [_Leaving(model)]}
    expected = _say(model, ids, mode, **leaving)
    model.config.num_hidden_layers = 4
    strike = _Strike(monkeypatch, 1)
    with ft2.protect(model, "ft2-recompute") as handle:
        got = _say(model, ids, mode, **leaving)
    assert strike.left == 0
    assert handle.counts == [0, 1]
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@contextmanager
def _struck(
    model: Any, wrong: Callable[[Tensor], Tensor] = lambda output: output * torch.nan
) -> Generator[list[Tensor], None, None]:
    """A layer puts out something wrong in the run of the struck step; yields what it computes."""
    computed: list[Tensor] = []

    def strike_once(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        computed.append(output)
        return wrong(output) if len(computed) == _STRUCK + 1 else output

    hook = model.get_submodule(_LAYER).register_forward_hook(strike_once)
    try:
        yield computed
    finally:
        hook.remove()
    assert len(computed) > _STRUCK + 1


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_a_wrong_number_in_such_a_step_is_seen_and_computed_again(
    mode: str, in_full: list[int]
) -> None:
    model: Any = tiny_model()
    ids = prompts(3)
    expected = _say(model, ids, mode)

    def wrong(output: Tensor) -> Tensor:
        struck = output.clone()
        struck[1, 0, 7] = 3e4
        return struck

    with _struck(model, wrong) as computed, ft2.protect(model, "ft2-recompute") as handle:
        got = _say(model, ids, mode)
    assert len(computed) == _NEW + 1
    assert in_full == [0, 1]
    assert handle.counts == [0, 1, 0]
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", _MODES)
def test_what_stays_wrong_is_kept_and_counted_with_its_step(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model()
    strike = _Strike(monkeypatch, 0, times=10, value=7.0)
    with (
        ft2.protect(model, "ft2-recompute") as handle,
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        _, logits = _say(model, prompts(2), mode)
    assert strike.left == 8
    assert [each.kept for each in handle.recomputations] == [[1, 0]]
    assert f"computed step {_STRUCK} again" in " ".join(str(each.message) for each in told)
    assert bool((logits[_STRUCK, 0] == 7).all())
    assert not bool((logits[_STRUCK, 1] == 7).any())


def test_sampling_goes_on_with_the_random_numbers_it_would_have_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = tiny_model()

    class Noisy(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden + 0.1 * torch.randn_like(hidden)

    model.model.norm = nn.Sequential(model.model.norm, Noisy())
    options: dict[str, Any] = {"do_sample": True, "temperature": 3.0}
    ids = prompts(2)
    torch.manual_seed(3)
    expected = _say(model, ids, **options)
    strike = _Strike(monkeypatch, 1)
    torch.manual_seed(3)
    with ft2.protect(model, "ft2-recompute"):
        got = _say(model, ids, **options)
    assert strike.left == 0
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


_FORGETFUL = [
    (architecture, cache)
    for architecture in ("sliding", "falcon_h1", "lfm2", "mixtral")
    for cache in ("dynamic", "static")
    # Its states are static as they are.
    if (architecture, cache) != ("lfm2", "static")
]


@pytest.mark.parametrize(("architecture", "cache"), _FORGETFUL)
def test_caches_that_forget_and_experts_have_every_step_told_in_full(
    architecture: str, cache: str, in_full: list[int]
) -> None:
    model: Any
    if architecture == "sliding":
        model = tiny_model("mistral", sliding_window=6)
    elif architecture == "mixtral":
        model = small_model(architecture, sliding_window=None)
    else:
        model = small_model(architecture)
    with ft2.protect(model, "ft2-recompute"):
        _say(model, prompts(2) % 50 + 4, cache)
    assert in_full == [*range(_NEW)]


def test_bounds_have_every_step_told_in_full(in_full: list[int]) -> None:
    model: Any = tiny_model()
    with ft2.protect(model, "ft2-recompute", detect="checksums+bounds"):
        _say(model, prompts(2))
    assert in_full == [*range(_NEW)]


def _step(model: Any, cache: DynamicCache) -> None:
    model(torch.tensor([[11]]), past_key_values=cache)


def _begun(model: Any, steps: int = 3) -> DynamicCache:
    """A cache of a prompt and some steps."""
    cache = DynamicCache()
    model(prompts(1), past_key_values=cache)
    for _ in range(steps):
        _step(model, cache)
    return cache


def test_another_cache_in_the_same_request_is_told_in_full(in_full: list[int]) -> None:
    model: Any = tiny_model()
    with torch.no_grad(), ft2.protect(model, "ft2-recompute"), ft2.request(model):
        other, cache = _begun(model, steps=0), _begun(model, steps=3)
        before = [each.keys.clone() for each in other.layers]
        _step(model, other)
    assert len(in_full) == 4
    assert cache.get_seq_length() == prompts(1).shape[1] + 3
    for layer, keys in zip(other.layers, before, strict=True):
        assert torch.equal(layer.keys[..., :-1, :], keys)


def test_a_step_without_the_cache_that_is_gone_is_told_in_full(in_full: list[int]) -> None:
    model: Any = tiny_model()
    with torch.no_grad(), ft2.protect(model, "ft2-recompute"), ft2.request(model):
        cache = _begun(model)
        gone = weakref.ref(cache)
        del cache
        gc.collect()
        assert gone() is None
        model(torch.tensor([[11]]), use_cache=False)
    assert in_full == [0, 1, 4]


def test_a_cache_that_was_emptied_in_between_is_put_back_as_it_was() -> None:
    model: Any = tiny_model()

    def run() -> Tensor:
        with torch.no_grad(), ft2.request(model):
            cache = _begun(model, steps=_STRUCK - 1)
            cache.reset()
            logits: Tensor = model(torch.tensor([[11]]), past_key_values=cache).logits
        return logits

    expected = run()
    with _struck(model), ft2.protect(model, "ft2-recompute") as handle:
        got = run()
    assert torch.equal(got, expected)
    assert handle.counts == [1]


@pytest.mark.parametrize("trained", ["", "v_proj"])
@pytest.mark.parametrize("begins", [0, 3])
def test_gradients_are_those_of_the_steps_that_were_kept(trained: str, begins: int) -> None:
    model: Any = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        cache = DynamicCache()
        with ft2.request(model):
            for step in range(_STRUCK + 2):
                ids = torch.tensor([[11]]) if step else prompts(1)
                with torch.set_grad_enabled(step >= begins):
                    logits = model(ids, past_key_values=cache).logits
            logits.sum().backward()
        return [each.grad.clone() for each in model.parameters() if each.requires_grad]

    expected = gradients()
    with _struck(model), ft2.protect(model, "ft2-recompute") as handle:
        got = gradients()
    assert handle.counts == [1]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_that_begins_in_between_is_refused() -> None:
    model: Any = tiny_model()
    with torch.no_grad(), ft2.protect(model, "ft2-recompute"), ft2.request(model):
        cache = _begun(model)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
            _step(model, cache)


def test_after_a_step_that_failed_no_cache_is_held() -> None:
    model: Any = tiny_model()
    with torch.no_grad(), ft2.protect(model, "ft2-recompute"), ft2.request(model):
        cache = _begun(model)
        with pytest.raises(IndexError):
            model(torch.tensor([[10_000]]), past_key_values=cache)
        gone = weakref.ref(cache.layers[0])
        del cache
        gc.collect()
        assert gone() is None


def test_a_step_that_fails_leaves_no_flag_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model()

    def fail(policy: Any, forward: Forward, output: Any) -> bool:
        policy._watched[0]._flags[forward.rows][0] = WRONG_SUM
        raise KeyError("between computing and reading")

    with torch.no_grad(), ft2.protect(model, "ft2-recompute") as handle, ft2.request(model):
        cache = _begun(model)
        with monkeypatch.context() as patch:
            patch.setattr(RecomputePolicy, "rejects", fail)
            with pytest.raises(KeyError):
                _step(model, cache)
        _step(model, cache)
    assert handle.counts == [0]
