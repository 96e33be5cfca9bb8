"""Which reader a file needs."""

from __future__ import annotations

import json
from pathlib import Path

from readers.gsm8k import gsm8k_question
from readers.own import own_question
from readers.question import BadFileError, Question
from readers.squad import read_squad
from readers.xquad import read_xquad

__all__ = ["read_questions"]

_DOCUMENTS = {"squad": read_squad, "xtreme": read_xquad}


def read_questions(task: str, path: Path) -> list[Question]:
    """Return the questions of a file.

    Parameters
    ----------
    task:
        ``squad``, ``xtreme`` or ``gsm8k``.
    path:
        A file whose lines are in the miniatures' format (``.jsonl``), or the task's official file:
        SQuAD's or XQuAD's ``.json``, GSM8K's ``.jsonl``.

    Raises
    ------
    BadFileError
        If it is in none of these formats.
    """
    if path.suffix != ".jsonl":
        if task not in _DOCUMENTS:
            raise BadFileError(f"{path} should be a .jsonl file, which questions of {task} are in")
        return _DOCUMENTS[task](path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path} is not in UTF-8: {error.reason}") from error
    questions = [
        _of_line(task, path, number, line) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not questions:
        raise BadFileError(f"{path} is empty")
    return questions


def _of_line(task: str, path: Path, number: int, line: str) -> Question:
    place = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadFileError(f"{place} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadFileError(f"{place} should be a JSON object, not {type(record).__name__}")
    if task == "gsm8k" and "prompt" not in record:
        return gsm8k_question(path, number, record, place)
    return own_question(path, number, record, place)
