"""XQuAD (``xquad.xx.json``): the question answering of XTREME, in SQuAD's format and a language."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from readers.question import Question
from readers.squad import squad_questions

__all__ = ["read_xquad"]

# The paper does not print its prompt; its models are asked in the passage's language, and the frame
# around it says nothing in any.
PROMPT = "{context}\nQ: {question}\nA:"


def read_xquad(path: Path) -> list[Question]:
    """Return the questions of a file; their names begin with the file's, which names the language.

    Raises
    ------
    BadFileError
        If the file is not in that format, or has no answerable question.
    """
    # The same questions have the same names in all languages.
    return [
        replace(question, id=f"{path.stem}/{question.id}")
        for question in squad_questions(path, PROMPT)
    ]
