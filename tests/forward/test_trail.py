"""Products with raw parameters: whose each vector is, proved against plain torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import ft2
from ft2.forward import Order
from ft2.forward.tap import tap_product
from ft2.forward.trail import Vectors
from tests.forward.vectors import Recorded, raw_projections, recording
from tests.zoo.configs import small_model

_IDS = torch.tensor([[1, 17, 5, 42, 23, 9], [0, 0, 1, 30, 12, 7], [1, 3, 50, 51, 8, 11]])
_MASK = (torch.arange(6) >= torch.tensor([0, 2, 0])[:, None]).long()

_IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]
_MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 2},
    "chunked prefill": {"prefill_chunk_size": 3},
    "static cache": {"cache_implementation": "static"},
    "sampling": {"do_sample": True},
}


def _generate(model: PreTrainedModel, **options: Any) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"do_sample": False, "max_new_tokens": 4, **options}
        said: Tensor = model.generate(_IDS, attention_mask=_MASK, **options)
    return said


def _choose(model: PreTrainedModel, implementation: str) -> None:
    if model._can_set_experts_implementation():
        model.set_experts_implementation(implementation)


class _Routed:
    """What the experts of one layer were given, run by run."""

    def __init__(self, experts: nn.Module) -> None:
        self.runs: list[tuple[Tensor, Tensor]] = []
        self._handle = experts.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, args: Any) -> None:
        self.runs.append((args[0].clone(), args[1].clone()))

    def remove(self) -> None:
        self._handle.remove()


def _by_hand(experts: Any, name: str, hidden: Tensor, expert: int) -> Tensor:
    """The product of one token with one expert's matrix, in plain torch."""

    def times(vector: Tensor, matrix: Tensor) -> Tensor:
        return vector @ matrix if experts.is_transposed else matrix @ vector

    first = times(hidden, experts.gate_up_proj[expert])
    if name == "gate_up_proj":
        return first
    if experts.has_bias:
        first = first + experts.gate_up_proj_bias[expert]
    return times(experts._apply_gate(first), experts.down_proj[expert])


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("implementation", _IMPLEMENTATIONS)
@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
@torch.no_grad()
def test_each_vector_of_an_expert_is_the_product_of_its_token(
    model_type: str, implementation: str, mode: str
) -> None:
    model = small_model(model_type)
    model.set_experts_implementation(implementation)
    path = next(each.module for each in raw_projections(model) if each.expert is not None)
    experts = model.get_submodule(path)
    routed = _Routed(experts)
    with recording(model) as recorded:
        _generate(model, **_MODES[mode])
    routed.remove()
    for name in ("gate_up_proj", "down_proj"):
        products = iter(recorded[f"{path}.{name}"])
        for hidden, chosen in routed.runs:
            expected = Counter(
                (token, int(expert)) for token, row in enumerate(chosen) for expert in row
            )
            met: Counter[tuple[int, int]] = Counter()
            while met.total() < expected.total():
                vectors = next(products)
                assert vectors.count == len(hidden)
                assert vectors.experts is not None
                places = zip(vectors.tokens.tolist(), vectors.experts.tolist(), strict=True)
                for value, (token, expert) in zip(vectors.values, places, strict=True):
                    met[token, expert] += 1
                    by_hand = _by_hand(experts, name, hidden[token], expert)
                    torch.testing.assert_close(value, by_hand, rtol=1e-4, atol=1e-4)
            assert met == expected
        assert next(products, None) is None


def _values(recorded: Recorded, weight: str) -> dict[tuple[int, int], list[Tensor]]:
    found: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for vectors in recorded[weight]:
        experts = [0] * len(vectors.tokens)
        if vectors.experts is not None:
            experts = vectors.experts.tolist()
        places = zip(vectors.tokens.tolist(), experts, strict=True)
        for value, place in zip(vectors.values, places, strict=True):
            found[place].append(value)
    return found


_ONE_WAY = ["falcon_mamba", "jetmoe", "llama4_text", "longcat_flash", "mamba"]
_ONE_WAY += ["recurrent_gemma", "zamba", "dbrx"]
_SEVERAL_WAYS = ["deepseek_v4", "gpt_oss", "inkling_text", "jamba", "mixtral", "qwen3_next", "zaya"]
_WAYS = [(each, "eager") for each in _ONE_WAY]
_WAYS += [(each, way) for each in _SEVERAL_WAYS for way in _IMPLEMENTATIONS]


@pytest.mark.parametrize(("rows", "tokens", "row", "token"), [(3, 7, 1, 3), (4, 4, 2, 1)])
@pytest.mark.parametrize(("model_type", "implementation"), _WAYS)
@torch.no_grad()
def test_another_token_changes_its_own_vectors_and_none_before_it_or_in_other_rows(
    model_type: str, implementation: str, rows: int, tokens: int, row: int, token: int
) -> None:
    model = small_model(model_type)
    _choose(model, implementation)
    weights = {str(each.weight) for each in raw_projections(model)}
    assert weights
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 60, (rows, tokens), generator=generator)
    changed = ids.clone()
    changed[row, token] = (ids[row, token] + 7) % 50 + 5
    with recording(model) as before:
        model(ids)
    with recording(model) as after:
        model(changed)
    for weight in weights:
        one, other = _values(before, weight), _values(after, weight)
        is_changed = False
        for place in one.keys() | other.keys():
            at_row, at_token = divmod(place[0], tokens)
            pairs = list(zip(one[place], other[place], strict=False))
            is_same = len(one[place]) == len(other[place]) and all(
                torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs
            )
            is_changed |= (at_row, at_token) == (row, token) and not is_same
            if at_row != row or at_token < token:
                assert is_same, (weight, place)
        assert is_changed, weight


@pytest.mark.parametrize(("model_type", "implementation"), _WAYS)
def test_what_a_product_is_changed_to_is_followed_to_the_next(
    model_type: str, implementation: str
) -> None:
    model = small_model(model_type)
    _choose(model, implementation)
    weights = {each.weight for each in raw_projections(model)}
    met = set()

    def replace(weight: str) -> Any:
        def transform(vectors: Vectors) -> Tensor:
            met.add(weight)
            return vectors.values.clone()

        return transform

    plain = model(_IDS).logits
    taps = []
    for each in {each.weight: each for each in raw_projections(model)}.values():
        owner, _, name = str(each.weight).rpartition(".")
        parameter = model.get_parameter(str(each.weight))
        size = each.in_features * each.out_features
        matrices = 0 if each.expert is None else parameter.numel() // size
        module = model.get_submodule(each.module)
        place = (model.get_submodule(owner), name, each.out_features, matrices)
        taps.append(tap_product(module, *place, Order.PROTECT, replace(str(each.weight))))
    assert torch.equal(model(_IDS).logits, plain)
    for tap in taps:
        tap.remove()
    assert met == weights


class _Router(nn.Module):
    """A module that multiplies with a parameter of its own, in a way that can be chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.other = nn.Parameter(torch.randn(5, 4))
        self.way = "linear"

    def forward(self, hidden: Tensor) -> Tensor:
        if self.way == "copy":
            return nn.functional.linear(hidden, self.stored)
        if self.way == "both":
            return hidden @ self.weight.T + hidden @ self.other.T
        if self.way == "cast":
            return nn.functional.linear(hidden.double(), self.weight.double()).float()
        if self.way == "left":
            return (self.weight @ hidden.transpose(-1, -2)).transpose(-1, -2)
        if self.way == "einsum":
            return torch.einsum("oi,rti->rto", self.weight, hidden)
        if self.way == "unknown":
            lost = torch.from_numpy(hidden.detach().numpy().copy())
            return nn.functional.linear(lost, self.weight)
        if self.way == "packed":
            order = torch.tensor([5, 3, 1, 0, 2, 4])
            packed = torch.zeros(6, 4)
            packed[order] = hidden.reshape(6, 4)
            return nn.functional.linear(packed, self.weight)[order].view(2, 3, 5)
        return nn.functional.linear(hidden, self.weight)

    def keep_a_copy(self) -> None:
        self.stored = self.weight.detach().clone()


_HIDDEN = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def _watched(router: _Router) -> list[Vectors]:
    seen: list[Vectors] = []

    def transform(vectors: Vectors) -> Tensor:
        seen.append(vectors)
        return vectors.values

    tap_product(router, router, "weight", 5, 0, Order.OBSERVE, transform)
    return seen


@pytest.mark.parametrize("way", ["linear", "cast", "left", "einsum", "packed"])
@torch.no_grad()
def test_a_product_is_found_however_it_is_written(way: str) -> None:
    router = _Router()
    router.way = way
    seen = _watched(router)
    router(_HIDDEN)
    (vectors,) = seen
    expected = (_HIDDEN.reshape(6, 4) @ router.weight.T)[vectors.tokens]
    torch.testing.assert_close(vectors.values.float(), expected)
    assert sorted(vectors.tokens.tolist()) == list(range(6))


@torch.no_grad()
def test_a_parameter_exchanged_after_attaching_is_still_found() -> None:
    router = _Router()
    seen = _watched(router)
    router.weight = nn.Parameter(torch.randn(5, 4))
    router(_HIDDEN)
    torch.testing.assert_close(seen[0].values, _HIDDEN.reshape(6, 4) @ router.weight.T)


@torch.no_grad()
def test_a_model_converted_after_attaching_is_still_found() -> None:
    router = _Router()
    seen = _watched(router)
    router.double()(_HIDDEN.double())
    assert seen[0].values.dtype == torch.float64


@torch.no_grad()
def test_weights_given_for_one_call_are_found() -> None:
    router = _Router()
    seen = _watched(router)
    weight = torch.randn(5, 4)
    torch.func.functional_call(router, {"weight": weight}, (_HIDDEN,))
    torch.testing.assert_close(seen[0].values, _HIDDEN.reshape(6, 4) @ weight.T)


@torch.no_grad()
def test_parameters_that_share_memory_are_told_apart() -> None:
    router = _Router()
    flat = torch.randn(2, 5, 4)
    router.weight = nn.Parameter(flat[0])
    router.other = nn.Parameter(flat[1])
    seen: dict[str, Vectors] = {}

    def note(name: str) -> Any:
        def transform(vectors: Vectors) -> Tensor:
            seen[name] = vectors
            return vectors.values

        return transform

    for name in ("weight", "other"):
        tap_product(router, router, name, 5, 0, Order.OBSERVE, note(name))
    router.way = "both"
    router(_HIDDEN)
    for name in ("weight", "other"):
        expected = _HIDDEN.reshape(6, 4) @ getattr(router, name).T
        torch.testing.assert_close(seen[name].values, expected)


@torch.no_grad()
def test_a_product_with_a_hidden_copy_of_the_weight_fails_aloud() -> None:
    router = _Router()
    _watched(router)
    router.keep_a_copy()
    router.way = "copy"
    with pytest.raises(RuntimeError, match=r"saw no product with _Router\.weight.*\(5, 4\)") as e:
        router(_HIDDEN)
    assert "\n" not in str(e.value)


@torch.no_grad()
def test_a_product_of_tokens_that_were_lost_fails_aloud() -> None:
    router = _Router()
    _watched(router)
    router.way = "unknown"
    with pytest.raises(RuntimeError, match="lost sight of the tokens"):
        router(_HIDDEN)


@torch.no_grad()
def test_a_module_given_no_tokens_fails_aloud() -> None:
    router = _Router()
    _watched(router)
    with pytest.raises(RuntimeError, match="no tokens in what was given"):
        router(torch.ones(2, 3, dtype=torch.int64))


def test_experts_that_no_token_is_routed_to_for_once_are_no_failure() -> None:
    model = small_model("longcat_flash")
    path = next(each.module for each in raw_projections(model) if each.expert is not None)
    experts = model.get_submodule(path)
    idle = torch.full((3, 2), experts.num_routed_experts)
    with ft2.protect(model):
        experts(torch.randn(3, 32), idle, torch.ones(3, 2))
        with pytest.raises(RuntimeError, match="saw no product"):
            experts(torch.randn(99, 32), idle[:1].expand(99, 2), torch.ones(99, 2))
