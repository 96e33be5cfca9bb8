"""The miniatures' questions: ``{"id": ..., "prompt": ..., "answers": [...]}`` on each line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from readers.question import BadFileError, Question, required

__all__ = ["own_question"]


def own_question(path: Path, number: int, record: Mapping[str, Any], place: str) -> Question:
    """Return the question of one line.

    Parameters
    ----------
    path, number:
        The file, and the number of the line in it, from 1.
    record, place:
        What the line holds, and how to name it.

    Raises
    ------
    BadFileError
        If the line is not in that format.
    """
    answers = required(record, "answers", list, place)
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise BadFileError(f"{place}: 'answers' should be one text or more")
    name = str(record.get("id", f"{path.stem}/{number}"))
    return Question(name, required(record, "prompt", str, place), tuple(answers))
