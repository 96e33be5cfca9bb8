"""GSM8K (``test.jsonl``): word problems, whose answer is the number behind ``####``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from judging import as_number
from readers.question import BadFileError, Question, required

__all__ = ["gsm8k_question"]

PROMPT = "Question: {question}\nAnswer: Let's think step by step."
_MARK = "####"


def gsm8k_question(path: Path, number: int, record: Mapping[str, Any], place: str) -> Question:
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
        If the line is not in GSM8K's format.
    """
    question = required(record, "question", str, place)
    answer = required(record, "answer", str, place)
    _, mark, final = answer.rpartition(_MARK)
    if not mark or as_number(final) is None:
        raise BadFileError(f"{place}: 'answer' should end with {_MARK} and a number")
    return Question(f"{path.stem}/{number}", PROMPT.format(question=question), (final.strip(),))
