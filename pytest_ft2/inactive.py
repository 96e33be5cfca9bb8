"""Say that gated tests ran without faults, when campaigns are switched off."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_ft2.marks import is_gated, note_whether_gated

__all__ = ["Inactive"]


class Inactive:
    """Counts the marked tests that run, for one line at the end."""

    def __init__(self) -> None:
        self._marked: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        note_whether_gated(item, report)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if is_gated(report):
            self._marked.add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._marked:
            count = len(self._marked)
            tests = "1 gated test" if count == 1 else f"{count} gated tests"
            terminalreporter.write_line(
                f"ft2: {tests} ran once, without faults, so no gate was measured; "
                "--ft2-faults=500 measures"
            )
