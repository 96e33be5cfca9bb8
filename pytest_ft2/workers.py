"""What the owner learns from pytest-xdist; registered only when that is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pytest_ft2.crashes import CRASHES, note_crash
from pytest_ft2.owner import Owner

__all__ = ["WorkerHooks"]


class WorkerHooks:
    """Tells the owner what the workers collected, and which of them died in which trial."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._crashes = TemporaryDirectory(prefix="ft2-crashes-")

    def pytest_unconfigure(self) -> None:
        self._crashes.cleanup()

    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[CRASHES] = self._crashes.name

    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self._owner.ids = list(ids)

    def pytest_testnodedown(self, node: Any, error: object) -> None:
        # What Ctrl-C interrupts is reported as a crash of its worker, but no fault ended it.
        if error == "keyboard-interrupt":
            self._owner.interrupted = True

    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport, sched: Any) -> None:
        """Make a crash that is a trial's outcome its report, and have the other trials run."""
        record = self._owner.crashed(crashitem)
        if record is None:
            return
        note_crash(Path(self._crashes.name), crashitem, record["trial"])
        try:
            sched.mark_test_pending(crashitem)
        except NotImplementedError:
            # Of xdist's schedulers, those that keep tests together run nothing again.
            return
        report.when = "trial"  # type: ignore[assignment]
        report.outcome = "passed"
        report.longrepr = None
        report.ft2 = [record]  # type: ignore[attr-defined]
