"""Run one trial again, as an ordinary test that fails if it goes wrong again."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

from pytest_ft2.attempt import ACTIVE_RUN, cached_model, renew
from pytest_ft2.items import Campaign, ChunkItem, GateItem
from pytest_ft2.options import Settings

if TYPE_CHECKING:
    from ft2.campaign import Golden, Run

__all__ = ["Replay"]


class Replay:
    """Replaces the session's items by the one whose trial is asked for, and runs that trial."""

    def __init__(self, settings: Settings) -> None:
        assert settings.replay is not None
        self._settings = settings
        self._test, self._trial = settings.replay
        self._campaign: Campaign | None = None
        self._neighbour: pytest.Item | None = None
        self._run: Run | None = None
        self._golden: Golden | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        gates = {item.campaign.plan.key: item for item in items if isinstance(item, GateItem)}
        gate = gates.get(self._test)
        if gate is None:
            known = ", ".join(gates) or "none"
            raise pytest.UsageError(
                f"--ft2-replay: there is no gated test {self._test!r}; there are: {known}"
            )
        plan = gate.campaign.plan
        if plan.planned and self._trial not in plan.draws:
            raise pytest.UsageError(
                f"--ft2-replay: {self._test} has {len(plan.draws)} trials, numbered from 0, so "
                f"there is no trial {self._trial}"
            )
        self._campaign, self._neighbour = gate.campaign, gate
        # Which sets take part can depend on all golden runs; the item stands for the campaign.
        kept: list[pytest.Item] = [self._campaign.sets[0]]
        dropped = [item for item in items if item not in kept]
        items[:] = kept
        config.hook.pytest_deselected(
            items=[item for item in dropped if not isinstance(item, ChunkItem | GateItem)]
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> object:
        from ft2.campaign import Run, RunSpec, preserved_randomness, seed_everything
        from pytest_ft2.drawing import sample_fault
        from pytest_ft2.goldens import GoldenRunner

        assert self._campaign is not None
        assert self._neighbour is not None
        plan = self._campaign.plan
        goldens = GoldenRunner(self._campaign, self._neighbour, self._settings.model_fixture)
        with preserved_randomness():
            sets = list(range(len(plan.sets)))
            if plan.golden == "exclude":
                sets = [number for number in sets if not goldens.of_set(number).wrong_answer]
            number = sets[self._trial % len(sets)] if sets else 0
            chosen = self._campaign.sets[number]
            golden = goldens.of_set(number)
            problem = golden.problem
            if problem is None:
                fault = sample_fault(plan, self._trial, golden)
                self._golden = golden.golden
                self._run = Run(RunSpec(**plan.protected, fault=fault, record=True))
                seed_everything(plan.seed, f"{plan.key}\n{plan.sets[number]}")
            hooks = item.ihook
            hooks.pytest_runtest_logstart(nodeid=chosen.nodeid, location=chosen.location)
            if problem is not None:
                _report(chosen, problem)
            else:
                self._run_trial(chosen, nextitem)
            hooks.pytest_runtest_logfinish(nodeid=chosen.nodeid, location=chosen.location)
        return True

    def _run_trial(self, item: pytest.Function, nextitem: pytest.Item | None) -> None:
        assert self._run is not None
        item.config.stash[ACTIVE_RUN] = self._run
        renew(item)
        try:
            model = cached_model(item, self._settings.model_fixture)
            if model is not None:
                self._run.meet(model)
            runtestprotocol(item, nextitem=nextitem)
        finally:
            self._run.detach()
            item.config.stash[ACTIVE_RUN] = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "call" and self._run is not None and _is_active(item, self._run):
            assert isinstance(item, pytest.Function)
            injection = self._run.injection
            if report.passed and (injection is None or not injection.landed):
                report.outcome = "failed"
                report.longrepr = "The fault did not land, so this replay shows nothing."
            report.sections.append((f"ft2 trial {self._trial}", self._describe(item)))
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_exception_interact(
        self, node: pytest.Item, report: pytest.TestReport | pytest.CollectReport
    ) -> None:
        """Show the fault before ``--pdb`` opens."""
        if not node.config.getoption("usepdb"):
            return
        reporter = node.config.pluginmanager.getplugin("terminalreporter")
        for title, text in report.sections:
            if reporter is not None and title.startswith("ft2 trial"):
                reporter.section(title)
                reporter.write_line(text)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for report in terminalreporter.getreports("passed"):
            for title, text in report.sections:
                if title.startswith("ft2 trial"):
                    terminalreporter.section(title)
                    terminalreporter.write_line(text)
                    terminalreporter.write_line("The answer is right in spite of the fault.")

    def _describe(self, item: pytest.Function) -> str:
        assert self._run is not None
        assert self._golden is not None
        injection = self._run.injection
        lines = [f"fault:      {self._run.spec.fault}"]
        if injection is not None:
            lines += [
                f"landed:     {injection.landed}",
                f"value:      {injection.before} became {injection.after}",
            ]
        lines.append(f"protection: {self._run.spec.protection}, corrected {self._run.corrected}")
        faulty = self._run.golden
        decode = _decoder(item)
        for number, right in enumerate(self._golden.outputs):
            outputs = () if faulty is None else faulty.outputs
            wrong = outputs[number] if number < len(outputs) else ()
            lines += [
                f"call {number}, without the fault: {decode(right)}",
                f"call {number}, with the fault:    {decode(wrong)}",
            ]
        return "\n".join(lines)


def _is_active(item: pytest.Item, run: Run) -> bool:
    return item.config.stash.get(ACTIVE_RUN, None) is run


def _report(item: pytest.Item, problem: str) -> None:
    for when in ("setup", "call", "teardown"):
        failed = when == "call"
        item.ihook.pytest_runtest_logreport(
            report=pytest.TestReport(
                nodeid=item.nodeid,
                location=item.location,
                keywords={},
                outcome="failed" if failed else "passed",
                longrepr=problem if failed else None,
                when=when,
            )
        )


def _decoder(item: pytest.Function) -> Any:
    """Return what turns a call's token ids into text, if the test has a tokenizer at hand."""
    from transformers import PreTrainedTokenizerBase

    for value in (item.funcargs or {}).values():
        tokenizer = getattr(value, "tokenizer", value)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            return lambda rows: " | ".join(map(repr, tokenizer.batch_decode(list(rows))))
    return lambda rows: " | ".join(str(list(row)) for row in rows)
