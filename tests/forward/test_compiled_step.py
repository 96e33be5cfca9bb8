"""Compiled steps that repeat are computed by the code that computed the one before."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
from torch.overrides import TorchFunctionMode
from transformers import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    create_masks_for_generate,
    sdpa_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import ft2
from ft2.forward import Clock, Forward, Listener
from ft2.forward.compiled_step import CompiledStep
from ft2.forward.repetition import Repetition
from tests.compiling import compiling
from tests.forward.known_steps import known_steps
from tests.tiny_models import tiny_model

_PROMPT = torch.tensor([[5, 6, 7, 8]])
_NEW = 8


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def _eager(*_: Any) -> None:
    """What compiles, where it does not matter what does."""


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the steps that known code has computed."""
    return known_steps(monkeypatch)


def _say(model: Any, prompt: Tensor = _PROMPT, **options: Any) -> Tensor:
    """Generate with a static cache and compiled code, and return the tokens and logits."""
    return _generate(model, prompt, **(compiling() | options))


def _generate(model: Any, prompt: Tensor = _PROMPT, **options: Any) -> Tensor:
    said = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=_NEW,
        min_new_tokens=_NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    logits: Tensor = torch.stack(said.logits)
    return logits


class _Before:
    """Does something before some step, and nothing before others."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self._left = step
        self._act = act

    def count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()


class _Processor(_Before, LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.count()
        return scores


class _Criterion(_Before, StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.count()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class _Streamer(_Before, BaseStreamer):
    def put(self, value: Tensor) -> None:
        # The prompt comes first.
        if value.dim() < 2:
            self.count()

    def end(self) -> None:
        pass


def _allowing(step: int, act: Callable[[], object]) -> Callable[[int, Tensor], list[int]]:
    before = _Before(step, act)

    def allowed(batch: int, ids: Tensor) -> list[int]:
        before.count()
        return [*range(61)]

    return allowed


_FOREIGN: dict[str, Callable[[int, Callable[[], object]], dict[str, Any]]] = {
    "processor": lambda step, act: {
        "logits_processor": LogitsProcessorList([_Processor(step, act)])
    },
    "criterion": lambda step, act: {
        "stopping_criteria": StoppingCriteriaList([_Criterion(step, act)])
    },
    "streamer": lambda step, act: {"streamer": _Streamer(step, act)},
    "prefix": lambda step, act: {"prefix_allowed_tokens_fn": _allowing(step, act)},
}


@contextmanager
def _within(step: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something before a step, in torch itself, which leaves steps undisturbed."""
    before, plain = _Before(step, act), torch.argmax

    def argmax(*args: Any, **options: Any) -> Tensor:
        before.count()
        return plain(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "argmax", argmax)
        yield


@pytest.mark.parametrize(
    ("architecture", "rows"),
    [("llama", 1), ("llama", 3), ("gpt2", 1), ("qwen2", 1), ("mistral", 2)],
)
def test_steps_that_repeat_are_computed_by_the_code_that_is_known(
    architecture: str, rows: int, known: list[int]
) -> None:
    model = tiny_model(architecture, num_hidden_layers=1)
    prompt = torch.arange(5, 5 + 4 * rows).view(rows, 4)
    with ft2.protect(model, scale=1.0) as protection:
        eager = _generate(model, prompt)
        for _ in range(2):
            torch.testing.assert_close(_say(model, prompt), eager)
    assert known == [*range(3, _NEW)] * 2
    counts = protection.counts
    assert counts[:rows] == counts[rows : 2 * rows] == counts[2 * rows :]
    assert sum(counts) > 0


def test_a_cache_that_slides_is_computed_with_like_any_other(known: list[int]) -> None:
    # When it is full, other code takes over.
    model = tiny_model("mistral", num_hidden_layers=1, sliding_window=8)
    with ft2.protect(model):
        torch.testing.assert_close(_say(model), _generate(model))
    assert 3 in known


@pytest.mark.parametrize("foreign", _FOREIGN.values(), ids=list(_FOREIGN))
def test_where_others_run_between_two_tokens_each_step_is_checked_before(
    foreign: Callable[[int, Callable[[], object]], dict[str, Any]], known: list[int]
) -> None:
    model: Any = tiny_model("llama", num_hidden_layers=1)
    mlp = model.model.layers[0].mlp
    plain = mlp.act_fn

    def change() -> None:
        mlp.act_fn = torch.nn.ReLU()

    with ft2.protect(model):
        unchanged = _say(model)
        assert known == [*range(3, _NEW)]
        known.clear()
        found = _say(model, **foreign(5, change))
        mlp.act_fn = plain
        expected = _generate(model, **foreign(5, change))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, unchanged)
    assert known == []


@pytest.mark.parametrize(
    "method", ["prepare_inputs_for_generation", "_update_model_kwargs_for_generation"]
)
@pytest.mark.parametrize("of_class", [True, False], ids=["class", "model"])
def test_a_model_that_does_something_of_its_own_between_two_tokens_is_checked_before_each(
    method: str, of_class: bool, known: list[int]
) -> None:
    model: Any = tiny_model("llama", num_hidden_layers=1)
    plain, head = getattr(type(model), method), model.lm_head
    head.counted = 0

    def count(model: Any, *args: Any, **kwargs: Any) -> Any:
        model.lm_head.counted += 1
        return plain(model, *args, **kwargs)

    def forward(hidden: Tensor) -> Tensor:
        logits: Tensor = torch.nn.functional.linear(hidden, head.weight) + head.counted
        return logits

    head.forward = forward
    if of_class:
        model.__class__ = type("Counting", (type(model),), {method: count})
    else:
        setattr(model, method, functools.partial(count, model))
    with ft2.protect(model):
        eager = _generate(model)
        head.counted = 0
        torch.testing.assert_close(_say(model), eager)
    assert known == []


def test_a_loop_of_ones_own_is_checked_before_each_step(known: list[int]) -> None:
    model: Any = tiny_model("llama", num_hidden_layers=1)
    plain = type(model)._sample

    def loop(*args: Any, **options: Any) -> Any:
        return plain(*args, **options)

    model.__class__ = type("Looping", (type(model),), {"_sample": loop})
    with ft2.protect(model):
        torch.testing.assert_close(_say(model), _generate(model))
    assert known == []


def test_rows_that_end_count_no_more_in_steps_that_repeat(
    known: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    prompt = torch.arange(5, 17).view(3, 4)
    options = {"eos_token_id": None, "min_new_tokens": 0, "max_new_tokens": 12}
    with ft2.protect(model, scale=1.0) as protection:
        said = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        # One row ends in the middle, which others may do later.
        options |= {"eos_token_id": int(said[0, 8]), "pad_token_id": 0}

        def counts(**more: Any) -> list[int]:
            options_ = options | more
            model.generate(prompt, attention_mask=torch.ones_like(prompt), **options_)
            return protection.counts[-3:]

        full = protection.counts[-3:]
        in_few_words = counts(), counts(**compiling())
        assert known
        monkeypatch.setattr(Repetition, "after", lambda *_: None)
        in_full = counts()
    assert in_few_words == (in_full, in_full)
    assert in_full[0] < full[0]


class _Cache(StaticCache):
    """A cache of a class of the user's own."""


def _masks(*args: Any, **options: Any) -> Any:
    return create_masks_for_generate(*args, **options)


def _causal(*args: Any, **options: Any) -> Any:
    return sdpa_mask(*args, **options)


def _with_masks_of_its_own(model: Any, patch: pytest.MonkeyPatch) -> None:
    model.create_masks_for_generate = _masks


def _with_a_mask_function(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "own", _causal)
    patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "own", ALL_ATTENTION_FUNCTIONS["sdpa"])
    model.config._attn_implementation = "own"


def _with_a_method_exchanged(model: Any, patch: pytest.MonkeyPatch) -> None:
    plain = GenerationMixin._update_model_kwargs_for_generation

    @functools.wraps(plain)
    def update(*args: Any, **options: Any) -> Any:
        return plain(*args, **options)

    patch.setattr(GenerationMixin, "_update_model_kwargs_for_generation", update)


def _with_a_processor_exchanged(model: Any, patch: pytest.MonkeyPatch) -> None:
    kind: Any = MinNewTokensLengthLogitsProcessor
    plain = kind.__call__

    def call(processor: Any, input_ids: Tensor, scores: Tensor) -> Any:
        return plain(processor, input_ids, scores)

    patch.setattr(kind, "__call__", call)


def _with_another_class(model: Any, patch: pytest.MonkeyPatch) -> None:
    model.__class__ = type("Other", (type(model),), {})


def _with_a_method_on_top(model: Any, patch: pytest.MonkeyPatch) -> None:
    plain = GenerationMixin._update_model_kwargs_for_generation

    def update(*args: Any, **options: Any) -> Any:
        return plain(*args, **options)

    patch.setattr(type(model), "_update_model_kwargs_for_generation", update, raising=False)


@pytest.mark.parametrize(
    "change",
    [
        _with_masks_of_its_own,
        _with_a_mask_function,
        _with_a_method_exchanged,
        _with_a_processor_exchanged,
        _with_another_class,
        _with_a_method_on_top,
    ],
)
def test_what_was_exchanged_in_transformers_or_the_model_is_checked_for(
    change: Callable[[Any, pytest.MonkeyPatch], None],
    known: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = tiny_model("llama", num_hidden_layers=1)
    with ft2.protect(model), monkeypatch.context() as patch:
        eos: dict[str, Any] = {"eos_token_id": 60}
        expected = _generate(model, **eos)
        _say(model, **eos)
        assert known == [*range(3, _NEW)]
        known.clear()
        worn = type(model)
        change(model, patch)
        torch.testing.assert_close(_say(model, **eos), expected)
        model.__class__ = worn
    assert known == []


def test_with_a_cache_of_another_class_or_in_a_mode_steps_are_checked_before(
    known: list[int],
) -> None:
    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    model: Any = tiny_model("llama", num_hidden_layers=1)
    with ft2.protect(model):
        expected = _generate(model)
        cache = _Cache(model.config, max_cache_len=32)
        found = _say(model, cache_implementation=None, past_key_values=cache)
        torch.testing.assert_close(found, expected)
        with Mode():
            torch.testing.assert_close(_say(model), expected)
    assert known == []


def test_weights_that_change_between_two_tokens_are_used_at_once(known: list[int]) -> None:
    model: Any = tiny_model("llama", num_hidden_layers=1)
    up = model.model.layers[0].mlp.up_proj
    plain = up.weight

    def change() -> None:
        up.weight = torch.nn.Parameter(plain * 0.5)

    with ft2.protect(model):
        with _within(5, change):
            found = _say(model)
        up.weight = plain
        with _within(5, change):
            torch.testing.assert_close(found, _generate(model))
    assert 5 in known


def test_code_that_was_given_up_is_not_used(known: list[int]) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    with ft2.protect(model):
        with _within(4, torch._dynamo.reset):
            found = _say(model)
        torch.testing.assert_close(found, _generate(model))
    # The step behind it is the last that was checked.
    assert known == [3, 4, 6, 7]


def test_another_compiler_between_two_tokens_is_the_one_that_compiles(known: list[int]) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    def change() -> None:
        torch.compiler.set_stance("default", force_backend=backend)

    with ft2.protect(model):
        expected = _generate(model)
        try:
            with _within(5, change):
                found = _say(model)
        finally:
            torch.compiler.set_stance("default")
    torch.testing.assert_close(found, expected)
    assert len(compiled) == 1
    assert 5 not in known


def test_a_listener_that_comes_in_between_is_heard(known: list[int]) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    started: list[int] = []

    class Listens(Listener):
        def forward_started(self, forward: Forward) -> None:
            started.append(forward.step)

    listener = Listens()
    with ft2.protect(model):
        clocks: list[Clock] = []
        with _within(5, lambda: clocks.append(Clock.listen(model, listener))):
            _say(model)
        clocks[0].dismiss(model, listener)
    assert known == [3, 4]
    assert started == [5, 6, 7]


def test_code_that_leaves_compiled_code_in_between_is_looked_for(known: list[int]) -> None:
    model: Any = tiny_model("llama", num_hidden_layers=1)
    model.model.norm.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    with ft2.protect(model):
        torch.testing.assert_close(_say(model), _generate(model))
    assert known == []


def test_a_torch_that_keeps_its_code_elsewhere_looks_for_it_itself(
    known: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ft2.forward.compiled_step.eval_frame", SimpleNamespace())
    model = tiny_model("llama", num_hidden_layers=1)
    with ft2.protect(model):
        torch.testing.assert_close(_say(model), _generate(model))
    assert known == []


def test_loops_by_hand_are_checked_before_each_step(known: list[int]) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    run = torch.compile(model, backend="eager")
    with ft2.protect(model), ft2.request(model), torch.no_grad():
        output = model(_PROMPT, use_cache=True)
        for _ in range(6):
            output = run(_PROMPT[:, :1], past_key_values=output.past_key_values)
    assert known == []


def test_caches_of_two_lengths_are_computed_with_by_turns(known: list[int]) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    prompts = (_PROMPT, torch.arange(5, 25)[None])
    with ft2.protect(model):
        expected = [_generate(model, prompt) for prompt in prompts]
        for _ in range(3):
            # Transformers keeps a cache that is long enough.
            for prompt, logits in zip(prompts, expected, strict=True):
                model._cache = None
                torch.testing.assert_close(_say(model, prompt), logits)
    assert known == [*range(3, _NEW)] * 6


def test_nothing_that_a_step_was_given_is_held() -> None:
    def compute(tensor: Tensor, others: dict[str, Any]) -> Tensor:
        return tensor + len(others)

    given = torch.ones(3), {"a": torch.ones(2), "b": _Box()}
    torch.compile(compute, backend="eager")(*given)
    assert isinstance(compute, FunctionType)
    (entry,) = _debug_get_cache_entry_list(compute.__code__)
    step = CompiledStep.after(entry.backend, compute, given)
    assert step is not None
    assert step.is_valid(given)
    held: list[weakref.ref[Any]] = [
        weakref.ref(given[0]),
        *(weakref.ref(each) for each in given[1].values()),
    ]
    del given
    gc.collect()
    assert [each() for each in held] == [None] * 3


class _Box:
    """An object that is nothing but itself."""


_BOXES = [_Box(), _Box()]
_TENSORS = [
    torch.ones(2, 3),
    torch.zeros(2, 3),
    torch.ones(3, 2).T,
    torch.ones(3, 2),
    torch.ones(2, 3, dtype=torch.float16),
    torch.ones(2, 3, device="meta"),
    torch.nn.Parameter(torch.ones(2, 3)),
]
# What is like each other has the same number.
_LEAVES: list[tuple[int, Any]] = [
    *zip([0, 0, 1, 2, 3, 4, 5], _TENSORS, strict=True),
    *enumerate([None, False, 0, 0.0, 1, True, "", "0", _BOXES[0], _BOXES[1]], start=10),
]


def _several(things: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(kind: type, found: list[tuple[int, Any]]) -> tuple[Any, Any]:
        values = [value for _, value in found]
        whole = dict(enumerate(values)) if kind is dict else kind(values)
        return (kind.__name__, *(like for like, _ in found)), whole

    return st.builds(made, st.sampled_from([list, tuple, dict]), st.lists(things, max_size=3))


# What something is like, and the thing itself.
_THINGS: st.SearchStrategy[tuple[Any, Any]] = st.recursive(
    st.sampled_from(_LEAVES), _several, max_leaves=4
)


def _identities(value: Any) -> list[int]:
    """Which of the tensors are the same as which, in their order."""
    found: list[int] = []

    def visit(each: Any) -> None:
        if isinstance(each, Tensor):
            found.append(id(each))
        elif isinstance(each, (list, tuple)):
            for inner in each:
                visit(inner)
        elif isinstance(each, dict):
            visit(list(each.values()))

    visit(value)
    return [found.index(each) for each in found]


class _Guards:
    def check(self, arguments: dict[str, Any]) -> bool:
        return True


def _step_of(value: Any) -> CompiledStep:
    def compute(value: Any) -> None: ...

    function = FunctionType(compute.__code__, globals())
    return CompiledStep(function.__code__, _Guards(), _eager, function, (value,))


@given(_THINGS, _THINGS)
def test_arguments_are_taken_if_all_that_code_can_rely_on_is_alike(
    one: tuple[Any, Any], other: tuple[Any, Any]
) -> None:
    step = _step_of(one[1])
    assert step.takes(_eager, (one[1],))
    alike = one[0] == other[0] and _identities(one[1]) == _identities(other[1])
    assert step.takes(_eager, (other[1],)) == alike


def test_an_object_that_is_gone_is_none_that_comes_after_it() -> None:
    box = _Box()
    step = _step_of(box)
    number = id(box)
    del box
    others = [_Box() for _ in range(1000)]
    same = [each for each in others if id(each) == number]
    assert same, "the place in memory was not used again"
    assert not step.takes(_eager, (same[0],))


def test_what_cannot_be_told_again_is_known_by_no_code() -> None:
    def compute(tensor: Tensor, other: Any) -> Tensor:
        return tensor + 1

    given = torch.ones(3), 1j
    torch.compile(compute, backend="eager")(*given)
    assert isinstance(compute, FunctionType)
    (entry,) = _debug_get_cache_entry_list(compute.__code__)
    assert CompiledStep.after(entry.backend, compute, given) is None
    assert CompiledStep.after(entry.backend, compute, (given[0], 1)) is not None
    assert CompiledStep.after(_eager, compute, (given[0], 1)) is None


def test_a_function_that_was_not_compiled_has_no_code() -> None:
    assert isinstance(_step_of, FunctionType)
    assert CompiledStep.after(_eager, _step_of, (1,)) is None
