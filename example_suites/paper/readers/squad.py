"""SQuAD 2.0 (``dev-v2.0.json``): passages, questions, and answers that are parts of the passages.

Questions that the passage does not answer (``is_impossible``) have no definite answer and are left
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from readers.question import BadFileError, Question, load_json, required

__all__ = ["read_squad", "squad_questions"]

PROMPT = "Context: {context}\nQuestion: {question}\nAnswer:"


def read_squad(path: Path) -> list[Question]:
    """Return the answerable questions of a file in SQuAD's format, version 1 or 2.

    Raises
    ------
    BadFileError
        If the file is not in that format, or has no answerable question.
    """
    return squad_questions(path, PROMPT)


def squad_questions(path: Path, prompt: str) -> list[Question]:
    """Return the answerable questions of a file in SQuAD's format.

    Parameters
    ----------
    path:
        The file.
    prompt:
        What the model is given, with places for ``context`` and ``question``.

    Raises
    ------
    BadFileError
        If the file is not in that format, or has no answerable question.
    """
    questions = list(_questions(path, prompt))
    if not questions:
        raise BadFileError(f"{path} has no question with an answer")
    return questions


def _questions(path: Path, prompt: str) -> Iterator[Question]:
    for context, qa, place in _pairs(path):
        answers = required(qa, "answers", list, place)
        name = required(qa, "id", str, place)
        asked = required(qa, "question", str, place)
        if qa.get("is_impossible") is True or not answers:
            continue
        texts = (
            required(answer, "text", str, f"{place}, answer {number}")
            for number, answer in enumerate(answers)
        )
        yield Question(
            name,
            prompt.format(context=context.strip(), question=asked.strip()),
            tuple(dict.fromkeys(texts)),
        )


def _pairs(path: Path) -> Iterator[tuple[str, Any, str]]:
    for number, article in enumerate(required(load_json(path), "data", list, str(path))):
        place = f"{path}, data[{number}]"
        for at, paragraph in enumerate(required(article, "paragraphs", list, place)):
            inside = f"{place}.paragraphs[{at}]"
            context = required(paragraph, "context", str, inside)
            for index, qa in enumerate(required(paragraph, "qas", list, inside)):
                yield context, qa, f"{inside}.qas[{index}]"
