"""Hand the model to the active run as soon as its fixture has made it, and not before the run.

A fixture of a wider scope than a test is set up in whichever run happens to need it first, so what
it does is no part of any run: no fault hits it, and it does not move the run's random state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from pytest_ft2.attempt import ACTIVE_RUN
from pytest_ft2.options import Settings

__all__ = ["Sighting"]


class Sighting:
    """Watches fixtures being set up while a run is active."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        run = request.config.stash.get(ACTIVE_RUN, None)
        if run is None:
            return (yield)
        is_model = fixturedef.argname == self._settings.model_fixture
        if fixturedef.scope == "function":
            _reach(run.begin)
            value = yield
            if is_model:
                _reach(run.attach, value)
            return value

        from ft2.campaign import preserved_randomness, seed_everything

        with preserved_randomness():
            seed_everything(self._settings.seed, fixturedef.argname)
            value = yield
        if is_model:
            run.meet(value)
        return value

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        run = item.config.stash.get(ACTIVE_RUN, None)
        if run is not None:
            _reach(run.begin)


def _reach(attach: Callable[..., None], *arguments: Any) -> None:
    """Attach, or fail the test with the sentence alone: the traceback is none of its own."""
    try:
        attach(*arguments)
    except (TypeError, ValueError) as error:
        pytest.fail(f"ft2: {error}", pytrace=False)
