"""Trials as rows of one batch give what generate gives under injection, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import ft2
from ft2.campaign import Recorder
from ft2.campaign.batch_engine import BatchEngine, CannotBatchError
from ft2.campaign.prompt import Continuation, Prompt
from ft2.faults import Draw, Fault, fault_model
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.zoo.configs import small_model

QUICKSTART = Path(__file__).resolve().parents[2] / "example_suites" / "quickstart" / "models"
QUESTIONS = ["What is the capital of Peru?", "What is 7 plus 8?", "What is the capital of Cuba?"]

PROMPTS = [Prompt(tokens, 8, ends=(2,)) for tokens in ((1, 5, 9, 11), (7, 3), (4, 4, 4, 8, 9, 30))]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices so small would mostly wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Told = tuple[list[int], bool, int]


def ask(model: Any, prompt: Prompt) -> list[int]:
    ids = torch.tensor([prompt.tokens])
    said = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=prompt.most,
        min_new_tokens=prompt.least or None,
        eos_token_id=list(prompt.ends),
        pad_token_id=0,
        do_sample=False,
    )
    return said[0, len(prompt.tokens) :].tolist()


def sample(
    model: Any, prompts: Sequence[Prompt], count: int, bits: str, encoding: str | None = None
) -> list[tuple[int, Fault]]:
    """Draw faults from what asking every prompt once computes."""
    recorder = Recorder(model)
    for prompt in prompts:
        ask(model, prompt)
    recorder.stop()
    space = recorder.golden().space
    draws = (Draw(0, "engine", trial) for trial in range(count))
    faults = [space.sample(draw, fault_model(bits), encoding) for draw in draws]
    return [(fault.call, fault) for fault in faults]


def alone(model: Any, prompt: Prompt, fault: Fault, policy: str, **settings: Any) -> Told:
    """Run a trial as everybody does: a hook, and one generate."""
    with (
        ft2.protect(model, policy, **settings) as protection,
        ft2.inject(model, replace(fault, call=0)) as injection,
    ):
        said = ask(model, prompt)
    return said, injection.landed, sum(protection.counts)


def told(continuation: Continuation | None) -> Told:
    assert continuation is not None
    return continuation.said, continuation.injection.landed, continuation.corrected


def check(
    model: Any,
    prompts: Sequence[Prompt],
    trials: list[tuple[int, Fault]],
    policy: str,
    **settings: Any,
) -> int:
    """Compare all trials with those run alone; return how many answers the faults changed."""
    engine = BatchEngine(model, prompts, policy, rows=32, **settings)
    golden = engine.prepare()
    with ft2.protect(model, policy, **settings):
        assert [row.said for row in golden] == [ask(model, prompt) for prompt in prompts]
    batched = [told(each) for each in engine.run(trials)]
    one_by_one = [
        alone(model, prompts[number], fault, policy, **settings) for number, fault in trials
    ]
    assert batched == one_by_one
    pairs = zip(trials, batched, strict=True)
    return sum(said != golden[number].said for (number, _), (said, _, _) in pairs)


@pytest.mark.parametrize("policy", ["none", "ft2"])
@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_each_trial_says_in_a_batch_what_it_says_alone(model_type: str, policy: str) -> None:
    model = tiny_model(model_type)
    assert check(model, PROMPTS, sample(model, PROMPTS, 50, "exp"), policy) > 3


@pytest.mark.parametrize("encoding", [None, "fp16"])
@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_steps_are_recomputed_in_a_batch_as_they_are_alone(
    model_type: str, encoding: str | None
) -> None:
    model = tiny_model(model_type)
    trials = sample(model, PROMPTS, 60, "exp", encoding)
    changed = check(model, PROMPTS, trials, "ft2-recompute")
    engine = BatchEngine(model, PROMPTS, "ft2-recompute", rows=32)
    engine.prepare()
    corrected = [told(each)[2] for each in engine.run(trials)]
    # No more than once for one fault, for nearly all, and then nothing of it shows.
    assert set(corrected) <= {0, 1}
    assert sum(corrected) > 30
    assert changed == 0


@pytest.mark.parametrize("policy", ["ranger", "maximals", "global-clipper", "ft2-offline", "ft2"])
def test_policies_with_settings_do_in_a_batch_what_they_do_alone(policy: str) -> None:
    model = tiny_model()
    settings: dict[str, Any] = {"correction": "zero"}
    if policy != "ft2":
        prompts = [list(prompt.tokens) for prompt in PROMPTS]
        settings = {"bounds": ft2.profile(model, prompts, policy, progress=False)}
    trials = sample(model, PROMPTS, 50, "exp")
    assert check(model, PROMPTS, trials, policy, **settings) >= 1


@cache
def trained(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(QUICKSTART / name, dtype=torch.float32).eval()


@cache
def questions(name: str) -> tuple[Prompt, ...]:
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / name)
    ends = (tokenizer.eos_token_id,)
    return tuple(Prompt(tuple(tokenizer(each)["input_ids"]), 12, ends=ends) for each in QUESTIONS)


@pytest.mark.parametrize("policy", ["none", "ft2"])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_each_trial_of_a_trained_model_says_in_a_batch_what_it_says_alone(
    name: str, policy: str
) -> None:
    model, prompts = trained(name), questions(name)
    changed = check(model, prompts, sample(model, prompts, 60, "exp", "fp16"), policy)
    assert changed > 0 or policy == "ft2"


@cache
def known_trials() -> tuple[list[tuple[int, Fault]], list[Told]]:
    """Trials with large errors, and what becomes of them in one batch."""
    model = tiny_model()
    trials = sample(model, PROMPTS, 60, "exp")
    engine = BatchEngine(model, PROMPTS, "ft2", rows=256)
    engine.prepare()
    return trials, [told(each) for each in engine.run(trials)]


@settings(max_examples=15, deadline=None)
@given(
    chosen=st.lists(st.integers(0, 59), min_size=1, max_size=20, unique=True),
    rows=st.integers(1, 24),
)
def test_a_trial_does_not_depend_on_its_neighbours(chosen: list[int], rows: int) -> None:
    trials, expected = known_trials()
    engine = BatchEngine(tiny_model(), PROMPTS, "ft2", rows=rows)
    engine.prepare()
    found = engine.run([trials[number] for number in chosen])
    assert [told(each) for each in found] == [expected[number] for number in chosen]


def test_a_batch_of_fixed_shape_says_the_same() -> None:
    trials, expected = known_trials()
    engine = BatchEngine(tiny_model(), PROMPTS[:1], "ft2", rows=16, fixed=True)
    engine.prepare()
    mine = [number for number, (prompt, _) in enumerate(trials) if prompt == 0]
    found = engine.run([trials[number] for number in mine])
    assert [told(each) for each in found] == [expected[number] for number in mine]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_a_batch_of_fixed_shape_half_precision_does_not_depend_on_neighbours(
    dtype: torch.dtype,
) -> None:
    model = tiny_model(dtype=dtype)
    trials = [each for each in sample(model, PROMPTS, 60, "exp") if each[0] == 0]
    engine = BatchEngine(model, PROMPTS[:1], "ft2", rows=16, fixed=True)
    engine.prepare()
    together = [told(each) for each in engine.run(trials)]
    assert [told(engine.run([trial])[0]) for trial in trials] == together


def test_an_answer_may_have_to_be_of_a_length() -> None:
    model = tiny_model()
    ends = tuple(range(3, 40))
    prompts = [Prompt((1, 5, 9, 11), 6, least=4, ends=ends), Prompt((7, 3), 6, ends=ends)]
    check(model, prompts, sample(model, prompts, 20, "exp"), "none")


def test_a_prompt_may_end_with_its_first_token() -> None:
    model = tiny_model()
    prompts = [Prompt((1, 5, 9, 11), 1), *PROMPTS]
    check(model, prompts, sample(model, prompts, 40, "exp"), "ft2")


def test_a_fault_behind_the_golden_runs_end_is_left_out() -> None:
    model = tiny_model()
    engine = BatchEngine(model, PROMPTS)
    steps = len(engine.prepare()[0].said)
    ((_, fault), *_) = sample(model, PROMPTS, 1, "exp")
    assert engine.run([(0, replace(fault, step=steps))]) == [None]


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model()
    classes = [type(module) for module in model.modules()]
    attention, answer = model.config._attn_implementation, ask(model, PROMPTS[0])
    trials, _ = known_trials()
    engine = BatchEngine(model, PROMPTS, "ft2")
    engine.prepare()
    engine.run(trials)
    assert [type(module) for module in model.modules()] == classes
    assert model.config._attn_implementation == attention
    assert ask(model, PROMPTS[0]) == answer


def test_it_says_where_the_time_went() -> None:
    trials, _ = known_trials()
    engine = BatchEngine(tiny_model(), PROMPTS, "ft2")
    engine.prepare()
    engine.run(trials)
    spent = engine.spent
    assert min(spent.prefill, spent.decode, spent.bookkeeping) > 0
    assert spent.row_steps > spent.forwards > 0


def test_a_window_shorter_than_the_text_cannot_be_batched() -> None:
    model = tiny_model("mistral", sliding_window=6)
    with pytest.raises(CannotBatchError, match="DynamicSlidingWindowLayer"):
        BatchEngine(model, PROMPTS).prepare()


def test_a_window_over_the_columns_of_the_cache_cannot_be_batched() -> None:
    with pytest.raises(CannotBatchError, match="not positions"):
        BatchEngine(small_model("gpt_neo"), PROMPTS).prepare()


def test_a_layer_that_a_forward_runs_twice_cannot_be_struck_in_a_batch() -> None:
    model = tiny_model()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    engine = BatchEngine(model, PROMPTS)
    engine.prepare()
    trials = sample(model, PROMPTS, 60, "exp")
    steps = [(number, fault) for number, fault in trials if fault.step == 0 or fault.position]
    for chosen in (trials, [each for each in steps if each[1].step], steps):
        with pytest.raises(CannotBatchError, match=r"mlp\..* runs several times in a forward"):
            engine.run(chosen)


def test_experts_that_learn_bounds_while_they_decode_cannot_be_batched() -> None:
    model = small_model("mixtral", sliding_window=None)
    with pytest.raises(CannotBatchError, match="experts learn bounds"):
        BatchEngine(model, PROMPTS, "ft2").prepare()
    check(model, PROMPTS, sample(model, PROMPTS, 20, "exp"), "none")
