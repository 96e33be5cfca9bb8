"""Each trial starts afresh: what pytest promises one test holds between trials."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.plugin.conftest import RIGHT, Project
from tests.plugin.seen import FAULTS, RUNS, assert_passes, run_gated


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
    # Two items, two golden runs, noise for both, the trials; both golden runs and noise at the end.
    assert seen["run up"] == seen["run down"] == FAULTS + 9
    assert {trial["params"] for trial in run.campaign["trials"]} == {"a", "b"}
    letters = [note for note in run.notes if note in ("a", "b")]
    assert letters[6 : 6 + FAULTS] == ["a", "b"] * (FAULTS // 2)


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
