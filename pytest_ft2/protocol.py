"""The protocols of chunks and gates."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_ft2.collection import late_marks
from pytest_ft2.deadline import keep_stderr, release_stderr
from pytest_ft2.golden_items import adopt
from pytest_ft2.items import ChunkItem, GateItem, tear_down
from pytest_ft2.marks import note_whether_gated
from pytest_ft2.options import Settings
from pytest_ft2.reports import send
from pytest_ft2.selection import put_chunks_in_order, refused_selection

__all__ = ["Campaigns"]


class Campaigns:
    """Runs chunks; leaves gates to the owner of the session."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def pytest_configure(self) -> None:
        keep_stderr()

    def pytest_unconfigure(self) -> None:
        release_stderr()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        yield
        # Behind every other plugin's hook, those that ask to be last included.
        problem = late_marks(items) or refused_selection(config, items)
        if problem is not None:
            _refuse(config, problem)
            items.clear()
        if self._settings.stop == "early" or self._settings.sampling == "stratified":
            # Shuffled, the first trials, which decide on the others, would be among the last.
            put_chunks_in_order(items)
        for item in items:
            if isinstance(item, GateItem):
                adopt(item.campaign)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        late = late_marks([item])
        if late is None:
            note_whether_gated(item, report)
        elif call.when != "teardown":
            # Whatever the test expects to happen to it, this is not it.
            report.outcome, report.longrepr = "failed", late
            vars(report).pop("wasxfail", None)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> object:
        if isinstance(item, ChunkItem):
            from pytest_ft2.chunk import run_chunk

            run_chunk(item, nextitem)
            return True
        if isinstance(item, GateItem):
            plan = {"kind": "plan", "plan": item.campaign.plan.as_plain()}
            send(item, "plan", [plan | {"teardown_failure": tear_down(item, nextitem)}])
            return True
        return None


def _refuse(config: pytest.Config, sentence: str) -> None:
    """End the session with `sentence`; a worker cannot, and hands it over as a failed collection.

    Raises
    ------
    pytest.UsageError
        Where this process owns the session.
    """
    if not hasattr(config, "workerinput"):
        raise pytest.UsageError(sentence)
    report = pytest.CollectReport(nodeid="", outcome="failed", longrepr=sentence, result=[])
    config.hook.pytest_collectreport(report=report)
