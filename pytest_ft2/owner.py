"""The process that owns the session: it counts what is reported, and decides the gates."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Generator, Sequence
from typing import Any, Literal

import pytest
from _pytest._code.code import ReprFileLocation, TerminalRepr
from _pytest._io import TerminalWriter

from ft2.report import SPACE, CampaignResult, notes, table
from pytest_ft2.batching import Batching
from pytest_ft2.files import Files
from pytest_ft2.ledger import CampaignLedger, Ledger
from pytest_ft2.marks import is_gated
from pytest_ft2.options import Settings
from pytest_ft2.plan import Payload
from pytest_ft2.reports import payloads

__all__ = ["Owner"]

_PHASES: tuple[Literal["setup", "call", "teardown"], ...] = ("setup", "call", "teardown")
_GATE = re.compile(r".*[\[-]gate\]")

# An id that ends as ours do has no group behind it, whatever its parameters' ids hold.
_GROUPED = re.compile(r"(?P<plain>.*[\[-](gate|faults-\d+-\d+)\])(@.*)?")


class _Sentence(TerminalRepr):
    """A gate's reason, as pytest shows failures."""

    def __init__(self, text: str, path: str, line: int | None) -> None:
        self.text = text
        self.reprcrash = ReprFileLocation(path, (line or 0) + 1, text)

    def toterminal(self, tw: TerminalWriter) -> None:
        tw.line(self.text, red=True)

    def __str__(self) -> str:
        return self.text


class Owner:
    """Counts reports against plans; emits a gate's reports when all trials are in."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.ledger = Ledger()
        self._batching: dict[str, Batching] = defaultdict(Batching)
        self.ids: Sequence[str] = ()
        self._config = config
        self._files = Files(settings.json)
        self._has_groups = config.getoption("dist", "no") == "loadgroup"
        self._reported: set[str] = set()
        self._key_of_gate: dict[str, str] = {}
        self._ended: set[str] = set()
        self.interrupted = False
        self._nodes: dict[str, Any] = {}
        self._teardown_failures: dict[str, str] = {}
        self._saw_gated_test = False
        self._internal_error = False
        self._finished = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        if not session.config.option.collectonly:
            self._files.make_way()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:
            self.ids = [item.nodeid for item in session.items]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reported.add(report.nodeid)
        self._saw_gated_test = self._saw_gated_test or is_gated(report)
        if hasattr(report, "node"):
            self._nodes[report.nodeid] = report.node
        for payload in payloads(report):
            self.ledger.add(payload, self._without_group(report.nodeid))
            if report.when == "plan":  # type: ignore[comparison-overlap]
                self._key_of_gate[report.nodeid] = payload["plan"]["key"]
            if payload["kind"] == "trial":
                self._batching[payload["campaign"]].add(payload)
            if payload.get("teardown_failure"):
                self._teardown_failures[report.nodeid] = payload["teardown_failure"]
        if report.when == "teardown":
            self._ended.add(self._without_group(report.nodeid))

    def pytest_internalerror(self) -> None:
        self._internal_error = True

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        if session.config.option.collectonly:
            return (yield)
        try:
            result = yield
        except BaseException as error:
            self._emit_gates(finished=False)
            if isinstance(error, pytest.exit.Exception) and self._undecided():
                error.returncode = error.returncode or pytest.ExitCode.INTERRUPTED
            raise
        self._finished = not (session.shouldfail or session.shouldstop)
        self._emit_gates(finished=self._finished)
        if self._internal_error:
            # A worker's internal error alone can leave the exit status 0 (pytest-xdist#1017).
            pytest.exit("an internal error occurred, so the gates prove nothing", returncode=3)
        return result

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        results = self.results()
        asked = self._config.getoption("ft2_faults") is not None
        if asked and self._nothing_is_gated(results) and session.exitstatus == pytest.ExitCode.OK:
            # A misspelt marker must not look like a gate that passed.
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        self._files.write(results, self.ledger.environment)
        if self._files.unwritten and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        results = self.results()
        if results:
            self._summarise(results, terminalreporter)
        elif self.ids and not self._config.option.collectonly:
            terminalreporter.write_line(
                "ft2: no gate ran, the selected tests are some of its parameter sets only: "
                "select the test's name, without brackets"
                if self._saw_gated_test
                else "ft2: no gate ran: mark a test with @pytest.mark.sdc_budget(PERCENT)"
            )
        for sentence in self._files.unwritten:
            terminalreporter.write_line(f"ft2: {sentence}", red=True)

    def _summarise(
        self, results: list[CampaignResult], terminalreporter: pytest.TerminalReporter
    ) -> None:
        terminalreporter.section("silent data corruption (ft2)")
        for line in table(results).splitlines():
            terminalreporter.write_line(line)
        for result in results:
            good = result.verdict is not None and result.verdict.name == "pass"
            terminalreporter.write_line("")
            terminalreporter.write_line(result.nodeid, bold=True, green=good, red=not good)
            if result.verdict is None:
                campaign = self.ledger.campaigns[result.nodeid]
                terminalreporter.write_line(f"  {campaign.without_verdict}")
            for line in notes(result):
                terminalreporter.write_line(f"  {line}")
            for sentence in self._batching[result.nodeid].sentences:
                terminalreporter.write_line(f"  {sentence}")
        if any(result.counts.seen for result in results):
            terminalreporter.write_line("")
            terminalreporter.write_line(SPACE)

    def _nothing_is_gated(self, results: list[CampaignResult]) -> bool:
        return not results and not self._saw_gated_test

    def results(self) -> list[CampaignResult]:
        """Return every campaign's result as it stands, in the order of their gates."""
        places = {self._without_group(nodeid): place for place, nodeid in enumerate(self.ids)}
        campaigns = sorted(
            self.ledger.campaigns.values(),
            key=lambda campaign: places.get(campaign.plan.gate_id, len(places)),
        )
        return [campaign.result(finished=self._finished) for campaign in campaigns]

    def crashed(self, nodeid: str) -> Payload | None:
        """Take in that the process died which ran an item.

        Returns
        -------
        dict or None
            As :meth:`CampaignRecords.crashed` returns it, for the trial or batch that it died in.
        """
        chunk_id = self._without_group(nodeid)
        for campaign in self.ledger.campaigns.values():
            if chunk_id in map(campaign.plan.chunk_id, campaign.plan.chunks):
                return None if self.interrupted else campaign.crashed(chunk_id)
        return None

    def _undecided(self) -> bool:
        plain = map(self._without_group, self.ids)
        return any(_GATE.fullmatch(nodeid) and nodeid not in self._ended for nodeid in plain)

    def _emit_gates(self, *, finished: bool) -> None:
        for each in self.ledger.campaigns.values():
            self._see_selection(each)
        by_gate = {each.plan.gate_id: each for each in self.ledger.campaigns.values()}
        for nodeid in dict.fromkeys([*self.ids, *self._key_of_gate]):
            plain = self._without_group(nodeid)
            # What a gate said itself holds, whatever its name looks like.
            key = self._key_of_gate.get(nodeid)
            campaign = by_gate.get(plain) if key is None else self.ledger.campaigns[key]
            if campaign is not None:
                self._emit_gate(nodeid, campaign, finished=finished)
            elif finished and _GATE.fullmatch(plain) and nodeid not in self._reported:
                path = nodeid.partition("::")[0]
                sentence = (
                    "No worker got as far as this gate's first trial, so nothing was tested: look "
                    "at the errors above."
                )
                self._emit(nodeid, (path, None, nodeid.partition("::")[2]), sentence)

    def _without_group(self, nodeid: str) -> str:
        """Return a node id without the group that ``--dist loadgroup`` adds to it."""
        found = _GROUPED.fullmatch(nodeid) if self._has_groups else None
        return nodeid if found is None else found["plain"]

    def _see_selection(self, campaign: CampaignLedger) -> None:
        plan = campaign.plan
        ids = set(map(self._without_group, self.ids))
        chunks = {plan.chunk_id(trials): trials for trials in plan.chunks}
        campaign.selected = {trial for name in chunks.keys() & ids for trial in chunks[name]}
        campaign.gate_selected = plan.gate_id in ids or plan.key in self._key_of_gate.values()
        campaign.ended_chunks = chunks.keys() & self._ended
        campaign.ended = chunks.keys() & ids <= self._ended

    def _emit_gate(self, nodeid: str, campaign: CampaignLedger, *, finished: bool) -> None:
        location = campaign.plan.location
        if campaign.all_skipped is not None:
            if finished:
                self._emit(nodeid, location, skipped=campaign.all_skipped)
            return
        verdict = campaign.result(finished=finished).verdict
        if verdict is not None:
            failure = None if verdict.name == "pass" else f"{verdict.name}: {verdict.reason}"
            self._emit(nodeid, location, failure)

    def _emit(
        self,
        nodeid: str,
        location: tuple[str, int | None, str],
        failure: str | None = None,
        skipped: str | None = None,
    ) -> None:
        hook = self._config.hook
        path, line, _ = location
        location = (path, line, nodeid.rpartition("::")[2])
        hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
        for when in _PHASES:
            outcome: Literal["passed", "failed", "skipped"] = "passed"
            shown: TerminalRepr | tuple[str, int, str] | str | None = None
            if skipped is not None and when == "call":
                continue
            if skipped is not None and when == "setup":
                outcome, shown = "skipped", (path, (line or 0) + 1, skipped)
            elif failure is not None and when == "call":
                outcome, shown = "failed", _Sentence(failure, path, line)
            elif when == "teardown" and nodeid in self._teardown_failures:
                outcome, shown = "failed", self._teardown_failures[nodeid]
            report = pytest.TestReport(
                nodeid=nodeid,
                location=location,
                keywords={},
                outcome=outcome,
                longrepr=shown,
                when=when,
            )
            if nodeid in self._nodes:
                # junit tells testcases apart by node id and worker: this one has begun on a worker.
                report.node = self._nodes[nodeid]  # type: ignore[attr-defined]
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)
