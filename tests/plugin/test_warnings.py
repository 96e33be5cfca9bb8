"""Warnings in trials: the test's own marks hold, and nothing floods the summary."""

from __future__ import annotations

from tests.plugin.conftest import Project
from tests.plugin.seen import assert_passes, run_gated


def test_a_mark_that_turns_warnings_into_errors_holds_in_trials(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
import warnings

@GATE
@pytest.mark.filterwarnings("error:wrong")
def test_answer(model):
    if generate(model) != RIGHT:
        warnings.warn("wrong answer")
""",
    )
    assert_passes(run, plain_outcomes)


def test_a_warnings_mark_of_one_set_does_not_reach_another(project: Project) -> None:
    run = run_gated(
        project,
        """
import warnings

@GATE
@pytest.mark.parametrize("number", [
    pytest.param(0, marks=pytest.mark.filterwarnings("error:odd")), 1,
])
def test_answer(model, number):
    if number:
        warnings.warn("odd")
    assert generate(model) == RIGHT
""",
    )
    assert run.verdict == "pass"
    assert "masked" in {t["outcome"] for t in run.campaign["trials"] if t["params"] == "1"}


def test_warnings_of_trials_do_not_flood_the_summary(project: Project) -> None:
    run = run_gated(
        project,
        """
import warnings

@pytest.fixture
def old():
    yield
    warnings.warn("deprecated", DeprecationWarning)

@GATE
def test_answer(model, old):
    warnings.warn("deprecated", DeprecationWarning)
    assert generate(model) == RIGHT
""",
    )
    run.result.assert_outcomes(passed=3, warnings=2)
    assert run.result.stdout.str().count("DeprecationWarning: deprecated") == 2
