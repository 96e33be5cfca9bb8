"""Skips and expected failures, with and without a fault."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Project
from tests.plugin.seen import assert_passes, run_gated


def test_a_skip_that_only_a_fault_brings_makes_the_verdict_incomplete(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model):
    if generate(model) != RIGHT:
        pytest.skip("the model is not itself today")
""",
    )
    assert run.verdict == "incomplete"
    assert "the test skipped only with the fault (" in run.reason
    assert "the model is not itself today" in run.reason
    assert run.result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_xfail_that_only_a_fault_brings_makes_the_verdict_incomplete(
    project: Project,
) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model):
    if generate(model) != RIGHT:
        pytest.xfail("known to be shy")
""",
    )
    assert run.verdict == "incomplete"
    assert "the test is expected to fail only with the fault (known to be shy)" in run.reason
    assert run.result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_golden_run_that_skips_skips_its_chunks_and_its_gate(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model):
    pytest.skip("no model today")
""",
    )
    run.result.assert_outcomes(skipped=3)
    assert run.verdict is None
    assert run.campaign["trials"] == []
    assert run.result.ret == pytest.ExitCode.OK


def test_one_set_whose_golden_run_skips_makes_the_verdict_incomplete(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
@pytest.mark.parametrize("number", [0, 1])
def test_answer(model, number):
    if number:
        pytest.skip("not today")
    assert generate(model) == RIGHT
""",
    )
    assert run.verdict == "incomplete"
    assert "test_answer[1] was skipped (" in run.reason
    assert "use a skipif mark, which tells before" in run.reason


def test_sets_with_a_skip_mark_are_left_out_of_the_campaign(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
@pytest.mark.parametrize("number", [
    0,
    pytest.param(1, marks=pytest.mark.skip(reason="broken")),
    pytest.param(2, marks=pytest.mark.skipif(True, reason="broken here")),
    3,
])
def test_answer(model, number):
    assert generate(model) == RIGHT
""",
    )
    assert run.verdict == "pass"
    assert {trial["params"] for trial in run.campaign["trials"]} == {"0", "3"}
    run.result.assert_outcomes(passed=4, skipped=2)


def test_a_test_whose_sets_all_have_a_skip_mark_has_no_gate(project: Project) -> None:
    project.pytester.makepyfile(
        """
        import pytest

        @pytest.mark.skip(reason="broken")
        @pytest.mark.sdc_budget(1)
        def test_answer(model):
            raise AssertionError
        """
    )
    result = project.run("--ft2-faults=20")
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.parametrize("expected", ["RIGHT", "'another answer'"])
def test_a_golden_run_marked_xfail_makes_the_verdict_incomplete(
    project: Project, expected: str
) -> None:
    run = run_gated(
        project,
        f"""
@GATE
@pytest.mark.xfail(reason="never worked")
def test_answer(model):
    assert generate(model) == {expected}
""",
    )
    assert run.verdict == "incomplete"
    assert "is expected to fail (never worked), so there is no right answer to lose" in run.reason
    assert run.result.ret == pytest.ExitCode.TESTS_FAILED


def test_sets_marked_xfail_can_be_excluded(project: Project) -> None:
    run = run_gated(
        project,
        """
@pytest.mark.sdc_budget(100, golden="exclude")
@pytest.mark.parametrize("number", [
    0, 1, pytest.param(2, marks=pytest.mark.xfail(reason="never worked")),
])
def test_answer(model, number):
    assert number < 2
    assert generate(model) == RIGHT
""",
    )
    assert run.verdict == "pass"
    assert run.campaign["excluded"] == ["2"]
    assert {trial["params"] for trial in run.campaign["trials"]} == {"0", "1"}


def test_an_xfail_mark_whose_condition_is_false_does_nothing(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
@GATE
@pytest.mark.xfail(False, reason="elsewhere")
def test_answer(model):
    assert generate(model) == RIGHT
""",
    )
    assert_passes(run, plain_outcomes)
