"""A trial is pytest's own run of the user's item: all that pytest promises a test holds in it."""

from __future__ import annotations

import shlex
from collections import Counter

import pytest

from tests.plugin.conftest import RIGHT, Project
from tests.plugin.seen import FAULTS, Gated, run_gated

PLAIN = """
@GATE
def test_answer(model):
    assert generate(model) == RIGHT
"""

# The user's own item, the chunk's golden run, noise, the trials, and a golden run at the end.
RUNS = FAULTS + 4

_PLAIN_OUTCOMES: list[str | None] = []


@pytest.fixture
def plain_outcomes(project: Project) -> list[str | None]:
    """What the trials of ``test_it.py::test_answer`` end in when it only asserts the answer."""
    if not _PLAIN_OUTCOMES:
        _PLAIN_OUTCOMES.extend(run_gated(project, PLAIN).outcomes)
        (project.path / "out.json").unlink()
    assert {"masked", "sdc"} == set(_PLAIN_OUTCOMES)
    return _PLAIN_OUTCOMES


def assert_passes(run: Gated, outcomes: list[str | None]) -> None:
    assert run.reason.startswith(f"{outcomes.count('sdc')} of {FAULTS} faults")
    assert run.verdict == "pass"
    assert run.outcomes == outcomes
    assert run.result.ret == pytest.ExitCode.OK


def test_tmp_path_is_fresh_in_each_trial(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model, tmp_path):
    note(len(list(tmp_path.iterdir())))
    (tmp_path / "answer.txt").write_text(str(generate(model)))
    assert (tmp_path / "answer.txt").read_text() == str(RIGHT)
""",
    )
    assert_passes(run, plain_outcomes)
    assert run.notes == [0] * RUNS


def test_monkeypatch_is_undone_after_each_trial(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
import os

@GATE
def test_answer(model, monkeypatch):
    note("ANSWER" in os.environ)
    monkeypatch.setenv("ANSWER", str(generate(model)))
    assert os.environ["ANSWER"] == str(RIGHT)
""",
    )
    assert_passes(run, plain_outcomes)
    assert run.notes == [False] * RUNS


@pytest.mark.parametrize("capture", ["capsys", "capfd"])
def test_captured_output_is_that_of_one_trial(
    project: Project, plain_outcomes: list[str | None], capture: str
) -> None:
    run = run_gated(
        project,
        f"""
@GATE
def test_answer(model, {capture}):
    print(generate(model))
    out, err = {capture}.readouterr()
    note(out.count("["))
    assert out == f"{{RIGHT}}\\n"
""",
    )
    assert_passes(run, plain_outcomes)
    assert run.notes == [1] * RUNS


def test_output_shows_with_dash_s(project: Project, plain_outcomes: list[str | None]) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model):
    answer = generate(model)
    print("answer", answer == RIGHT)
    assert answer == RIGHT
""",
        "-s",
    )
    assert_passes(run, plain_outcomes)
    assert run.result.stdout.str().count("answer True") == 3 + plain_outcomes.count("masked")


def test_caplog_holds_the_records_of_one_trial(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
import logging

@GATE
def test_answer(model, caplog):
    with caplog.at_level(logging.INFO):
        logging.getLogger("answers").info("%s", generate(model))
    note([len(caplog.records), logging.getLogger().level])
    assert caplog.messages == [str(RIGHT)]
""",
    )
    assert_passes(run, plain_outcomes)
    assert run.notes == [[1, run.notes[0][1]]] * RUNS


def test_mocks_count_the_calls_of_one_trial(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
import os.path

@GATE
def test_answer(model, mocker):
    spy = mocker.spy(type(model), "generate")
    stub = mocker.patch("os.path.exists", return_value=True)
    answer = generate(model)
    assert os.path.exists("nowhere")
    note([spy.call_count, stub.call_count])
    spy.assert_called_once()
    assert answer == RIGHT
""",
    )
    assert_passes(run, plain_outcomes)
    assert run.notes == [[1, 1]] * RUNS


def test_self_is_a_new_object_in_each_trial(project: Project) -> None:
    run = run_gated(
        project,
        """
class TestIt:
    runs = 0

    def setup_method(self):
        note(["setup", getattr(self, "mine", None)])
        self.mine = 1

    def teardown_method(self):
        note(["teardown", self.mine])

    @GATE
    def test_answer(self, model):
        self.mine += 1
        self.runs += 1
        assert (self.mine, self.runs) == (2, 1)
        assert generate(model) == RIGHT
""",
    )
    assert run.verdict == "pass"
    assert set(run.outcomes) == {"masked", "sdc"}
    assert run.notes == [["setup", None], ["teardown", 2]] * RUNS


def test_autouse_and_parametrised_fixtures_run_per_trial_and_wide_ones_once(
    project: Project,
) -> None:
    run = run_gated(
        project,
        """
@pytest.fixture(scope="session", autouse=True)
def whole_session():
    note("session up")
    yield
    note("session down")

@pytest.fixture(scope="module")
def whole_module():
    note("module up")
    yield
    note("module down")

@pytest.fixture(autouse=True)
def each_run():
    note("run up")
    yield
    note("run down")

@pytest.fixture(params=["a", "b"])
def letter(request):
    note(request.param)
    return request.param

@GATE
def test_answer(model, whole_module, letter):
    assert letter in "ab"
    assert generate(model) == RIGHT
""",
    )
    assert run.verdict == "pass"
    seen = Counter(run.notes)
    for scope in ("session", "module"):
        assert seen[f"{scope} up"] == seen[f"{scope} down"] == 1
    # Two items, two golden runs, noise, the trials, the golden run at the end.
    assert seen["run up"] == seen["run down"] == FAULTS + 6
    assert {trial["params"] for trial in run.campaign["trials"]} == {"a", "b"}
    letters = [note for note in run.notes if note in ("a", "b")]
    assert letters[5 : 5 + FAULTS] == ["a", "b"] * (FAULTS // 2)


def test_class_fixtures_are_set_up_once_for_items_and_trials_of_the_class(
    project: Project,
) -> None:
    run = run_gated(
        project,
        """
class TestIt:
    @classmethod
    def setup_class(cls):
        note("up")

    @classmethod
    def teardown_class(cls):
        note("down")

    @GATE
    def test_answer(self, model):
        assert generate(model) == RIGHT
""",
    )
    assert run.verdict == "pass"
    assert run.notes == ["up", "down"]


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
    run = run_gated(
        project,
        """
RUNS = []

@pytest.fixture
def service():
    yield
    RUNS.append(1)
    if len(RUNS) == 9:
        raise ConnectionError("the service is away")

@GATE
def test_answer(model, service):
    assert generate(model) == RIGHT
""",
    )
    assert run.verdict == "incomplete"
    assert "the teardown of the test failed, not its assertion" in run.reason


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


def test_every_run_starts_from_the_same_random_state_setup_included(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
import random
import numpy
import torch

@pytest.fixture(scope="session")
def wide():
    random.random(), numpy.random.rand(), torch.rand(1)
    return [random.random(), numpy.random.rand(), torch.rand(1).item()]

@pytest.fixture
def narrow():
    return [random.random(), numpy.random.rand(), torch.rand(1).item()]

@GATE
def test_answer(model, wide, narrow):
    note([wide, narrow, [random.random(), numpy.random.rand(), torch.rand(1).item()]])
    assert generate(model) == RIGHT
""",
    )
    assert_passes(run, plain_outcomes)
    assert run.notes == [run.notes[0]] * RUNS
    assert len({tuple(numbers) for numbers in run.notes[0]}) == 3


def test_sampling_without_a_seed_of_its_own_repeats(project: Project) -> None:
    run = run_gated(
        project,
        """
ANSWERS = []

@GATE
def test_answer(model):
    ANSWERS.append(generate(model, do_sample=True))
    note(ANSWERS[-1])
    assert ANSWERS[-1] == ANSWERS[0]
""",
    )
    assert run.verdict == "pass"
    assert run.notes[0] == run.notes[1] == run.notes[-1]


def test_the_sessions_own_random_state_is_as_without_campaigns(project: Project) -> None:
    project.pytester.makepyfile(
        f"""
        import random
        import numpy
        import pytest
        import torch
        from pathlib import Path
        from conftest import generate

        def test_before():
            random.seed(5), numpy.random.seed(5), torch.manual_seed(5)

        @pytest.mark.sdc_budget(100)
        def test_answer(model):
            assert generate(model) == {[1, 5, 9, 11, 53, 12, 42, 53, 53, 42]}

        def test_after():
            drawn = [random.random(), numpy.random.rand(), torch.rand(1).item()]
            Path("drawn.txt").write_text(repr(drawn))
        """
    )
    drawn = []
    for faults in ("0", "10"):
        result = project.run(f"--ft2-faults={faults}", "--ft2-protection=none")
        assert result.ret == pytest.ExitCode.OK
        drawn.append((project.path / "drawn.txt").read_text())
    assert drawn[0] == drawn[1]


def test_what_a_test_records_does_not_grow_with_the_trials(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model, record_property, request):
    note([len(request.node.user_properties), len(request.node._report_sections)])
    record_property("answer", "…")
    print("some output")
    assert generate(model) == RIGHT
""",
        "--junitxml=junit.xml",
    )
    assert_passes(run, plain_outcomes)
    # One property since the user's own item ran; none more for each trial.
    assert run.notes[1:] == [[1, 0]] * (RUNS - 1)
    assert (project.path / "junit.xml").read_text().count('name="answer"') == 1


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


DEBUGGER = """
class Debugger:
    quitting = False
    def __init__(self, *args, **kwargs):
        pass
    def reset(self):
        pass
    def interaction(self, frame, traceback):
        print("DEBUGGER OPENED")
"""


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


def test_a_teardown_that_calls_the_model_is_no_part_of_a_run(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=f"""
        import pytest
        from conftest import generate

        @pytest.fixture
        def flush(model):
            yield
            generate(model, max_new_tokens=2)

        @pytest.mark.sdc_budget(100)
        def test_answer(model, flush):
            assert generate(model) == {RIGHT}
        """
    )
    project.run("--ft2-faults=20", "--ft2-json=out.json")
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "pass", campaign["reason"]
    assert campaign["golden"][0]["calls"] == 1


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
