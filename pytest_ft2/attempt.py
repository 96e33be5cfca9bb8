"""Run a user's item once, with pytest's own setup, call and teardown."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pytest_ft2.deadline import Deadline

if TYPE_CHECKING:
    from ft2.campaign import Run

__all__ = ["ACTIVE_RUN", "Attempt", "attempt", "cached_model"]

Phase = Literal["setup", "call", "teardown"]

ACTIVE_RUN = pytest.StashKey["Run | None"]()


@dataclass
class Attempt:
    """How one run of an item ended.

    Attributes
    ----------
    failed:
        The phases that failed, with what they raised and how pytest shows it.
    skipped, xfailed:
        Why it was skipped or failed as expected, or None.
    timed_out:
        Whether it took longer than it may.
    """

    seconds: float = 0.0
    failed: dict[Phase, tuple[BaseException | None, str]] = field(default_factory=dict)
    skipped: str | None = None
    xfailed: str | None = None
    timed_out: bool = False
    call_ran: bool = False

    @property
    def passed(self) -> bool:
        """Whether the test ran and every phase passed."""
        return (
            self.call_ran and not self.failed and self.skipped is None and self.xfailed is None
        )

    @property
    def shown(self) -> str:
        """The last line of what failed, or why it did not run."""
        for _, text in self.failed.values():
            lines = [line for line in text.strip().splitlines() if line.startswith("E ")]
            return (lines[0][1:] if lines else text.strip().splitlines()[-1]).strip()
        return self.skipped or self.xfailed or "it did not run"


def attempt(
    item: pytest.Function,
    neighbour: pytest.Item,
    run: Run,
    model_fixture: str,
    seconds: float | None = None,
) -> Attempt:
    """Run `item`, with `run` attached to its model.

    It is what pytest does for an item, without the reports and without ``--pdb``: a wrong answer
    that a fault brings is counted, not debugged.

    Parameters
    ----------
    neighbour:
        Another item of the same parent: what is set up for both stays set up.
    run:
        What to attach.
    model_fixture:
        Name of the fixture that returns the model.
    seconds:
        How long it may take.
    """
    result = Attempt()
    properties = list(item.user_properties)
    item._initrequest()
    item.config.stash[ACTIVE_RUN] = run
    started = time.perf_counter()
    try:
        model = cached_model(item, model_fixture)
        if model is not None:
            run.attach(model)
        with Deadline(seconds) as deadline:
            _phase(item, "setup", result)
            if not result.failed and result.skipped is None and result.xfailed is None:
                result.call_ran = True
                _phase(item, "call", result)
        result.timed_out = deadline.expired
        _phase(item, "teardown", result, nextitem=neighbour)
    finally:
        run.detach()
        item.config.stash[ACTIVE_RUN] = None
        item._request = False  # type: ignore[assignment]
        item.funcargs = None  # type: ignore[assignment]
        item._report_sections.clear()
        item.user_properties[:] = properties
    result.seconds = time.perf_counter() - started
    return result


def cached_model(item: pytest.Function, model_fixture: str) -> Any:
    """Return the model, if its fixture was set up before and is still alive; else None."""
    definitions = item._fixtureinfo.name2fixturedefs.get(model_fixture)
    cached = definitions[-1].cached_result if definitions else None
    return cached[0] if cached is not None and cached[2] is None else None


def _phase(item: pytest.Function, phase: Phase, result: Attempt, **kwargs: Any) -> None:
    hook = {
        "setup": item.ihook.pytest_runtest_setup,
        "call": item.ihook.pytest_runtest_call,
        "teardown": item.ihook.pytest_runtest_teardown,
    }[phase]
    call = pytest.CallInfo.from_call(
        lambda: hook(item=item, **kwargs),
        when=phase,
        reraise=(pytest.exit.Exception, KeyboardInterrupt),
    )
    report = item.ihook.pytest_runtest_makereport(item=item, call=call)
    if report.failed:
        error = None if call.excinfo is None else call.excinfo.value
        result.failed[phase] = (error, str(report.longrepr))
    elif report.skipped and hasattr(report, "wasxfail"):
        result.xfailed = str(report.wasxfail) or "expected to fail"
    elif report.skipped:
        result.skipped = str(report.longrepr[2]) if report.longrepr else "skipped"
    elif phase == "call" and hasattr(report, "wasxfail"):
        result.xfailed = f"passed although expected to fail: {report.wasxfail}"
