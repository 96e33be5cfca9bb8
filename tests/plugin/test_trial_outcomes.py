"""What a trial ends in: masked, SDC, DUE, or an error of the harness."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import RIGHT, Project
from tests.plugin.seen import FAULTS, assert_passes, run_gated


def test_pytest_raises_inside_the_body_is_no_error(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model):
    with pytest.raises(ZeroDivisionError):
        1 / 0
    assert generate(model) == RIGHT
""",
    )
    assert_passes(run, plain_outcomes)


def test_pytest_exit_in_a_trial_ends_the_session_without_a_verdict(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model):
    if generate(model) != RIGHT:
        pytest.exit("the machine is on fire", returncode=7)
""",
    )
    assert run.result.ret == 7
    assert run.verdict is None
    assert 0 <= len(run.campaign["trials"]) < FAULTS


WRONG_ANSWERS = {
    "pytest-check": "check.equal(answer, RIGHT)",
    "an exception group": "if answer != RIGHT: raise ExceptionGroup('wrong', [ValueError('no')])",
    "pytest.fail": "if answer != RIGHT: pytest.fail('wrong', pytrace=False)",
    "a parser that chokes": "json.loads('{' * (answer != RIGHT) + '1')",
}


@pytest.mark.parametrize("way", list(WRONG_ANSWERS))
def test_a_wrong_answer_is_an_sdc_however_the_test_says_so(
    project: Project, plain_outcomes: list[str | None], way: str
) -> None:
    fixture = ", check" if way == "pytest-check" else ""
    run = run_gated(
        project,
        f"""
try:
    ExceptionGroup
except NameError:
    from exceptiongroup import ExceptionGroup

@GATE
def test_answer(model{fixture}):
    answer = generate(model)
    {WRONG_ANSWERS[way]}
""",
        *(["-p", "pytest_check"] if way == "pytest-check" else []),
    )
    assert_passes(run, plain_outcomes)


RAISING = """
from transformers import LogitsProcessor, LogitsProcessorList

class Guard(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if input_ids[0].tolist() != RIGHT[: input_ids.shape[1]]:
            raise ArithmeticError("this cannot be")
        return scores

def guarded(model):
    return generate(model, logits_processor=LogitsProcessorList([Guard()]))
"""


def test_an_exception_inside_the_models_call_is_a_due(project: Project) -> None:
    run = run_gated(
        project,
        RAISING
        + """
@GATE
def test_answer(model):
    assert guarded(model) == RIGHT
""",
    )
    assert run.verdict == "pass"
    assert "due" in run.outcomes
    # The last token is not seen by the guard: if only that is wrong, nothing is detected.
    assert set(run.outcomes) <= {"masked", "due", "sdc"}


def test_a_detected_error_that_the_test_recovers_from_is_masked(project: Project) -> None:
    run = run_gated(
        project,
        RAISING
        + """
@GATE
def test_answer(model):
    try:
        answer = guarded(model)
    except ArithmeticError:
        note("recovered")
        answer = RIGHT
    assert answer[:-1] == RIGHT[:-1]
""",
    )
    assert run.outcomes == ["masked"] * FAULTS
    assert "recovered" in run.notes


def test_an_error_of_a_fixture_in_a_trial_makes_the_verdict_incomplete(project: Project) -> None:
    run = run_gated(
        project,
        """
RUNS = []

@pytest.fixture
def service():
    RUNS.append(1)
    if len(RUNS) == 9:
        raise ConnectionError("the service is away")

@GATE
def test_answer(model, service):
    assert generate(model) == RIGHT
""",
    )
    assert run.verdict == "incomplete"
    assert "the setup of the test failed, not its assertion" in run.reason
    assert "the service is away" in run.reason
    assert run.outcomes.count(None) == 1
    assert run.result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_error_while_tearing_down_a_trial_makes_the_verdict_incomplete(
    project: Project,
) -> None:
    # That the model raises an error, as it does without any fault, makes it no outcome.
    run = run_gated(
        project,
        """
import torch

RUNS = []

@pytest.fixture
def service():
    yield
    RUNS.append(1)
    if len(RUNS) == 9:
        raise ConnectionError("the service is away")

@GATE
def test_answer(model, service):
    with pytest.raises(IndexError):
        model(torch.tensor([[10**6]]))
    assert generate(model) == RIGHT
""",
    )
    assert run.verdict == "incomplete"
    assert "the teardown of the test failed, not its assertion" in run.reason
    assert run.outcomes.count(None) == 1


def test_a_batched_trial_without_an_outcome_is_not_compared_with_itself_alone(
    project: Project,
) -> None:
    # Trial 0, and trial 1 when it is run again alone in its place.
    run = run_gated(
        project,
        """
RUNS = []

@pytest.fixture
def service():
    yield
    RUNS.append(1)
    if len(RUNS) in (4, 6):
        raise ConnectionError("the service is away")

@GATE
def test_answer(model, service):
    assert generate(model) == RIGHT
""",
        "--ft2-batch=64",
    )
    assert run.verdict == "incomplete"
    assert "In trial 0 the teardown of the test failed" in run.reason
    assert "In trial 1, when it ran again alone, the teardown of the test failed" in run.reason
    assert "differently" not in run.reason
    assert [trial.get("alike") for trial in run.campaign["trials"]].count(True) == 4


MEMORY = {
    "MemoryError": "raise MemoryError('no more')",
    "torch.OutOfMemoryError": "raise torch.OutOfMemoryError('no more')",
    "the CPU's allocator": "torch.empty(1 << 60)",
    "wrapped": "raise ValueError('no answer') from MemoryError('no more')",
}


@pytest.mark.parametrize("kind", list(MEMORY))
def test_running_out_of_memory_makes_the_verdict_incomplete(project: Project, kind: str) -> None:
    run = run_gated(
        project,
        f"""
import torch

@GATE
def test_answer(model):
    if generate(model) != RIGHT:
        {MEMORY[kind]}
""",
    )
    assert run.verdict == "incomplete"
    assert "memory ran out (" in run.reason
    assert "use a smaller model or fewer workers" in run.reason
    assert run.result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_error_of_the_model_that_the_test_provokes_hides_no_wrong_answer(
    project: Project,
) -> None:
    project.pytester.makepyfile(
        test_it=f"""
        import pytest
        import torch
        from conftest import generate

        @pytest.mark.sdc_budget(100)
        def test_answer(model):
            with pytest.raises(IndexError):
                model(torch.tensor([[10**6]]))
            assert generate(model) == {RIGHT}
        """
    )
    project.run("--ft2-faults=60", "--ft2-json=out.json")
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "pass", campaign["reason"]
    assert campaign["sdc"] > 0
    assert campaign["due"] == 0
