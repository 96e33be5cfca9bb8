"""A trial is pytest's own run of the user's item, however that is written."""

from __future__ import annotations

import shlex

import pytest

from tests.plugin.conftest import Project
from tests.plugin.seen import DEBUGGER, assert_passes, run_gated


def test_a_model_asked_for_inside_the_test_is_reached(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(request):
    assert generate(request.getfixturevalue("model")) == RIGHT
""",
    )
    assert_passes(run, plain_outcomes)


def test_an_async_test_that_a_plugin_runs_is_gated(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
@pytest.fixture
def anyio_backend():
    return "asyncio"

@GATE
@pytest.mark.anyio
async def test_answer(model):
    assert generate(model) == RIGHT
""",
    )
    assert_passes(run, plain_outcomes)


def test_doctests_and_unittest_items_are_left_alone(project: Project) -> None:
    project.pytester.makepyfile(
        """
        import unittest

        def add(a, b):
            '''
            >>> add(1, 2)
            3
            '''
            return a + b

        class Case(unittest.TestCase):
            def test_add(self):
                self.assertEqual(add(1, 2), 3)

        def test_add():
            assert add(1, 2) == 3
        """
    )
    result = project.run("--ft2-faults=20", "--doctest-modules")
    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["*ft2: no gate ran: mark a test with*"])


@pytest.mark.parametrize(("answer", "opened"), [("RIGHT", 0), ("'another answer'", 1)])
def test_pdb_opens_for_a_failing_golden_run_and_never_for_a_trial(
    project: Project, answer: str, opened: int
) -> None:
    project.pytester.makepyfile(debugger=DEBUGGER)
    project.pytester.syspathinsert()
    run = run_gated(
        project,
        f"""
@GATE
def test_answer(model):
    assert generate(model) == {answer}
""",
        *shlex.split("--pdb --pdbcls=debugger:Debugger -s"),
    )
    assert run.result.stdout.str().count("DEBUGGER OPENED") == opened
    assert ("sdc" in run.outcomes) != bool(opened)
