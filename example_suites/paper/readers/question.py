"""One question, and what is said of a file that holds none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BadFileError", "Question", "load_json", "required"]


class BadFileError(ValueError):
    """A file of questions is missing or not in its format; the message names the place."""


@dataclass(frozen=True)
class Question:
    """A question with a definite answer.

    Attributes
    ----------
    id:
        Its name in its file.
    prompt:
        What the model is given.
    answers:
        Reference answers, each a right one; numbers as texts where the task asks for a number.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]


def load_json(path: Path) -> Any:
    """Read one JSON document.

    Raises
    ------
    BadFileError
        If there is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadFileError(f"{path} is not JSON in UTF-8: {error}") from error


def required(record: Any, name: str, kind: type, place: str) -> Any:
    """Return a field of a record.

    Parameters
    ----------
    record:
        What should be a JSON object.
    name, kind:
        The field, and the type of its value.
    place:
        Where the record stands, for the message.

    Raises
    ------
    BadFileError
        If the field is missing or of another type.
    """
    if not isinstance(record, dict):
        raise BadFileError(f"{place} should be a JSON object, not {type(record).__name__}")
    if not isinstance(record.get(name), kind):
        said = f"is {record[name]!r:.40}" if name in record else "is missing"
        raise BadFileError(f"{place}: {name!r} should be a {kind.__name__}, and it {said}")
    return record[name]
