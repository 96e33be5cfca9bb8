"""Reports that carry what a process learned to the process that decides.

Their values are plain: xdist drops a whole test, silently, when a report holds anything else.
"""

from __future__ import annotations

import time
from typing import Literal

import pytest

from pytest_ft2.plan import Payload

__all__ = ["payloads", "send", "skip_reason"]

_KEYWORDS = pytest.StashKey[dict[str, Literal[1]]]()
_PLAIN = frozenset([str, int, float, bool, type(None)])


def send(
    item: pytest.Item,
    when: str,
    payload: list[Payload],
    *,
    failure: str | None = None,
    skipped: str | None = None,
    seconds: float = 0.0,
    sections: list[tuple[str, str]] | None = None,
) -> None:
    """Report on `item`, with `payload` for whoever decides the gate.

    Parameters
    ----------
    when:
        The phase: pytest's own, or one of ours, which junit and ``--lf`` do not count.
    failure:
        What went wrong, if anything did.
    skipped:
        Why the item was skipped, if it was. Without either the report is a passed one.
    """
    _check_plain(payload)
    now = time.time()
    path, line, _ = item.location
    outcome = "passed"
    shown: str | tuple[str, int, str] | None = None
    if failure is not None:
        outcome, shown = "failed", failure
    elif skipped is not None:
        outcome, shown = "skipped", (path, (line or 0) + 1, skipped)
    report = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict(_keywords(item)),
        outcome=outcome,  # type: ignore[arg-type]
        longrepr=shown,
        when=when,  # type: ignore[arg-type]
        duration=seconds,
        start=now - seconds,
        stop=now,
        sections=sections or [],
        ft2=payload,
    )
    item.ihook.pytest_runtest_logreport(report=report)


def _keywords(item: pytest.Item) -> dict[str, Literal[1]]:
    """Return what the item's reports are found by, gathered once for a chunk's many reports."""
    if _KEYWORDS not in item.stash:
        gathered: dict[str, Literal[1]] = dict.fromkeys(item.keywords, 1)
        item.stash[_KEYWORDS] = gathered
    return item.stash[_KEYWORDS]


def payloads(report: pytest.TestReport) -> list[Payload]:
    """Return what a report carries."""
    return getattr(report, "ft2", [])


def skip_reason(report: pytest.TestReport) -> str:
    """Return why a skipped test was skipped."""
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else "skipped"
    return why.removeprefix("Skipped: ")


def _check_plain(value: object) -> None:
    """Refuse what xdist cannot carry; a subclass of str, or a numpy number, is such a thing."""
    if type(value) in _PLAIN:
        return
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_plain(key)
            _check_plain(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            _check_plain(entry)
    else:
        raise TypeError(f"a report cannot carry {value!r}, a {type(value).__name__}")
