"""Every supported architecture: what is found in it, and that protection and faults work there."""

from __future__ import annotations

import inspect
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import ft2
from ft2.campaign.golden import Recorder
from ft2.faults import Space
from ft2.layers import Projection
from tests.zoo.configs import small_config, small_model
from tests.zoo.table import (
    COMMAND,
    PROFILED,
    committed,
    page,
    refusing,
    registered,
    row,
    row_of,
)

_PAGE, _VERSION, _ROWS = committed()
# Of another version's architectures only whether they are supported is compared.
_IS_CURRENT = transformers.__version__ == _VERSION
# Their caches and states are their own, or what they multiply with cannot be told.
_NOT_RECOMPUTED = {
    "deepseek_v4",
    "inkling_text",
    "minimax",
    "minimax_m3_vl_text",
    "recurrent_gemma",
    "reformer",
    "rwkv",
    "xlstm",
}
_SUPPORTED = [each.model_type for each in _ROWS if each.supported]
_OTHERS = [each.model_type for each in _ROWS if not each.supported]

_TOKENS, _NEW, _PADDING = 24, 5, 3
# One chunk of its attention has to hold the whole text.
_SHORTER = {"reformer": 10}
# Random weights for which the bounds from a first token of this length are wide enough.
_SEEDS = {"gpt_oss": 1, "zamba": 1}
# The highest exponent bit, but where the model itself refuses what is not a number.
_BIT, _MILD_BIT = 14, {"blt": 10}
# Where a text is cut into patches depends on numbers.
_NEED_WEIGHTS = {"blt"}
# Tokens that mean nothing (end of text, an image, ...) in any of the configurations.
_FIRST, _LAST = 4, 56


@dataclass(frozen=True)
class Subject:
    """An architecture as a small model, and what its tests share."""

    model_type: str
    model: PreTrainedModel

    @cached_property
    def found(self) -> list[Projection]:
        return ft2.projections(self.model)

    def text(self, rows: int = 1) -> dict[str, Tensor]:
        numbers = torch.Generator().manual_seed(0)
        shape = (rows, _SHORTER.get(self.model_type, _TOKENS))
        ids = torch.randint(_FIRST, _LAST, shape, generator=numbers)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def continued(self, text: dict[str, Tensor], **options: Any) -> Tensor:
        ids: Tensor = self.model.generate(
            **text, max_new_tokens=_NEW, do_sample=False, num_beams=1, **options
        )
        return ids


@pytest.fixture(autouse=True, scope="module")
def _one_thread_and_no_advice() -> Iterator[None]:
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(verbosity)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=_SUPPORTED)
def subject(request: pytest.FixtureRequest) -> Subject:
    model_type = request.param
    if model_type not in registered():
        pytest.skip(f"transformers {transformers.__version__} does not have it")
    return Subject(model_type, small_model(model_type, seed=_SEEDS.get(model_type, 0)))


def test_the_page_has_a_row_for_each_architecture() -> None:
    assert page(_ROWS, _VERSION) == _PAGE
    assert len(_SUPPORTED) >= 170
    if _IS_CURRENT:
        assert sorted(_SUPPORTED + _OTHERS) == registered(), COMMAND
    else:
        warnings.warn(
            f"docs/architectures.md speaks of transformers {_VERSION}; to renew it for "
            f"{transformers.__version__}, which is installed: {COMMAND}",
            stacklevel=1,
        )


@pytest.mark.parametrize("model_type", _OTHERS)
def test_what_is_not_supported_says_why(model_type: str) -> None:
    if model_type not in registered():
        pytest.skip(f"transformers {transformers.__version__} does not have it")
    committed_row = next(each for each in _ROWS if each.model_type == model_type)
    now = row(model_type)
    assert not now.supported
    assert now == committed_row or not _IS_CURRENT, COMMAND


def test_its_row_is_what_is_found(subject: Subject) -> None:
    assert any(each.critical for each in subject.found)
    committed_row = next(each for each in _ROWS if each.model_type == subject.model_type)
    now = row_of(subject.model_type, subject.model)
    assert now.supported
    assert now == committed_row or not _IS_CURRENT, COMMAND


@pytest.mark.parametrize("other", ["eager", "bf16"])
def test_the_answer_is_the_same_without_weights(subject: Subject, other: str) -> None:
    device = "cpu" if subject.model_type in _NEED_WEIGHTS else "meta"
    dtype = torch.bfloat16 if other == "bf16" else torch.float32
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(small_config(subject.model_type), dtype=dtype)
    if other == "eager":
        # Fused attention is what transformers chooses for the others, where there is one.
        model.set_attn_implementation("eager")
    assert [without_words(each) for each in ft2.projections(model)] == [
        without_words(each) for each in subject.found
    ]


def without_words(projection: Projection) -> tuple[object, ...]:
    """What matters of a projection; its reason may name other operations."""
    each = projection
    return (each.name, each.kind, each.columns, each.module, each.weight, each.expert)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_protection_leaves_a_text_without_faults_as_it_is(
    subject: Subject, use_cache: bool
) -> None:
    text = subject.text()
    plain = subject.continued(text, use_cache=use_cache)
    with ft2.protect(subject.model) as protection:
        protected = subject.continued(text, use_cache=use_cache)
    assert torch.equal(protected, plain), protection.counts
    assert protection.left_first_token or not use_cache


@pytest.mark.filterwarnings("ignore:.* saw no token of the prompts:UserWarning")
def test_profiled_bounds_leave_a_profiled_text_alone_and_are_in_force(subject: Subject) -> None:
    model, text = subject.model, subject.text()
    with torch.no_grad():
        plain = model(**text).logits
    for policy in set(PROFILED) - set(refusing(model)):
        profile = ft2.profile(model, text, policy, max_new_tokens=0, progress=False)
        with ft2.protect(model, policy, bounds=profile) as protection, torch.no_grad():
            protected = model(**text).logits
        assert torch.equal(protected, plain), policy
        assert protection.counts == [0], policy
        # Nothing is within bounds of zero.
        narrow = dict.fromkeys(profile.bounds, (0.0, 0.0))
        silent = ft2.Profile(policy, profile.model, profile.prompts, narrow)
        with ft2.protect(model, policy, bounds=silent) as protection, torch.no_grad():
            silenced = model(**text).logits
        assert not torch.equal(silenced, plain), policy
        assert protection.counts > [0], policy


def test_a_fault_in_each_kind_strikes_there_and_in_no_other_row(subject: Subject) -> None:
    kinds = list(dict.fromkeys(map(kind_of, subject.found)))
    text = subject.text(rows=len(kinds) + 1)
    if "attention_mask" in inspect.signature(subject.model.forward).parameters:
        for values in text.values():
            values[1:, :_PADDING] = 0
    recorder = Recorder(subject.model)
    plain = subject.continued(text)
    recorder.stop()
    space = recorder.golden().space
    assert len(space.steps) == _NEW
    faults = [fault(subject, kind, row, space) for row, kind in enumerate(kinds, start=1)]
    with heard(subject, faults) as outputs, ft2.inject(subject.model, faults) as injections:
        faulty = subject.continued(text)
    for injection in injections:
        struck = injection.fault
        assert injection.landed, str(struck)
        assert injection.before is not None
        assert injection.before != injection.after, str(struck)
        if struck.layer in outputs:
            output = torch.cat(outputs[struck.layer][struck.step], dim=1)
            value = output[struck.row, struck.position, struck.neuron]
            assert injection.before == value.item(), str(struck)
    assert torch.equal(faulty[0], plain[0])


def kind_of(projection: Projection) -> str:
    """Its place in a block, the same in all blocks and of all experts."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", projection.name)


def fault(subject: Subject, kind: str, row: int, space: Space) -> ft2.Fault:
    """Place a fault in a later step if projections of that kind run in one, else in the first."""
    of_kind = {each.name for each in subject.found if kind_of(each) == kind}
    sites = [
        (step.step, execution, start)
        for step in space.steps
        for execution in step.executions
        for at, start, _ in execution.real
        if execution.layer in of_kind and at == row
    ]
    step, execution, start = next((site for site in sites if site[0]), sites[0])
    return ft2.Fault(
        call=0,
        step=step,
        layer=execution.layer,
        row=row,
        position=execution.first_position + start,
        neuron=execution.columns // 2,
        bits=(_MILD_BIT.get(subject.model_type, _BIT),),
        encoding="fp16",
    )


@contextmanager
def heard(
    subject: Subject, faults: Iterable[ft2.Fault]
) -> Iterator[dict[str, dict[int, list[Tensor]]]]:
    """Collect what the modules among the struck layers put out, by layer and step."""
    outputs: dict[str, dict[int, list[Tensor]]] = {}
    struck = {each.layer for each in faults}
    rows = 1 + max(each.row for each in faults)
    step = -1

    def count(*_: Any) -> None:
        nonlocal step
        step += 1

    def collector(projection: Projection) -> Callable[..., None]:
        by_step = outputs.setdefault(projection.name, defaultdict(list))

        def collect(module: Any, args: Any, output: Tensor) -> None:
            by_step[step].append(output.reshape(rows, -1, projection.out_features).clone())

        return collect

    handles = [subject.model.register_forward_pre_hook(count)]
    for each in subject.found:
        if each.name in struck and each.weight is None:
            module = subject.model.get_submodule(each.name)
            handles.append(module.register_forward_hook(collector(each)))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def test_no_checksum_is_wrong_without_a_fault_or_a_sentence_refuses(subject: Subject) -> None:
    text = subject.text(rows=2)
    expected = subject.continued(text)
    if subject.model_type in _NOT_RECOMPUTED:
        with (
            pytest.raises((ValueError, RuntimeError), match=r"ft2-recompute c(annot|ould not)"),
            ft2.protect(subject.model, "ft2-recompute"),
        ):
            subject.continued(text)
        return
    with ft2.protect(subject.model, "ft2-recompute") as protection:
        assert torch.equal(subject.continued(text), expected)
    assert protection.left_first_token
    assert not any(any(each.detected) for each in protection.recomputations)
