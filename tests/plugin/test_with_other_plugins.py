"""Plugins that reorder, repeat or distribute tests: the faults and their outcomes stay the same."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plugin.conftest import RIGHT, Project
from tests.plugin.gated import RIGHT_OR_NOT, outcomes, verdicts

FAULTS = ("--ft2-faults=40", "--ft2-chunk=10", "--ft2-json=out.json")
GATE = "test_it.py::test_answer"

SAMPLED = """
import random
import pytest
import torch
from conftest import PROMPT, generate

@pytest.fixture
def prompt():
    return PROMPT.roll(random.randrange(4))

@pytest.mark.sdc_budget(100)
@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_sampled(model, prompt, temperature, reference):
    said = generate(model, prompt, do_sample=True, temperature=temperature)
    assert said == reference.setdefault((temperature, *prompt[0].tolist()), said)

@pytest.fixture(scope="session")
def reference():
    return {}
"""


@pytest.fixture
def gated(project: Project) -> Project:
    """A project with one gate."""
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100"))
    return project


@pytest.fixture
def expected(gated: Project) -> list[tuple[Any, ...]]:
    """The outcomes of the gate's trials in one process, in order, without other plugins."""
    gated.run(*FAULTS)
    found = outcomes(gated)
    assert {trial[6] for trial in found} == {"masked", "sdc"}
    return found


@pytest.mark.parametrize("distribution", ["load", "each", "loadscope"])
def test_workers_find_the_same_outcomes_however_tests_are_dealt_to_them(
    gated: Project, expected: list[tuple[Any, ...]], distribution: str
) -> None:
    result = gated.run_anew("-n2", f"--dist={distribution}", *FAULTS)
    assert result.ret == pytest.ExitCode.OK
    assert outcomes(gated) == expected
    assert verdicts(gated) == {GATE: "pass"}
    # With --dist each, both workers run the test and its chunks; there is one gate all the same.
    result.assert_outcomes(passed=11 if distribution == "each" else 6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_order_finds_the_same_outcomes(
    gated: Project, expected: list[tuple[Any, ...]], seed: int
) -> None:
    result = gated.pytester.runpytest_inprocess(
        "-p", "no:rerunfailures", f"--randomly-seed={seed}", *FAULTS
    )
    assert result.ret == pytest.ExitCode.OK
    assert outcomes(gated) == expected
    result.assert_outcomes(passed=6)


def test_reruns_repeat_neither_trials_nor_chunks_nor_gates(
    gated: Project, expected: list[tuple[Any, ...]]
) -> None:
    result = gated.pytester.runpytest_inprocess("-p", "no:randomly", "--reruns=2", *FAULTS)
    assert result.ret == pytest.ExitCode.OK
    assert outcomes(gated) == expected
    result.assert_outcomes(passed=6)
    assert "rerun" not in result.parseoutcomes()


def test_reruns_do_not_make_a_failing_gate_pass(gated: Project) -> None:
    gated.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "0"))
    result = gated.pytester.runpytest_inprocess("-p", "no:randomly", "--reruns=2", *FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=5, failed=1)
    assert verdicts(gated) == {GATE: "fail"}


def test_a_golden_run_that_needs_a_rerun_makes_the_gate_incomplete(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=f"""
import pytest
from conftest import generate

runs = []

@pytest.mark.sdc_budget(100)
def test_answer(model):
    answer = generate(model)
    runs.append(answer)
    assert len(runs) > 1
    assert answer == {RIGHT}
"""
    )
    result = project.pytester.runpytest_inprocess("-p", "no:randomly", "--reruns=2", *FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(project) == {GATE: "incomplete"}
    result.stdout.fnmatch_lines(
        [f"incomplete: The golden run {GATE} fails without any fault: make it pass."]
    )


def test_random_order_reruns_and_workers_that_steal_work_find_the_same_outcomes(
    gated: Project, expected: list[tuple[Any, ...]]
) -> None:
    result = gated.pytester.runpytest_subprocess(
        "-n2", "--randomly-seed=4", "--reruns=2", "--dist=worksteal", *FAULTS
    )
    assert result.ret == pytest.ExitCode.OK
    assert outcomes(gated) == expected
    result.assert_outcomes(passed=6)


def test_what_a_test_draws_at_random_repeats_with_the_seed_of_the_random_order(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=SAMPLED)
    found = []
    for _ in range(2):
        result = project.pytester.runpytest_inprocess(
            "-p", "no:rerunfailures", "--randomly-seed=5", *FAULTS
        )
        assert result.ret == pytest.ExitCode.OK
        found.append(outcomes(project))
    assert found[0] == found[1]
