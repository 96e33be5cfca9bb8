"""Trials that end their process or never end: what is lost never shrinks the denominator."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pytest_ft2.timeouts import golden_timeout, trial_timeout
from tests.plugin.conftest import RIGHT, Project
from tests.plugin.gated import IN_TRIAL, RIGHT_OR_NOT, WORKERS, run_with, verdicts


def write_crash(project: Project, event: str, budget: str) -> None:
    test = IN_TRIAL.replace("EVENT", event).replace("(100)", budget)
    project.pytester.makepyfile(test_it=test)


CRASHING = ("--ft2-faults=8", "--ft2-chunk=8", "--ft2-json=out.json")


LOST_DEVICE = (
    'raise __import__("torch").AcceleratorError("CUDA error: device-side assert triggered")'
)
"""What torch raises where a kernel's assertion failed: no work on the device succeeds any more."""


@pytest.mark.parametrize(
    ("scheduling", "event", "seed", "outcomes"),
    # Trials that end their workers, and one such between SDCs.
    [("worksteal", "os._exit(0)", 2, "mdmmmmdm"), ("load", LOST_DEVICE, 10, "mmmsdmms")],
)
def test_a_trial_that_ends_its_worker_is_a_due_and_the_others_run_elsewhere(
    project: Project, scheduling: str, event: str, seed: int, outcomes: str
) -> None:
    arguments = (*CRASHING, f"--ft2-seed={seed}")
    write_crash(project, "pass", "(100)")
    project.run(*arguments)
    expected = [trial["outcome"][0] for trial in project.json()["campaigns"][0]["trials"]]
    assert "".join(expected) == outcomes.replace("d", "s")
    # Of wrong answers only those whose first token is right are the event.
    write_crash(project, event, "(100, due_budget=100)")
    result = project.run_apart("-n2", f"--dist={scheduling}", *arguments)
    campaign = project.json()["campaigns"][0]
    assert "".join(trial["outcome"][0] for trial in campaign["trials"]) == outcomes
    assert campaign["verdict"] == "pass", campaign["reason"]
    assert result.ret == pytest.ExitCode.OK
    shown = result.parseoutcomes()
    assert [shown.get(name, 0) for name in ("masked", "sdc", "due")] == [
        outcomes.count(name) for name in "msd"
    ]
    assert shown["passed"] == 3


@pytest.mark.parametrize("arguments", [("--dist=loadscope",), ("--max-worker-restart=0",)])
def test_trials_behind_a_lost_device_that_no_other_process_runs_are_lost_and_no_dues(
    project: Project, arguments: tuple[str, ...]
) -> None:
    write_crash(project, LOST_DEVICE, "(100, due_budget=100)")
    result = project.run_apart("-n1", *arguments, *CRASHING)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "incomplete"
    assert "The device cannot be trusted since trial " in campaign["reason"]
    assert campaign["due"] == 1
    assert campaign["masked"] + campaign["sdc"] + campaign["due"] < 8


def test_a_device_that_a_batch_loses_makes_no_trial_a_due(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*arguments: object) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("ft2.campaign.batch_engine.BatchEngine.run", lose)
    write_crash(project, "pass", "(100)")
    project.run(*CRASHING, "-o", "ft2_batch=8")
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "incomplete"
    assert "since a batch of test_it.py::test_answer[faults-0-7] ended" in campaign["reason"]
    assert "use --ft2-batch=1" in campaign["reason"]
    assert campaign["trials"] == []


LOSING_BATCHES = """
import os
from ft2.campaign.batch_engine import BatchEngine


def lose(engine, trials, done):
    EVENT


BatchEngine.run = lose
"""


@pytest.mark.parametrize(("workers", "event"), [("-n1", "os._exit(0)"), ("-n2", LOST_DEVICE)])
def test_trials_whose_batch_ends_its_worker_run_one_by_one_elsewhere(
    project: Project, workers: str, event: str
) -> None:
    write_crash(project, "pass", "(100)")
    project.run(*CRASHING)
    expected = project.json()["campaigns"][0]["trials"]
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + LOSING_BATCHES.replace("EVENT", event))
    result = project.run_apart(workers, *CRASHING, "-o", "ft2_batch=8")
    assert result.ret == pytest.ExitCode.OK
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "pass", campaign["reason"]
    for name in ("trial", "fault", "outcome", "after"):
        assert [each[name] for each in campaign["trials"]] == [each[name] for each in expected]
    assert {each["batch"] for each in campaign["trials"]} == {1}
    result.stdout.fnmatch_lines(["*8 trials ran one at a time: their batch ended its process (8)."])
    assert result.parseoutcomes()["passed"] == 3


def test_trials_whose_batch_ends_a_worker_that_is_not_replaced_are_lost(project: Project) -> None:
    write_crash(project, "pass", "(100)")
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + LOSING_BATCHES.replace("EVENT", "os._exit(0)"))
    arguments = ("-n1", "--max-worker-restart=0", "-o", "ft2_batch=8")
    result = project.run_apart(*CRASHING, *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "incomplete"
    assert (
        "A worker died while it computed a batch of test_it.py::test_answer" in campaign["reason"]
    )
    assert "its 8 trials were lost: use --ft2-batch=1" in campaign["reason"]
    assert campaign["due"] == 0


def test_trials_that_end_their_workers_are_held_against_their_budget(project: Project) -> None:
    write_crash(project, "os._exit(0)", "(100, due_budget=1)")
    result = project.run_apart("-n1", *CRASHING, "--ft2-seed=2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "fail"
    assert f"{campaign['due']} of 8 trials ended in a detected error" in campaign["reason"]


def test_what_is_lost_with_a_worker_that_is_not_replaced_makes_the_gate_incomplete(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=IN_TRIAL.replace("EVENT", "os._exit(0)"))
    arguments = ("-n2", "--ft2-faults=20", "--ft2-chunk=20", "--ft2-json=out.json")
    result = project.run_apart(*arguments, "--max-worker-restart=0")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    campaign = project.json()["campaigns"][0]
    assert campaign["planned"] == 20
    assert campaign["due"] == 1
    assert campaign["verdict"] == "incomplete"
    first, *rest = [trial["trial"] for trial in campaign["trials"] if trial["outcome"] == "due"]
    assert rest == []
    result.stdout.fnmatch_lines(
        [
            f"incomplete: A worker died in trial *, which counts as a DUE, and the {19 - first} "
            "trials behind it were lost: `pytest "
            f"--ft2-replay='test_it.py::test_answer#{first}' --ft2-faults=20` shows what ends *"
        ]
    )
    lost = campaign["planned"] - campaign["masked"] - campaign["sdc"] - campaign["due"]
    assert campaign["reason"].endswith(f"{lost} of 20 trials have no outcome.")


def test_a_worker_that_dies_in_the_last_trial_and_is_not_replaced_leaves_no_complete_gate(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=IN_TRIAL.replace("EVENT", "os._exit(0)"))
    arguments = ("-n2", "--ft2-faults=2", "--ft2-chunk=2", "--ft2-json=out.json")
    result = project.run_apart(*arguments, "--max-worker-restart=0")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    campaign = project.json()["campaigns"][0]
    assert (campaign["masked"], campaign["due"]) == (1, 1)
    assert campaign["verdict"] == "incomplete"
    result.stdout.fnmatch_lines(
        ["incomplete: A worker died in trial 1, *and the fault-free run behind it was lost: *"]
    )


@pytest.mark.parametrize("event", ["os._exit(0)", "request.addfinalizer(lambda: os._exit(0))"])
def test_a_trial_that_leaves_this_process_does_not_leave_it_as_a_success(
    project: Project, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A session that a worker's test starts is no worker, although it inherits the variable.
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    test = IN_TRIAL.replace("EVENT", event).replace("(model)", "(model, request)", 1)
    project.pytester.makepyfile(test_it=test)
    (project.path / "out.json").write_text('"of an older run"')
    result = project.run_apart("-n0", "--ft2-faults=20", "--ft2-json=out.json")
    assert result.ret == 3
    assert not (project.path / "out.json").exists()
    result.stderr.fnmatch_lines(
        [
            "ft2: a trial ended the process with os._exit, so there is no verdict; run with -n 1 "
            "(pytest-xdist) to have it counted as a DUE"
        ]
    )


@pytest.mark.parametrize(
    ("workers", "hang"),
    [("-n0", "time.sleep(60)"), ("-n0", "while True: pass"), ("-n2", "time.sleep(60)")],
)
def test_a_trial_that_hangs_is_a_due(project: Project, workers: str, hang: str) -> None:
    test = IN_TRIAL.replace("EVENT", hang).replace("(100)", "(100, due_budget=100)")
    project.pytester.makepyfile(test_it=test)
    result = run_with(
        project, workers, "--ft2-faults=8", "--ft2-trial-timeout=0.5", "--ft2-json=out.json"
    )
    assert result.ret == pytest.ExitCode.OK
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "pass"
    due = [trial for trial in campaign["trials"] if trial["outcome"] == "due"]
    assert due
    assert all(0.5 <= trial["seconds"] < 5 for trial in due)
    assert campaign["masked"] + campaign["sdc"] + campaign["due"] == 8


def test_a_teardown_that_hangs_is_stopped_and_leaves_the_fixtures_of_later_trials_fresh(
    project: Project,
) -> None:
    test = IN_TRIAL.replace("EVENT", "slow.append(30)").replace("(100)", "(100, due_budget=100)")
    fixtures = """
@pytest.fixture
def fresh():
    return []

@pytest.fixture
def slow(fresh):
    delay = [0]
    yield delay
    time.sleep(delay[-1])

@pytest.fixture
def last(slow):
    yield
"""
    test = test.replace("(model)", "(model, fresh, slow, last)", 1)
    test = test.replace("    answer =", "    assert not fresh\n    fresh.append(1)\n    answer =")
    project.pytester.makepyfile(test_it=test + fixtures)
    result = project.run("--ft2-faults=8", "--ft2-trial-timeout=0.5", "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.OK
    campaign = project.json()["campaigns"][0]
    assert campaign["due"] > 0
    assert campaign["masked"] + campaign["sdc"] + campaign["due"] == 8


STUBBORN = """for _ in range(2):
            try:
                time.sleep(60)
            except BaseException:
                pass
"""


def test_a_trial_that_lets_no_exception_through_is_stopped_all_the_same(project: Project) -> None:
    test = IN_TRIAL.replace("EVENT", STUBBORN).replace("(100)", "(100, due_budget=100)")
    project.pytester.makepyfile(test_it=test)
    started = time.monotonic()
    project.run("--ft2-faults=4", "--ft2-trial-timeout=0.2", "--ft2-json=out.json")
    assert time.monotonic() - started < 30
    campaign = project.json()["campaigns"][0]
    assert campaign["due"] > 0
    assert campaign["masked"] + campaign["sdc"] + campaign["due"] == 4


@pytest.mark.parametrize("mark", ["timeout(1)", "timeout(1, func_only=True)"])
def test_a_timeout_mark_of_the_user_holds_for_each_trial_and_not_for_the_chunk(
    project: Project, mark: str
) -> None:
    test = IN_TRIAL.replace("EVENT", "time.sleep(60)")
    test = test.replace("(100)", "(100, due_budget=100)")
    test = test.replace("def test", f"@pytest.mark.{mark}\ndef test")
    test = test.replace("    answer =", "    time.sleep(0.3)\n    answer =")
    project.pytester.makepyfile(test_it=test)
    result = project.run("--ft2-faults=4", "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.OK
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "pass"
    due = [trial for trial in campaign["trials"] if trial["outcome"] == "due"]
    assert due
    assert all(1 <= trial["seconds"] < 5 for trial in due)


@dataclass
class _Plan:
    trial_timeout: float | None = None


@pytest.mark.parametrize(
    ("golden", "asked", "expected"), [(0.1, None, 10.0), (2.0, None, 40.0), (2.0, 3.0, 3.0)]
)
def test_a_trial_may_take_twenty_golden_runs_and_at_least_ten_seconds(
    pytester: pytest.Pytester, golden: float, asked: float | None, expected: float
) -> None:
    item: Any = pytester.getitem("def test_it(): pass", "test_it")
    plan: Any = _Plan(asked)
    assert trial_timeout(item, plan, golden) == expected


def test_the_shortest_of_the_timeouts_that_were_asked_for_holds(pytester: pytest.Pytester) -> None:
    source = "import pytest\n@pytest.mark.timeout(5)\ndef test_it(): pass"
    item: Any = pytester.getitem(source, "test_it")
    for asked, expected in ((None, 5.0), (7.0, 5.0), (2.0, 2.0)):
        plan: Any = _Plan(asked)
        assert trial_timeout(item, plan, 100.0) == expected


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("timeout(5)", 5.0),
        ("timeout(timeout=5)", 5.0),
        ("timeout(0)", None),
        ("timeout(5, func_only=True)", None),
        ("filterwarnings('default')", 7.0),
    ],
)
def test_a_fault_free_run_has_the_users_own_timeout(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, mark: str, expected: float | None
) -> None:
    monkeypatch.setenv("PYTEST_TIMEOUT", "7")
    item: Any = pytester.getitem(
        f"import pytest\n@pytest.mark.{mark}\ndef test_it(): pass", "test_it"
    )
    assert golden_timeout(item) == expected


HANGING = f"""
import time
import pytest
from conftest import generate

RUNS = []

@pytest.fixture(scope="module")
def wide():
    yield
    if HANGS == "teardown":
        time.sleep(60)

@pytest.mark.timeout(2)
@pytest.mark.sdc_budget(100)
def test_answer(model, wide):
    RUNS.append(1)
    if len(RUNS) == HANGS:
        time.sleep(60)
    assert generate(model) == {RIGHT}
"""

# The user's item, golden run, protected run, noise, 4 trials, a golden run and noise at the end.
HANGING_RUNS = {
    2: "The golden run test_it.py::test_answer takes longer than its timeout, without any fault (",
    3: "Protection ft2 alone, without a fault, makes test_it.py::test_answer fail (",
    9: "After the trials the fault-free test test_it.py::test_answer fails (",
}


@pytest.mark.parametrize("run", list(HANGING_RUNS))
def test_a_fault_free_run_that_hangs_is_stopped_by_the_users_timeout(
    project: Project, run: int
) -> None:
    project.pytester.makepyfile(test_it=HANGING.replace("HANGS", str(run)))
    started = time.monotonic()
    result = project.run("--ft2-faults=4", "--ft2-json=out.json")
    assert time.monotonic() - started < 30
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(project) == {"test_it.py::test_answer": "incomplete"}
    reason = project.json()["campaigns"][0]["reason"]
    assert HANGING_RUNS[run] in reason
    assert "it took longer than 2 s)" in reason


def test_a_wide_fixture_that_hangs_at_its_end_is_stopped_by_the_users_timeout(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=HANGING.replace("HANGS", "'teardown'"))
    result = project.run("--ft2-faults=4", "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        ["Tearing down what was set up for test_it.py::test_answer?gate? took longer than 2 s."]
    )


def test_what_the_first_run_spends_on_loading_the_model_lengthens_no_timeout(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100"))
    conftest = project.path / "conftest.py"
    text = conftest.read_text().replace("def model():", "def model():\n    time.sleep(2)")
    conftest.write_text("import time\n" + text)
    golden_seconds = []

    def noting(item: Any, plan: Any, seconds: float) -> float:
        golden_seconds.append(seconds)
        return 10.0

    monkeypatch.setattr("pytest_ft2.chunk.trial_timeout", noting)
    result = project.run("-k", "faults or gate", "--ft2-faults=4", "--ft2-protection=none")
    result.assert_outcomes(passed=2, deselected=1)
    assert 0 < max(golden_seconds) < 2


CRASH = """
import os, pytest

@pytest.mark.parametrize("number", range(6))
def test_first(number):
    os._exit(1)
"""


def test_a_gate_whose_workers_all_died_before_its_trials_fails(project: Project) -> None:
    project.pytester.makepyfile(test_a=CRASH, test_b=RIGHT_OR_NOT.replace("BUDGET", "100"))
    result = project.run_apart("-n2", "--max-worker-restart=0", "--ft2-faults=8")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "No worker got as far as this gate's first trial, so nothing was tested: look at the "
            "errors above.",
            "FAILED test_b.py::test_answer?gate? - *",
        ]
    )


BROKEN_WORKER = """

@pytest.hookimpl(wrapper=True)
def pytest_runtest_logreport(report):
    import os
    yield
    if report.when == "trial" and report.ft2[0]["trial"] == 5 and WHERE:
        raise RuntimeError("a plugin is broken")
"""


@WORKERS
def test_an_internal_error_is_never_a_success(project: Project, workers: str) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100"))
    where = "True" if workers == "-n0" else "'PYTEST_XDIST_WORKER' in os.environ"
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + BROKEN_WORKER.replace("WHERE", where))
    result = run_with(project, workers, "--ft2-faults=12", "--ft2-chunk=6", "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert verdicts(project)["test_it.py::test_answer"] in (None, "incomplete")
