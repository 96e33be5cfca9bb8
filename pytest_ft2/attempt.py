"""Run a user's item once, with pytest's own setup, call and teardown."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pytest
from _pytest.config import parse_warning_filter

from pytest_ft2.deadline import Deadline
from pytest_ft2.reports import skip_reason

if TYPE_CHECKING:
    from ft2.campaign import Run

__all__ = ["ACTIVE_RUN", "Attempt", "attempt", "cached_model", "model_definition", "renew"]

Phase = Literal["setup", "call", "teardown"]

_LONGEST_LINE = 200

ACTIVE_RUN = pytest.StashKey["Run | None"]()


@dataclass
class Attempt:
    """How one run of an item ended.

    Attributes
    ----------
    failed:
        The phases that failed, with what they raised and a line that shows it.
    skipped, xfailed, xpassed:
        Why it was skipped, failed as expected, or was expected to fail and passed; or None.
    timed_out:
        Whether it took longer than it may.
    """

    seconds: float = 0.0
    failed: dict[Phase, tuple[BaseException | None, str]] = field(default_factory=dict)
    skipped: str | None = None
    xfailed: str | None = None
    xpassed: str | None = None
    timed_out: bool = False
    call_ran: bool = False

    @property
    def passed(self) -> bool:
        """Whether the test ran and every phase passed."""
        marked = (self.skipped, self.xfailed, self.xpassed)
        return self.call_ran and not self.failed and marked == (None, None, None)

    @property
    def shown(self) -> str:
        """A line on what failed, or why it did not run."""
        for _, line in self.failed.values():
            return line
        return self.skipped or self.xfailed or self.xpassed or "it did not run"


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
    item._report_sections.clear()
    renew(item)
    item.config.stash[ACTIVE_RUN] = run
    started = time.perf_counter()
    try:
        with _own_warnings(item), _short_failures(item.config):
            with Deadline(seconds, item.config) as deadline:
                _phase(item, "setup", result, run=run, model_fixture=model_fixture)
                if not result.failed and result.skipped is None and result.xfailed is None:
                    result.call_ran = True
                    _phase(item, "call", result)
            # What a teardown asks of the model is no part of the answer.
            run.detach()
            with Deadline(seconds, item.config) as closing:
                _phase(item, "teardown", result, nextitem=neighbour)
        if closing.expired:
            with Deadline(seconds, item.config):
                _finish_fixtures(item)
        result.timed_out = deadline.expired or closing.expired
    finally:
        run.detach()
        item.config.stash[ACTIVE_RUN] = None
        item._request = False  # type: ignore[assignment]
        item.funcargs = None  # type: ignore[assignment]
        item._report_sections.clear()
        item.user_properties[:] = properties
    result.seconds = time.perf_counter() - started
    return result


def _finish_fixtures(item: pytest.Function) -> None:
    """Finish the test's own fixtures that a teardown which was stopped left behind."""
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for definition in definitions:
            if definition.scope == "function":
                with suppress(Exception):
                    definition.finish(item._request)  # type: ignore[arg-type]


def renew(item: pytest.Function) -> None:
    """Make an item that has run before ready to run again: a new request, a new ``self``."""
    if isinstance(item.parent, pytest.Class):
        for name in ("_instance", "_obj"):
            vars(item).pop(name, None)
    item._initrequest()


def cached_model(item: pytest.Function, model_fixture: str) -> Any:
    """Return the model, if its fixture was set up before and is still alive; else None."""
    definition = model_definition(item, model_fixture)
    cached = None if definition is None else definition.cached_result
    return cached[0] if cached is not None and cached[2] is None else None


def model_definition(item: pytest.Function, model_fixture: str) -> pytest.FixtureDef[Any] | None:
    """Return the fixture that an item gets its model from; None if there is none."""
    definitions = item._fixtureinfo.name2fixturedefs.get(model_fixture)
    if definitions is None:
        # The test may ask for it by request.getfixturevalue.
        definitions = item.session._fixturemanager.getfixturedefs(model_fixture, item)
    return definitions[-1] if definitions else None


@contextmanager
def _own_warnings(item: pytest.Function) -> Generator[None, None, None]:
    """Apply the item's own filters, and keep its warnings out of the summary.

    The user's own item shows each of them once already.
    """
    with warnings.catch_warnings(record=True):
        for mark in item.iter_markers(name="filterwarnings"):
            for text in mark.args:
                warnings.filterwarnings(*parse_warning_filter(text, escape=False))
        yield


@contextmanager
def _short_failures(config: pytest.Config) -> Generator[None, None, None]:
    """Have failures told by their values alone: nobody sees a traceback, and one takes long."""
    with pytest.MonkeyPatch.context() as patch:
        # Without the terminal's plugin there is no such option, but the style is asked for.
        patch.setattr(config.option, "tbstyle", "value", raising=False)
        yield


def _phase(
    item: pytest.Function,
    phase: Phase,
    result: Attempt,
    *,
    run: Run | None = None,
    model_fixture: str = "",
    **kwargs: Any,
) -> None:
    hooks = item.ihook
    hook = getattr(hooks, f"pytest_runtest_{phase}")

    def call_hook() -> None:
        model = None if run is None else cached_model(item, model_fixture)
        if run is not None and model is not None:
            run.meet(model)
        hook(item=item, **kwargs)

    call = pytest.CallInfo.from_call(
        call_hook,
        when=phase,
        reraise=(pytest.exit.Exception, KeyboardInterrupt),
    )
    report = hooks.pytest_runtest_makereport(item=item, call=call)
    if report.failed:
        if call.excinfo is None:
            result.failed[phase] = (None, _line(str(report.longrepr)))
        else:
            result.failed[phase] = (call.excinfo.value, _line(call.excinfo.exconly(tryshort=True)))
    elif report.skipped and hasattr(report, "wasxfail"):
        result.xfailed = str(report.wasxfail) or "expected to fail"
    elif report.skipped:
        result.skipped = skip_reason(report)
    elif phase == "call" and hasattr(report, "wasxfail"):
        result.xpassed = str(report.wasxfail) or "expected to fail"


def _line(text: str) -> str:
    """Shorten what was raised to one line."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    first = first.removeprefix("AssertionError: ")
    return first if len(first) <= _LONGEST_LINE else f"{first[: _LONGEST_LINE - 1]}…"
