"""Sessions that end early: a verdict only where no missing trial could change it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.plugin.conftest import RIGHT, Project
from tests.plugin.gated import IN_TRIAL, RIGHT_OR_NOT, WORKERS, run_with, verdicts

FAILS = "def test_unrelated():\n    assert False\n"
GATE = "test_it.py::test_answer"


def gates_shown(result: pytest.RunResult) -> Sequence[str]:
    """Return the lines that name a gate as a test which failed or passed."""
    return [line for line in result.outlines if "gate]" in line]


@pytest.mark.parametrize("stop", ["-x", "--maxfail=1"])
def test_an_unrelated_failure_before_the_trials_leaves_no_verdict(
    project: Project, stop: str
) -> None:
    project.pytester.makepyfile(test_a=FAILS, test_it=RIGHT_OR_NOT.replace("BUDGET", "100"))
    result = project.run(stop, "-rA", "--ft2-faults=8", "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    assert verdicts(project) == {}
    assert gates_shown(result) == []


def test_an_unrelated_failure_after_the_trials_leaves_the_verdict_that_they_gave(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100"), test_z=FAILS)
    result = project.run("-x", "--ft2-faults=8", "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, passed=3)
    assert verdicts(project) == {GATE: "pass"}


def test_with_workers_an_unrelated_failure_never_makes_a_gate_of_missing_trials_pass(
    project: Project,
) -> None:
    test = IN_TRIAL.replace("EVENT", "pass").replace(
        "    answer", "    time.sleep(0.1)\n    answer"
    )
    slow = "import time\n" + FAILS.replace("    assert", "    time.sleep(1)\n    assert")
    project.pytester.makepyfile(test_a=slow, test_it=test)
    arguments = ("-n2", "-x", "--ft2-faults=100", "--ft2-chunk=10", "--ft2-json=out.json")
    result = project.run_apart(*arguments)
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    campaign = project.json()["campaigns"][0]
    assert campaign["masked"] + campaign["sdc"] < 100
    assert campaign["verdict"] is None
    assert gates_shown(result) == []
    result.stdout.fnmatch_lines(["test_it.py::test_answer * no verdict"])


@WORKERS
def test_a_gate_over_its_budget_is_counted_once_and_every_trial_is_run_before_it_stops(
    project: Project, workers: str
) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "0"))
    result = run_with(project, workers, "-x", "--ft2-faults=20", "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, passed=2)
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "fail"
    assert campaign["masked"] + campaign["sdc"] + campaign["due"] == 20


def test_a_budget_that_is_spent_already_fails_the_gate_of_an_interrupted_session(
    project: Project,
) -> None:
    test = RIGHT_OR_NOT.replace("BUDGET", "0") + "\n\ndef test_unrelated():\n    assert False\n"
    project.pytester.makepyfile(test_it=test)
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + "\ndef pytest_collection_modifyitems(items):\n    items.insert(2, items.pop())\n"
    )
    result = project.run("-x", "--ft2-faults=40", "--ft2-chunk=20", "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=2, passed=2)
    campaign = project.json()["campaigns"][0]
    assert campaign["masked"] + campaign["sdc"] == 20
    assert campaign["verdict"] == "fail"


INTERRUPTIONS = {
    "raise KeyboardInterrupt": pytest.ExitCode.INTERRUPTED,
    "pytest.exit('enough')": pytest.ExitCode.INTERRUPTED,
    "pytest.exit('enough', returncode=7)": 7,
    "pytest.exit('enough', returncode=0)": pytest.ExitCode.INTERRUPTED,
}


@pytest.mark.parametrize("event", INTERRUPTIONS)
def test_what_ends_the_session_in_a_trial_leaves_no_verdict(project: Project, event: str) -> None:
    project.pytester.makepyfile(test_it=IN_TRIAL.replace("EVENT", event))
    result = project.pytester.runpytest_inprocess(
        "-p", "no:randomly", "--ft2-faults=20", "--ft2-json=out.json", no_reraise_ctrlc=True
    )
    assert result.ret == INTERRUPTIONS[event]
    campaign = project.json()["campaigns"][0]
    assert 0 < campaign["masked"] < 20
    assert (campaign["sdc"], campaign["due"]) == (0, 0)
    assert campaign["verdict"] is None
    assert campaign["reason"] is None
    assert gates_shown(result) == []
    if result.ret == pytest.ExitCode.INTERRUPTED:
        result.stdout.fnmatch_lines(["  No verdict: the session ended before all trials had run."])


@pytest.mark.parametrize("event", ["raise KeyboardInterrupt", "pytest.exit('enough')"])
def test_what_ends_the_session_in_a_golden_run_leaves_no_verdict(
    project: Project, event: str
) -> None:
    test = IN_TRIAL.replace("answer != RIGHT and answer[:5] == RIGHT[:5]", "answer == RIGHT")
    project.pytester.makepyfile(test_it=test.replace("EVENT", event))
    result = project.pytester.runpytest_inprocess(
        "-p", "no:randomly", "--ft2-faults=8", "--ft2-json=out.json", no_reraise_ctrlc=True
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert verdicts(project) == {}
    assert gates_shown(result) == []


def test_an_interruption_in_the_last_fault_free_run_leaves_no_verdict(project: Project) -> None:
    # Fault-free runs: the item, the chunk's golden run, with protection, and after the trials.
    test = f"""
import pytest
from conftest import generate

right = []

@pytest.mark.sdc_budget(100)
def test_answer(model):
    answer = generate(model)
    right.extend([1] * (answer == {RIGHT}))
    if len(right) == LIMIT:
        raise KeyboardInterrupt
    assert answer == {RIGHT}
"""
    project.pytester.makepyfile(test_it=test.replace("LIMIT", "-1"))
    project.run("--ft2-faults=4", "--ft2-json=out.json")
    masked = project.json()["campaigns"][0]["masked"]
    project.pytester.makepyfile(test_it=test.replace("LIMIT", str(masked + 4)))
    result = project.pytester.runpytest_inprocess(
        "-p", "no:randomly", "--ft2-faults=4", "--ft2-json=out.json", no_reraise_ctrlc=True
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    campaign = project.json()["campaigns"][0]
    assert campaign["masked"] + campaign["sdc"] == 4
    assert campaign["verdict"] is None


def test_with_workers_what_ends_the_session_in_a_trial_leaves_no_verdict(project: Project) -> None:
    project.pytester.makepyfile(test_it=IN_TRIAL.replace("EVENT", "raise KeyboardInterrupt"))
    result = project.run_apart("-n2", "--ft2-faults=20", "--ft2-json=out.json")
    assert result.ret not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    campaign = project.json()["campaigns"][0]
    assert campaign["due"] == 0
    assert campaign["verdict"] is None
    assert gates_shown(result) == []
    result.stdout.no_fnmatch_line("*counts as a DUE*")


def test_a_gate_without_a_verdict_is_still_a_failure_to_run_again(project: Project) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "0"))
    project.run("--ft2-faults=20")
    project.pytester.makepyfile(test_it=IN_TRIAL.replace("EVENT", "raise KeyboardInterrupt"))
    project.pytester.runpytest_inprocess(
        "-p", "no:randomly", "--lf", "--ft2-faults=20", no_reraise_ctrlc=True
    )
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "0"))
    result = project.run("--lf", "--ft2-faults=20", "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(project) == {GATE: "fail"}
