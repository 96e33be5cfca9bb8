"""How the miniatures are trained: examples, the loop and its limits, the exam."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import ft2
from tasks import TASKS, Question, questions
from tasks.vocabulary import build_tokenizer, save_tokenizer
from training.architectures import MINIATURES
from training.exam import share_answered
from training.examples import IGNORE, Examples, encode, load, save, training_examples
from training.loop import Limits, Trained, exact_share, train

# Of the paper's Table 2.
BOTH = {"llama2-7b-mini", "qwen2-7b-mini"}


@pytest.fixture(scope="module")
def few() -> list[Question]:
    return list(itertools.islice(questions(TASKS["squad"], "train"), 8))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    drawn = itertools.chain.from_iterable(
        itertools.islice(questions(task, "train"), 2000) for task in TASKS.values()
    )
    return build_tokenizer(question.prompt + question.reply for question in drawn)


def _model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        dtype=torch.float32,
    )


def _limits(target: float = 2.0, seconds: float = 3600.0, steps: int = 10) -> Limits:
    return Limits(target, time.time() + seconds, steps)


def _train(model: PreTrainedModel, examples: Examples, limits: Limits, seed: int = 0) -> Trained:
    return train(
        model,
        {"squad": examples},
        {"squad": examples},
        limits,
        seed,
        lambda _: None,
        tokens_per_batch=512,
        steps_between_checks=20,
    )


@pytest.fixture(scope="module")
def examples(few: list[Question], tokenizer: PreTrainedTokenizerBase) -> Examples:
    return encode(few, tokenizer)


@pytest.fixture(scope="module")
def learnt(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model that knows eight replies by heart."""
    torch.set_num_threads(1)
    model = _model(tokenizer)
    limits = _limits(target=1.0, steps=400)
    trained = _train(model, examples, limits)
    assert trained.exact["squad"] == 1.0
    return model


def test_labels_are_the_reply_and_the_end(
    few: list[Question], examples: Examples, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids, labels = examples.batch(torch.arange(len(few)), examples.ids.shape[1])
    for question, row, wanted in zip(few, ids, labels, strict=True):
        counted = wanted[wanted != IGNORE]
        assert tokenizer.decode(counted) == question.reply + tokenizer.eos_token
        assert tokenizer.decode(row[wanted == IGNORE], skip_special_tokens=True) == question.prompt


def test_a_word_the_tokenizer_does_not_know_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        encode([Question("Xylograph?", " No.", ("No",))], tokenizer)


def test_examples_are_the_same_for_any_number_of_processes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    one, two = (
        training_examples(["squad", "gsm8k"], 40, tmp_path / "tokenizer", processes, seed=1)
        for processes in (1, 2)
    )
    assert one.keys() == two.keys() == {"squad", "gsm8k"}
    for task in one:
        assert len(one[task]) == 40
        assert torch.equal(one[task].ids, two[task].ids)
        assert torch.equal(one[task].prompt, two[task].prompt)


def test_examples_come_back_from_their_file(tmp_path: Path, examples: Examples) -> None:
    others = Examples(
        examples.ids[:3, :-4].clone(), examples.prompt[:3] - 1, examples.length[:3] - 4
    )
    save({"squad": examples, "gsm8k": others}, tmp_path / "examples.safetensors")
    read = load(tmp_path / "examples.safetensors", ["gsm8k", "squad"])
    assert list(read) == ["gsm8k", "squad"]
    for task, some in (("gsm8k", others), ("squad", examples)):
        assert torch.equal(read[task].ids, some.ids)
        assert torch.equal(read[task].prompt, some.prompt)
        assert torch.equal(read[task].length, some.length)


def test_training_ends_at_the_limit_of_steps(
    examples: Examples, tokenizer: PreTrainedTokenizerBase
) -> None:
    trained = _train(_model(tokenizer), examples, _limits(steps=7))
    assert trained.steps == 7
    assert math.isfinite(trained.loss)
    assert trained.exact.keys() == {"squad"}


def test_training_ends_when_the_time_is_over(
    examples: Examples, tokenizer: PreTrainedTokenizerBase
) -> None:
    limits = _limits(seconds=1.0, steps=10**9)
    trained = _train(_model(tokenizer), examples, limits)
    assert 0 < trained.steps < 10**9


def test_the_same_seed_takes_the_same_steps(
    examples: Examples, tokenizer: PreTrainedTokenizerBase
) -> None:
    models = [_model(tokenizer) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        _train(model, examples, _limits(steps=3), seed)
    first, same, other = (model.lm_head.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_an_exact_share_is_what_greedy_decoding_gives(
    learnt: PreTrainedModel, few: list[Question], tokenizer: PreTrainedTokenizerBase
) -> None:
    more = [*few, *itertools.islice(questions(TASKS["squad"], "validation"), 8)]
    right = 0
    for question in more:
        prompt = tokenizer(question.prompt, return_tensors="pt")
        written = learnt.generate(**prompt, max_new_tokens=30, do_sample=False)
        reply = tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])
        right += reply == question.reply + tokenizer.eos_token
    assert exact_share(learnt, encode(more, tokenizer)) == right / len(more)
    assert 8 <= right < 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_saved_model_is_examined_as_it_is_loaded(
    learnt: PreTrainedModel,
    few: list[Question],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    dtype: torch.dtype,
) -> None:
    learnt.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    wrong = [Question(question.prompt, question.reply, ("Xylograph",)) for question in few]
    asked = [*few, *wrong]
    share = share_answered(tmp_path, TASKS["squad"], asked, dtype, torch.device("cpu"))
    assert share == 0.5


@pytest.mark.parametrize("name", MINIATURES)
def test_a_saved_tokenizer_is_loaded_as_it_was(
    name: str, tokenizer: PreTrainedTokenizerFast, few: list[Question], tmp_path: Path
) -> None:
    config = MINIATURES[name].config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=2)
    config.save_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path, config.model_type)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.padding_side == "left"
    prompts = [question.prompt for question in few]
    assert loaded(prompts)["input_ids"] == tokenizer(prompts)["input_ids"]


@pytest.mark.parametrize("name", MINIATURES)
def test_a_miniature_has_the_projections_of_its_paper_model(name: str) -> None:
    miniature = MINIATURES[name]
    config = miniature.config(vocab_size=700, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config)
    assert 300_000 <= model.num_parameters() <= 4_000_000
    kinds = {projection.kind for projection in ft2.projections(model)}
    if name.startswith("opt"):
        assert kinds == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    elif name.startswith("gptj"):
        assert kinds == {"q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"}
    else:
        attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
        assert kinds == attention | {"gate_proj", "up_proj", "down_proj"}


def test_no_two_miniatures_share_shape_or_seed() -> None:
    configs = [
        miniature.config(vocab_size=700, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        for miniature in MINIATURES.values()
    ]
    assert len({miniature.seed for miniature in MINIATURES.values()}) == 7
    assert len({config.to_json_string(use_diff=False) for config in configs}) == 7


def test_the_miniatures_have_the_tasks_of_table_2() -> None:
    for name, miniature in MINIATURES.items():
        mathematics = ("gsm8k",) if name in BOTH else ()
        assert miniature.tasks == ("squad", "xtreme", *mathematics)
