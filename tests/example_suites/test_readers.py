"""Reading questions: the official formats, on small files always and on the real ones if there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from judging import as_number
from readers import BadFileError, read_questions

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "context": " Normandy is in France. ",
                    "qas": [
                        {
                            "id": "a",
                            "question": "Where is Normandy?",
                            "answers": [
                                {"text": "France", "answer_start": 15},
                                {"text": "in France", "answer_start": 12},
                                {"text": "France", "answer_start": 15},
                            ],
                            "is_impossible": False,
                        },
                        {
                            "id": "b",
                            "question": "Who is its queen?",
                            "answers": [],
                            "plausible_answers": [{"text": "France", "answer_start": 15}],
                            "is_impossible": True,
                        },
                    ],
                }
            ],
        }
    ],
}


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def test_squad_gives_passage_question_and_answers_and_leaves_out_what_has_none(
    tmp_path: Path,
) -> None:
    (question,) = read_questions("squad", write(tmp_path, "dev-v2.0.json", SQUAD))
    assert question.id == "a"
    assert question.prompt == (
        "Context: Normandy is in France.\nQuestion: Where is Normandy?\nAnswer:"
    )
    assert question.answers == ("France", "in France")


def test_the_same_question_in_two_languages_has_two_names(tmp_path: Path) -> None:
    one, other = (
        read_questions("xtreme", write(tmp_path, f"xquad.{language}.json", SQUAD))[0]
        for language in ("de", "zh")
    )
    assert (one.id, other.id) == ("xquad.de/a", "xquad.zh/a")
    assert one.prompt == "Normandy is in France.\nQ: Where is Normandy?\nA:"


def test_gsm8k_gives_the_number_behind_the_mark(tmp_path: Path) -> None:
    lines = [
        {"question": "How many?", "answer": "2*3=<<2*3=6>>6\n#### 1,006"},
        {"question": "How much?", "answer": "#### -5"},
    ]
    path = write(tmp_path, "test.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    first, second = read_questions("gsm8k", path)
    assert first.prompt == "Question: How many?\nAnswer: Let's think step by step."
    assert [first.answers, second.answers] == [("1,006",), ("-5",)]
    assert [first.id, second.id] == ["test/1", "test/2"]


@pytest.mark.parametrize("task", ["squad", "xtreme", "gsm8k"])
def test_every_task_reads_the_miniatures_lines(tmp_path: Path, task: str) -> None:
    line = json.dumps({"id": 7, "prompt": "Wo?", "answers": ["Köln"]}, ensure_ascii=False)
    (question,) = read_questions(task, write(tmp_path, "own.jsonl", line))
    assert (question.id, question.prompt, question.answers) == ("7", "Wo?", ("Köln",))


def broken(**changes: Any) -> dict[str, Any]:
    document = json.loads(json.dumps(SQUAD))
    document["data"][0]["paragraphs"][0]["qas"][0].update(changes)
    return dict(document)


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("squad", "x.json", "{", "x.json is not JSON in UTF-8"),
        ("squad", "x.json", [], "x.json should be a JSON object, not list"),
        ("squad", "x.json", {"data": 1}, "x.json: 'data' should be a list, and it is 1"),
        (
            "squad",
            "x.json",
            broken(answers=None),
            r"x.json, data\[0\].paragraphs\[0\].qas\[0\]: 'answers' should be a list",
        ),
        (
            "xtreme",
            "x.json",
            broken(answers=[{"answer_start": 1}]),
            r"qas\[0\], answer 0: 'text' should be a str, and it is missing",
        ),
        ("squad", "x.json", {"data": []}, "x.json has no question with an answer"),
        ("gsm8k", "x.json", {}, "x.json should be a .jsonl file"),
        ("gsm8k", "x.jsonl", "", "x.jsonl is empty"),
        ("gsm8k", "x.jsonl", '{"question": "?"}', "line 1: 'answer' should be a str"),
        (
            "gsm8k",
            "x.jsonl",
            '\n{"question": "?", "answer": "5"}',
            "line 2: 'answer' should end with #### and a number",
        ),
        ("gsm8k", "x.jsonl", "[1]", "line 1 should be a JSON object, not list"),
        ("squad", "x.jsonl", "oh", "line 1 is not JSON"),
        ("squad", "x.jsonl", '{"prompt": "?", "answers": []}', "line 1: 'answers' should be one"),
        ("squad", "x.jsonl", '{"answers": ["x"]}', "line 1: 'prompt' should be a str"),
    ],
)
def test_a_bad_file_gets_a_sentence_that_names_the_place(
    tmp_path: Path, task: str, name: str, content: Any, message: str
) -> None:
    with pytest.raises(BadFileError, match=message):
        read_questions(task, write(tmp_path, name, content))


@pytest.mark.parametrize("name", ["none.json", "none.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadFileError, match=r"none\.jsonl? cannot be read: No such file"):
        read_questions("squad", tmp_path / name)


@pytest.mark.parametrize(
    ("task", "name", "count"),
    [
        ("squad", "squad2/dev-v2.0.json", 2910),
        ("xtreme", "xquad/xquad.en.json", 1190),
        ("xtreme", "xquad/xquad.de.json", 1190),
        ("xtreme", "xquad/xquad.zh.json", 1190),
        ("gsm8k", "gsm8k/test.jsonl", 1319),
    ],
)
def test_the_official_file_is_read_whole(task: str, name: str, count: int) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the official file is not here: {path}")
    questions = read_questions(task, path)
    assert len(questions) == len({question.id for question in questions}) == count
    assert all(question.answers for question in questions)
    if task == "gsm8k":
        assert all(as_number(question.answers[0]) is not None for question in questions)
