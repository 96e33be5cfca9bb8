"""Judges: whether an answer is right, by a name that users give."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = ["JUDGES", "Judge", "judge"]

Judge = Callable[[Any, Any], bool]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _contains(said: str, answer: Any) -> bool:
    return str(answer) in said


def _equals(said: Any, answer: Any) -> bool:
    if isinstance(said, str):
        return said.strip() == str(answer).strip()
    return list(said) == list(answer)


def _number(said: str, answer: Any) -> bool:
    found = _NUMBER.findall(said)
    return bool(found) and float(found[-1].replace(",", "")) == float(answer)


JUDGES: dict[str, Judge] = {"contains": _contains, "equals": _equals, "number": _number}


def judge(name: str | Judge) -> Judge:
    """Return a judge: ``contains``, ``equals``, ``number`` (the last one said), or the callable.

    Raises
    ------
    ValueError
        If there is no judge of that name.
    """
    if callable(name):
        return name
    if name not in JUDGES:
        raise ValueError(
            f"unknown judge {name!r}: use one of {', '.join(JUDGES)}, or a function of what was "
            "said and the answer"
        )
    return JUDGES[name]
