"""How trials show while they run: a letter or a word each, and progress counted in trials."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from pytest_ft2.owner import Owner
from pytest_ft2.reports import payloads

__all__ = ["Progress"]

_SHOWN: dict[str | None, tuple[str, str, dict[str, bool]]] = {
    "masked": ("m", "MASKED", {"green": True}),
    "sdc": ("S", "SDC", {"red": True}),
    "due": ("D", "DUE", {"yellow": True}),
    None: ("H", "HARNESS ERROR", {"red": True}),
}
_CHUNK = re.compile(r"[\[-]faults-(?P<first>\d+)-(?P<last>\d+)\](@.*)?$")
_OURS = (
    "plan",
    "golden",
    "noise",
    "together",
    "begins",
    "behind",
    "problem",
    "cells",
    "strata",
    "waits",
)


class Progress:
    """Counts trials as the terminal counts items."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._done: set[str] = set()
        self._repeated = False
        self._ids: Sequence[str] = ()
        self._total = 0
        self._counts = False

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, Any] | None:
        if report.when in _OURS:
            return "", "", ""
        if report.when != "trial":  # type: ignore[comparison-overlap]
            return None
        record = payloads(report)[0]
        if self._repeated:
            return "", "", ""
        letter, word, markup = _SHOWN[record["outcome"]]
        category = record["outcome"] or "harness error"
        return category, letter, (f"{word} (trial {record['draw']})", markup)

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        reporter = session.config.pluginmanager.getplugin("terminalreporter")
        style = getattr(reporter, "_show_progress_info", None)
        if style in ("progress", "count"):
            reporter._get_progress_information_message = self._message
            self._counts = style == "count"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = next(iter(payloads(report)), {"kind": None})
        if record["kind"] == "trial":
            trial = f"{record['campaign']}#{record['trial']}"
            # A chunk whose worker died runs again: what is shown already is not counted again.
            self._repeated = trial in self._done
            self._done.add(trial)
        elif report.when not in _OURS:
            self._done.add(report.nodeid)

    def _message(self) -> str:
        if self._ids is not self._owner.ids:
            self._ids = self._owner.ids
            chunks = [chunk for chunk in map(_CHUNK.search, self._ids) if chunk]
            trials = sum(int(chunk["last"]) - int(chunk["first"]) + 1 for chunk in chunks)
            self._total = len(self._ids) + trials
        saved = sum(campaign.saved for campaign in self._owner.ledger.campaigns.values())
        done, total = len(self._done), max(1, self._total - saved, len(self._done))
        if self._counts:
            return f" [{done:{len(str(total))}d}/{total}]"
        return f" [{100 * done // total:3d}%]"
