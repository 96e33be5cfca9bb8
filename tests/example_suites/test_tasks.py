"""The miniatures' tasks: questions with definite answers, in splits that share none."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging import JUDGES
from readers import read_questions
from tasks import TASKS, Question, questions, split_of
from tasks.__main__ import COUNT, QUESTIONS, as_lines, exam_questions
from tasks.vocabulary import build_tokenizer
from tasks.xtreme import LANGUAGES

_STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")


def _some(task: str, count: int = 300, seed: int = 0) -> list[Question]:
    return list(itertools.islice(questions(TASKS[task], "train", seed), count))


@pytest.mark.parametrize("task", TASKS)
def test_a_reply_is_right_for_the_judge_of_its_task(task: str) -> None:
    for question in _some(task):
        assert JUDGES[task](question.reply, question.answers), question


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_to_another_question_is_seldom_right(task: str) -> None:
    some = _some(task)
    taken = sum(
        JUDGES[task](other.reply, question.answers) for question, other in itertools.pairwise(some)
    )
    assert taken < len(some) / 10


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_draws_the_same_questions(task: str) -> None:
    assert _some(task, 50, seed=3) == _some(task, 50, seed=3)
    assert _some(task, 50, seed=3) != _some(task, 50, seed=4)


@pytest.mark.parametrize("task", TASKS)
def test_no_question_is_drawn_twice(task: str) -> None:
    some = _some(task)
    assert len({question.prompt for question in some}) == len(some)


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_question(task: str) -> None:
    for split in ("train", "validation", "test"):
        for question in itertools.islice(questions(TASKS[task], split), 100):
            assert split_of(question.prompt) == split


@given(st.text())
def test_every_text_is_in_one_split_for_good(text: str) -> None:
    assert split_of(text) == split_of(text)
    assert split_of(text) in ("train", "validation", "test")


@pytest.mark.parametrize("task", ["squad", "xtreme"])
def test_a_passage_holds_its_answer_once(task: str) -> None:
    for question in _some(task):
        passage = question.prompt.split("\n")[0]
        (answer,) = question.answers
        assert len(re.findall(rf"(?<!\w){re.escape(answer)}(?!\w)", passage)) == 1 or (
            # Chinese is written without spaces.
            not answer.isascii() and answer in passage
        )


def test_a_passage_is_asked_for_in_its_own_language() -> None:
    first_words = {language.prompt.split("{")[0] + ":" for language in LANGUAGES.values()}
    assert len(LANGUAGES) == 4
    for question in _some("xtreme"):
        assert any(question.prompt.startswith(word.rstrip(":")) for word in first_words)


def test_the_steps_of_a_word_problem_are_right_and_lead_to_its_answer() -> None:
    calculate = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for question in _some("gsm8k"):
        steps = _STEP.findall(question.reply)
        assert len(steps) >= 2
        for left, sign, right, result in steps:
            assert calculate[sign](int(left), int(right)) == int(result)
            assert 0 < int(result) < 100
        assert question.answers == (steps[-1][3],)
        assert question.reply.endswith(f"The answer is {steps[-1][3]}.")


def test_the_numbers_of_a_word_problem_stand_in_it_or_come_of_a_step() -> None:
    for question in _some("gsm8k"):
        known = set(re.findall(r"\d+", question.prompt))
        for left, _, right, result in _STEP.findall(question.reply):
            assert {left, right} <= known
            known.add(result)


def test_tokens_joined_are_the_text_again() -> None:
    drawn = [question for task in TASKS for question in _some(task)]
    tokenizer = build_tokenizer(question.prompt + question.reply for question in drawn)
    for question in drawn:
        text = question.prompt + question.reply
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_prompt_ends_where_a_token_ends() -> None:
    drawn = [question for task in TASKS for question in _some(task)]
    tokenizer = build_tokenizer(question.prompt + question.reply for question in drawn)
    for question in drawn:
        whole = tokenizer(question.prompt + question.reply)["input_ids"]
        reply = tokenizer(question.reply, add_special_tokens=False)["input_ids"]
        assert tokenizer(question.prompt)["input_ids"] + reply == whole


def test_digits_are_tokens_of_their_own() -> None:
    tokenizer = build_tokenizer(question.reply for question in _some("gsm8k"))
    assert tokenizer.tokenize("48 - 7 = 41") == ["4", "8", " -", " 7", " =", " 4", "1"]


@pytest.mark.parametrize("task", TASKS)
def test_the_files_hold_what_the_script_makes(task: str, tmp_path: Path) -> None:
    asked = exam_questions(task)
    assert len(asked) == COUNT
    kept = (QUESTIONS / f"{task}.jsonl").read_text(encoding="utf-8")
    assert kept == as_lines(task, asked)
    assert "reply" not in json.loads(kept.splitlines()[0])
    read = read_questions(task, QUESTIONS / f"{task}.jsonl")
    assert [(one.prompt, one.answers) for one in read] == [(q.prompt, q.answers) for q in asked]
