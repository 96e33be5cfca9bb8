"""The ``sdc_budget`` marker: its signature, and what it asks for."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from pytest_ft2.options import FAULT_MODELS, MOST_FAULTS, PROTECTIONS

__all__ = [
    "MARK",
    "SIGNATURE",
    "SdcBudget",
    "check_items",
    "is_gated",
    "note_whether_gated",
    "read_mark",
]

MARK = "sdc_budget"
_ONE_OF_THEM = ("protected_model", "unprotected_model")

SIGNATURE = (
    "sdc_budget(percent, *, confidence=None, due_budget=5, faults=None, fault_model=None, "
    'protection=None, golden="require", per="model")'
)


@dataclass(frozen=True)
class SdcBudget:
    """What one ``sdc_budget`` marker asks for; None where it leaves that to the options."""

    percent: float
    confidence: float | None
    due_budget: float
    faults: int | None
    fault_model: str | None
    protection: str | None
    golden: Literal["require", "exclude"]
    per: Literal["model", "params"]


def _signature(
    percent: Any,
    *,
    confidence: Any = None,
    due_budget: Any = 5,
    faults: Any = None,
    fault_model: Any = None,
    protection: Any = None,
    golden: Any = "require",
    per: Any = "model",
) -> None:
    """The marker's arguments, for :func:`inspect.signature`."""


def read_mark(mark: pytest.Mark) -> SdcBudget:
    """Read and check a marker.

    Raises
    ------
    ValueError
        If an argument is missing, unknown, or has a value that it cannot have; the message is one
        sentence.
    """
    try:
        bound = inspect.signature(_signature).bind(*mark.args, **mark.kwargs)
    except TypeError as error:
        raise ValueError(f"sdc_budget: {error}; write {SIGNATURE}") from None
    bound.apply_defaults()
    given = bound.arguments
    _check(_is_number(given["percent"], 0, 100), "percent", given, "a number from 0 to 100")
    _check(_is_number(given["due_budget"], 0, 100), "due_budget", given, "a number from 0 to 100")
    confidence = given["confidence"]
    _check(
        confidence is None or (_is_number(confidence, 0.5, 1) and 0.5 < confidence < 1),
        "confidence",
        given,
        "None or a number between 0.5 and 1, such as 0.95",
    )
    faults = given["faults"]
    _check(
        faults is None or (isinstance(faults, int) and _is_number(faults, 1, MOST_FAULTS)),
        "faults",
        given,
        f"None or a whole number from 1 to {MOST_FAULTS}",
    )
    # What travels on a report is plain: no subclass of float, int or str, such as an enumeration.
    plain: dict[str, Any] = {
        "percent": float(given["percent"]),
        "due_budget": float(given["due_budget"]),
        "confidence": None if confidence is None else float(confidence),
        "faults": None if faults is None else int(faults),
    }
    for name, choices in (
        ("fault_model", (None, *FAULT_MODELS)),
        ("protection", (None, *PROTECTIONS)),
        ("golden", ("require", "exclude")),
        ("per", ("model", "params")),
    ):
        _check(given[name] in choices, name, given, f"one of {', '.join(map(repr, choices))}")
        plain[name] = choices[choices.index(given[name])]
    return SdcBudget(**plain)


def check_items(items: Iterable[object]) -> None:
    """Check what items ask for, whether or not faults are injected in this session.

    Raises
    ------
    pytest.Collector.CollectError
        If a marker is not as it should be, or a test wants its model protected and unprotected;
        the message is one sentence.
    """
    for item in items:
        if isinstance(item, pytest.Function):
            mark = item.get_closest_marker(MARK)
            try:
                if mark is not None:
                    read_mark(mark)
                if all(name in item.fixturenames for name in _ONE_OF_THEM):
                    raise ValueError(
                        f"{' and '.join(_ONE_OF_THEM)} are the same model: a test uses one of them"
                    )
            except ValueError as error:
                raise pytest.Collector.CollectError(f"{item.nodeid}: {error}.") from None


def note_whether_gated(item: pytest.Item, report: pytest.TestReport) -> None:
    """Have a report say whether its item carries the marker.

    A report's keywords do not tell: they hold the names of folders too.
    """
    report.ft2_gated = item.get_closest_marker(MARK) is not None  # type: ignore[attr-defined]


def is_gated(report: pytest.TestReport) -> bool:
    """Whether a report is one on an item that carries the marker."""
    return getattr(report, "ft2_gated", False)


def _is_number(value: Any, least: float, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and least <= value <= most


def _check(right: bool, name: str, given: dict[str, Any], should_be: str) -> None:
    if not right:
        raise ValueError(f"sdc_budget: {name} should be {should_be}, not {given[name]!r}")
