"""``--ft2-replay``: one trial again, as a test that fails if it goes wrong again."""

from __future__ import annotations

import shlex

import pytest

from tests.plugin.conftest import RIGHT, Project
from tests.plugin.seen import DEBUGGER, PLAIN, run_gated

LINE = "pytest --ft2-replay="
MARKED = "@pytest.mark.sdc_budget(100, faults=7)"


def replay_lines(result: pytest.RunResult) -> list[list[str]]:
    """Return the arguments of the lines that the summary offers, as a shell reads them."""
    lines = [line.strip() for line in result.outlines if line.strip().startswith(LINE)]
    return [shlex.split(line)[1:] for line in lines]


def test_the_line_of_the_summary_shows_the_corruption_again(project: Project) -> None:
    run = run_gated(project, PLAIN)
    arguments = replay_lines(run.result)[0]
    trial = next(each for each in run.campaign["trials"] if each["outcome"] == "sdc")
    assert arguments[0] == f"--ft2-replay=test_it.py::test_answer#{trial['trial']}"
    result = project.run(*arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E * At index * diff: *",
            f"*ft2 trial {trial['trial']}*",
            f"fault:      {trial['fault']}",
            "landed:     True",
            f"value:      {trial['before']} became {trial['after']}",
            "protection: none, corrected 0",
            f"call 0, without the fault: [[]{str(RIGHT)[1:-1]}[]]",
            "call 0, with the fault:    [[]1, 5, 9, 11, *",
        ]
    )
    result.stdout.no_fnmatch_line(f"call 0, with the fault: *{str(RIGHT)[1:-1]}*")


def test_texts_are_shown_when_the_test_has_a_tokenizer(project: Project) -> None:
    body = """
import tokenizers
from transformers import PreTrainedTokenizerFast

@pytest.fixture
def tokenizer():
    words = {f"w{number}": number for number in range(61)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model))

@GATE
def test_answer(model, tokenizer):
    assert generate(model) == RIGHT
"""
    run = run_gated(project, body)
    result = project.run(*replay_lines(run.result)[0])
    said = " ".join(f"w{token}" for token in RIGHT)
    result.stdout.fnmatch_lines(
        [f"call 0, without the fault: '{said}'", "call 0, with the fault:    'w1 w5 w9 w11 *'"]
    )


def test_a_masked_trial_passes_and_says_so(project: Project) -> None:
    run = run_gated(project, PLAIN)
    trial = run.outcomes.index("masked")
    result = project.run(f"--ft2-replay=test_it.py::test_answer#{trial}", "--ft2-protection=none")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            f"*ft2 trial {trial}*",
            f"fault:      {run.campaign['trials'][trial]['fault']}",
            "landed:     True",
            "The answer is right in spite of the fault.",
        ]
    )


SETS = """
@pytest.mark.sdc_budget(100, golden="exclude", due_budget=100)
@pytest.mark.parametrize("last", ["wrong", "it's 53", "a b"])
def test_answer(model, last):
    answer = generate(model)
    note([last, answer])
    assert last != "wrong"
    assert answer == RIGHT
"""


def test_set_seed_policy_and_exclusion_are_rebuilt(project: Project) -> None:
    run = run_gated(
        project,
        SETS,
        "--ft2-seed=5",
        "--ft2-protection=ft2",
        "--ft2-fault-model=2-bit",
        "--ft2-encoding=fp16",
        faults=40,
    )
    assert run.campaign["excluded"] == ["wrong"]
    lines = replay_lines(run.result)
    corrupted = [each for each in run.campaign["trials"] if each["outcome"] == "sdc"]
    assert len(lines) == min(3, len(corrupted)) > 0
    for arguments, trial in zip(lines, corrupted, strict=False):
        (project.path / "notes.txt").unlink()
        result = project.run(*arguments)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines([f"fault:      {trial['fault']}", "protection: ft2, *"])
        assert f"test_answer[{trial['params']}]" in result.stdout.str()


def test_an_id_that_a_shell_would_break_is_quoted(project: Project) -> None:
    run = run_gated(
        project,
        """
@pytest.mark.sdc_budget(100, per="params")
@pytest.mark.parametrize("word", ["it's $HOME"])
def test_answer(model, word):
    assert generate(model) == RIGHT
""",
    )
    arguments = replay_lines(run.result)[0]
    assert arguments[0].startswith("--ft2-replay=test_it.py::test_answer[it's $HOME]#")
    assert project.run(*arguments).ret == pytest.ExitCode.TESTS_FAILED


def test_a_model_given_as_an_option_is_part_of_the_line(project: Project) -> None:
    project.pytester.makeini("[pytest]\nft2_fault_model = exp\nft2_encoding = fp16\n")
    project.pytester.makepyfile(
        test_it=f"""
        import pytest
        from conftest import generate

        @pytest.mark.sdc_budget(100)
        def test_answer(ft2_model):
            assert generate(ft2_model) == {RIGHT}
        """
    )
    model = project.path / "a model"
    model.symlink_to(project.model_folder)
    result = project.run("--ft2-faults=20", f"--ft2-model={model}", "--ft2-protection=none")
    arguments = replay_lines(result)[0]
    assert f"--ft2-model={model}" in arguments
    assert project.run(*arguments).ret == pytest.ExitCode.TESTS_FAILED


def test_what_stands_in_for_the_ini_file_is_part_of_the_line(project: Project) -> None:
    run_gated(project, PLAIN, faults=1)
    project.pytester.makeini("[pytest]\n")
    given = ("-o", "ft2_model_fixture=model", "-o", "ft2_fault_model=exp", "-o", "ft2_faults=20")
    result = project.run(*given, "-o", "ft2_encoding=fp16", "--ft2-protection=none")
    arguments = replay_lines(result)[0]
    assert "--ft2-fault-model=exp" in arguments
    assert project.run(*arguments).ret == pytest.ExitCode.TESTS_FAILED


def test_the_number_of_trials_is_part_of_the_line(project: Project) -> None:
    run = run_gated(project, PLAIN, faults=20)
    assert "--ft2-faults=20" in replay_lines(run.result)[0]


@pytest.mark.parametrize("planned", ["option", "marker"])
def test_a_trial_that_was_never_planned_is_refused(project: Project, planned: str) -> None:
    body = PLAIN if planned == "option" else PLAIN.replace("@GATE", MARKED)
    run_gated(project, body, faults=7)
    given = ["--ft2-faults=7"] if planned == "option" else []
    result = project.run("--ft2-replay=test_it.py::test_answer#7", *given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (
        "ERROR: --ft2-replay: test_it.py::test_answer has 7 trials, numbered from 0, so there is "
        "no trial 7" in result.stderr.str()
    )
    project.run("--ft2-replay=test_it.py::test_answer#6", *given).stdout.fnmatch_lines(
        ["*ft2 trial 6*"]
    )


def test_a_replay_that_should_write_a_file_is_refused(project: Project) -> None:
    run_gated(project, PLAIN, faults=1)
    (project.path / "out.json").write_text("{}")
    replay = "--ft2-replay=test_it.py::test_answer#0"
    result = project.run(replay, "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (
        "ERROR: --ft2-replay shows one trial and decides nothing, so there is nothing to write: "
        "leave --ft2-json out" in result.stderr.str()
    )
    ini = project.path / "tox.ini"
    ini.write_text(ini.read_text() + "\nft2_json = out.json\n")
    project.run(replay).stdout.fnmatch_lines(["*ft2 trial 0*"])
    assert project.json() == {}


def test_a_suite_with_an_ini_file_of_its_own_is_part_of_the_line(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_gated(project, PLAIN)
    suite = project.path / "suite"
    suite.mkdir()
    for name in ("tox.ini", "conftest.py", "test_it.py"):
        (project.path / name).rename(suite / name)
    result = project.run("suite", "--ft2-faults=20", "--ft2-protection=none")
    arguments = replay_lines(result)[0]
    assert arguments[-1] == "suite"
    assert project.run(*arguments).ret == pytest.ExitCode.TESTS_FAILED
    monkeypatch.chdir(suite)
    arguments = replay_lines(project.run("--ft2-faults=20", "--ft2-protection=none"))[0]
    assert project.run(*arguments).ret == pytest.ExitCode.TESTS_FAILED


def test_only_the_tests_file_is_collected(project: Project) -> None:
    run = run_gated(project, PLAIN)
    project.pytester.makepyfile(test_broken="raise SystemError")
    assert project.run(*replay_lines(run.result)[0]).ret == pytest.ExitCode.TESTS_FAILED


def test_self_is_new_in_a_replay(project: Project) -> None:
    run = run_gated(
        project,
        """
class TestIt:
    runs = 0

    @GATE
    def test_answer(self, model):
        self.runs += 1
        assert self.runs == 1
        assert generate(model) == RIGHT
""",
    )
    trial = run.outcomes.index("masked")
    result = project.run(
        f"--ft2-replay=test_it.py::TestIt::test_answer#{trial}", "--ft2-protection=none"
    )
    assert result.ret == pytest.ExitCode.OK


def test_a_test_that_is_not_there_is_refused(project: Project) -> None:
    run_gated(project, PLAIN)
    result = project.run("--ft2-replay=test_it.py::test_question#3")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (
        "ERROR: --ft2-replay: there is no gated test 'test_it.py::test_question'; there are: "
        "test_it.py::test_answer" in result.stderr.str()
    )


def test_a_file_that_is_not_there_is_refused(project: Project) -> None:
    result = project.run("--ft2-replay=test_that.py::test_question#3")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "file or directory not found: " in result.stderr.str()


@pytest.mark.parametrize("workers", ["-n2", "--tx=2*popen"])
def test_workers_are_refused(project: Project, workers: str) -> None:
    run_gated(project, PLAIN, faults=1)
    result = project.run("--ft2-replay=test_it.py::test_answer#0", workers, "--dist=load")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--ft2-replay runs one trial, in this process: leave -n out" in result.stderr.str()


def test_the_debugger_opens_on_the_wrong_answer(project: Project) -> None:
    project.pytester.makepyfile(debugger=DEBUGGER)
    project.pytester.syspathinsert()
    run = run_gated(project, PLAIN)
    result = project.run(*replay_lines(run.result)[0], "--pdb", "--pdbcls=debugger:Debugger", "-s")
    assert result.stdout.str().count("DEBUGGER OPENED") == 1
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_replay_passes_once_the_test_forgives_the_answer(project: Project) -> None:
    run = run_gated(project, PLAIN)
    arguments = replay_lines(run.result)[0]
    file = project.path / "test_it.py"
    file.write_text(file.read_text().replace("== RIGHT", "is not None"))
    result = project.run(*arguments)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["The answer is right in spite of the fault."])


def test_a_replay_of_a_broken_golden_run_says_what_is_wrong(project: Project) -> None:
    run = run_gated(project, PLAIN)
    arguments = replay_lines(run.result)[0]
    file = project.path / "test_it.py"
    file.write_text(file.read_text().replace("== RIGHT", "== 1"))
    result = project.run(*arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*The golden run test_it.py::test_answer fails without any fault (assert *"]
    )


def test_a_replay_whose_fault_does_not_land_fails(project: Project) -> None:
    run = run_gated(project, PLAIN)
    trial = next(each["trial"] for each in run.campaign["trials"] if "step=0," not in each["fault"])
    file = project.path / "test_it.py"
    file.write_text(
        file.read_text().replace(
            "    assert generate(model) == RIGHT",
            "    RUNS.append(1)\n"
            "    assert len(RUNS) == 3 or generate(model) == RIGHT\n\n"
            "RUNS = []",
        )
    )
    result = project.run(f"--ft2-replay=test_it.py::test_answer#{trial}", "--ft2-protection=none")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["The fault did not land, so this replay shows nothing."])
