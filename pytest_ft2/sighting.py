"""Hand the model to the active run as soon as its fixture has made it, and not before the run.

A fixture of a wider scope than a test is set up in whichever run happens to need it first, so what
it does is no part of any run: no fault hits it, and it does not move the run's random state.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ft2.attempt import ACTIVE_RUN, model_definition
from pytest_ft2.options import Settings

if TYPE_CHECKING:
    from ft2.campaign import Run

__all__ = ["Sighting"]


class Sighting:
    """Watches fixtures being set up while a run is active."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._begun: weakref.WeakSet[Run] = weakref.WeakSet()
        self._wide_fixtures = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        run = request.config.stash.get(ACTIVE_RUN, None)
        if run is None:
            return (yield)
        is_model = self._is_model(fixturedef, request)
        if fixturedef.scope == "function":
            problem = self._begin(run)
            value = yield
            if is_model:
                problem = _problem(run.attach, value)
        else:
            with self._apart(run, fixturedef.argname):
                value = yield
            if is_model:
                run.meet(value)
            # One that is asked for by another of its kind is still used by that one alone.
            is_due = run in self._begun and not self._wide_fixtures
            problem = _problem(run.begin) if is_due else None
        # A fixture that fails before it is set up is left half set up by pytest.
        _fail(problem)
        return value

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        run = item.config.stash.get(ACTIVE_RUN, None)
        if run is not None:
            _fail(self._begin(run))

    def _is_model(self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> bool:
        """Whether the fixture is the model's, and not one that another of its name overrides."""
        name = self._settings.model_fixture
        if fixturedef.argname != name:
            return False
        return fixturedef is model_definition(request._pyfuncitem, name)

    def _begin(self, run: Run) -> str | None:
        self._begun.add(run)
        return _problem(run.begin)

    @contextmanager
    def _apart(self, run: Run, name: str) -> Generator[None, None, None]:
        """Have a fixture of a wider scope set up apart from the run."""
        from ft2.campaign import preserved_randomness, seed_everything
        from ft2.forward.clock import unheard

        self._wide_fixtures += 1
        try:
            with preserved_randomness(), nullcontext() if run.model is None else unheard(run.model):
                seed_everything(self._settings.seed, name)
                yield
        finally:
            self._wide_fixtures -= 1


def _problem(attach: Callable[..., None], *arguments: Any) -> str | None:
    """Attach; return why that cannot be done, or None."""
    try:
        attach(*arguments)
    except (TypeError, ValueError) as error:
        return f"ft2: {error}"
    return None


def _fail(problem: str | None) -> None:
    """Fail the test with the sentence alone: the traceback is none of its own."""
    if problem is not None:
        pytest.fail(problem, pytrace=False)
