"""What the owner learns from pytest-xdist; registered only when that is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pytest_ft2.crashes import CRASHES, RESTARTS, note_crash
from pytest_ft2.options import Settings
from pytest_ft2.owner import Owner
from pytest_ft2.shares import GPUS, gpus_here, share, too_many_workers

__all__ = ["WorkerHooks"]


# Of xdist's schedulers, those that keep tests together run nothing again, and may hang.
_RESTARTING = ("load", "worksteal")


class WorkerHooks:
    """Gives workers their shares of the machine, and tells the owner what they did.

    That is what they collected, and which of them died in which trial.
    """

    def __init__(self, owner: Owner, settings: Settings) -> None:
        self._owner = owner
        self._device = settings.device or ""
        self._gpus = 0
        self._crashes = TemporaryDirectory(prefix="ft2-crashes-")

    def pytest_unconfigure(self) -> None:
        self._crashes.cleanup()

    def pytest_xdist_setupnodes(self, specs: Sequence[Any]) -> None:
        here = [spec for spec in specs if spec.popen and not spec.via]
        gpus = gpus_here()
        self._gpus = len(gpus)
        problem = too_many_workers(len(here), len(gpus))
        if problem is not None and self._device.startswith("cuda"):
            raise pytest.UsageError(problem)
        for number, spec in enumerate(here):
            spec.env = {**share(number, len(here), gpus), **spec.env}

    def pytest_configure_node(self, node: Any) -> None:
        option = node.config.option
        node.workerinput[CRASHES] = self._crashes.name
        node.workerinput[RESTARTS] = option.dist in _RESTARTING and option.maxworkerrestart != "0"
        node.workerinput[GPUS] = self._gpus

    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self._owner.ids = list(ids)

    def pytest_testnodedown(self, node: Any, error: object) -> None:
        # What Ctrl-C interrupts is reported as a crash of its worker, but no fault ended it.
        if error == "keyboard-interrupt":
            self._owner.interrupted = True

    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport, sched: Any) -> None:
        """Make a crash that is a trial's outcome its report, and have the other trials run.

        Those of a batch that ended its worker run again, one by one.
        """
        record = self._owner.crashed(crashitem)
        if record is None:
            return
        note_crash(Path(self._crashes.name), crashitem, record.get("trial"))
        try:
            sched.mark_test_pending(crashitem)
        except NotImplementedError:
            # Of xdist's schedulers, those that keep tests together run nothing again.
            return
        report.when = record["kind"]
        report.outcome = "passed"
        report.longrepr = None
        report.ft2 = [record]  # type: ignore[attr-defined]
