"""The paper's own numbers, each from the one file that names where the paper says it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["MINIATURE", "paper_says", "rates", "reduction", "table_1", "table_2"]

_FILE = Path(__file__).resolve().parent / "published.json"
# What a miniature's name has beside that of the paper's model.
MINIATURE = "-mini"


def paper_says(figure: str, **facts: str) -> str:
    """Return what the paper says of a number, or nothing.

    Parameters
    ----------
    figure:
        The number of the figure.
    facts:
        Exactly what the file has of it beside where it stands; a miniature is asked about as the
        model that it stands for.
    """
    if "model" in facts:
        facts["model"] = facts["model"].removesuffix(MINIATURE)
    for number in _document()["numbers"]:
        told = {
            name: value
            for name, value in number.items()
            if name not in ("figure", "section", "says", "rate", "reduction")
        }
        if number["figure"] == figure and told == facts and "reduction" not in number:
            return str(number["says"])
    return ""


def reduction() -> float:
    """Return by how many per cent FT2 cuts SDCs on the average, as the paper has it."""
    return next(float(each["reduction"]) for each in _document()["numbers"] if "reduction" in each)


def rates() -> dict[str, float]:
    """Return the mean SDC rate over all cells of each protection that the paper names, per cent."""
    return {
        each["protection"]: float(each["rate"]) for each in _document()["numbers"] if "rate" in each
    }


def table_1() -> dict[str, list[str]]:
    """Return the kinds of layers that are critical, and those that each protection covers."""
    return {name: kinds for name, kinds in _document()["table 1"].items() if name != "section"}


def table_2() -> dict[str, tuple[str, ...]]:
    """Return the tasks of each of the paper's models."""
    return {name: tuple(tasks) for name, tasks in _document()["table 2"].items()}


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return document
