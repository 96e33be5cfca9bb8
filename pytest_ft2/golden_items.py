"""Watch the user's own items: each is a golden run of its parameter set."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from typing import Any

import pytest

from pytest_ft2.attempt import ACTIVE_RUN, cached_model
from pytest_ft2.items import Campaign
from pytest_ft2.options import Settings
from pytest_ft2.reports import skip_reason

__all__ = ["GoldenItems", "adopt"]

_MEMBERSHIP = pytest.StashKey[tuple[Campaign, int]]()


def adopt(campaign: Campaign) -> None:
    """Let the user's items of a campaign be watched."""
    for number, item in enumerate(campaign.sets):
        item.stash[_MEMBERSHIP] = (campaign, number)


class GoldenItems:
    """Records what the model computes while a user's item runs, and reports what it saw."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._own: Any = None
        self._cleanup = ExitStack()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        if _MEMBERSHIP in item.stash and item.config.stash.get(ACTIVE_RUN, None) is None:
            assert isinstance(item, pytest.Function)
            self._begin(item)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if self._own is not None and (call.when == "call" or not report.passed):
            self._add_payload(item, call, report)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            if self._own is not None:
                self._own.detach()
                self._own = None
                item.config.stash[ACTIVE_RUN] = None
                self._cleanup.close()

    def _begin(self, item: pytest.Function) -> None:
        from ft2.campaign import Run, RunSpec, preserved_randomness, seed_everything

        campaign, number = item.stash[_MEMBERSHIP]
        plan = campaign.plan
        self._cleanup.enter_context(preserved_randomness())
        seed_everything(plan.seed, f"{plan.key}\n{plan.sets[number]}")
        self._own = Run(RunSpec(record=True))
        item.config.stash[ACTIVE_RUN] = self._own
        model = cached_model(item, self._settings.model_fixture)
        if model is not None:
            self._own.meet(model)

    def _add_payload(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        from pytest_ft2.goldens import golden_payload, state_of

        campaign, number = item.stash[_MEMBERSHIP]
        golden = self._own.golden
        skipped = report.skipped and not hasattr(report, "wasxfail")
        payload = golden_payload(
            campaign.plan,
            campaign.plan.sets[number],
            passed=report.passed,
            skipped=skip_reason(report) if skipped else None,
            wrong_answer=not report.passed
            and not skipped
            and call.when == "call"
            and self._own.attach_error is None,
            digest=None if golden is None else golden.digest,
            model=None if golden is None else golden.model.fingerprint,
        )
        if golden is not None and report.passed:
            state_of(campaign).by_item[number] = golden.digest
        report.ft2 = [payload]  # type: ignore[attr-defined]
