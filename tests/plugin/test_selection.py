"""Parts of a gate: what was not selected is missing, and a gate that misses trials cannot pass."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import RIGHT, Project
from tests.plugin.gated import RIGHT_OR_NOT, WORKERS, run_with, verdicts

GATE = "test_it.py::test_answer"
INCOMPLETE = (
    "incomplete: Only {} of the gate's 20 trials were selected: select the test, "
    "test_it.py::test_answer, rather than parts of what is beside it. {} of 20 trials have no "
    "outcome."
)
OTHER = "\n\ndef test_other():\n    pass\n"


@pytest.fixture
def gated(project: Project) -> Project:
    """A project with a gate of two chunks, which passes, and a test beside it."""
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100") + OTHER)
    return project


FAULTS = ("--ft2-faults=20", "--ft2-chunk=10", "--ft2-json=out.json")


@WORKERS
def test_last_failed_runs_a_failed_gate_with_all_its_trials(project: Project, workers: str) -> None:
    failing = RIGHT_OR_NOT.replace("BUDGET", "0") + OTHER
    project.pytester.makepyfile(test_it=failing)
    project.run(*FAULTS)
    first = project.json()["campaigns"][0]
    assert first["verdict"] == "fail"
    again = run_with(project, workers, "--lf", *FAULTS)
    again.assert_outcomes(passed=2, failed=1)
    assert project.json()["campaigns"][0]["sdc"] == first["sdc"]
    assert verdicts(project) == {GATE: "fail"}
    project.pytester.makepyfile(test_it=failing.replace("budget(0)", "budget(100)"))
    mended = project.run("--lf", *FAULTS)
    assert mended.ret == pytest.ExitCode.OK
    mended.assert_outcomes(passed=3)
    assert verdicts(project) == {GATE: "pass"}
    everything = project.run("--lf", *FAULTS)
    everything.assert_outcomes(passed=5)


def test_last_failed_keeps_the_trials_of_a_failed_gate_in_a_class(project: Project) -> None:
    project.pytester.makepyfile(
        test_it="class TestAnswers:\n"
        "    import pytest\n"
        "    from conftest import generate\n"
        "    @pytest.mark.sdc_budget(0)\n"
        "    def test_answer(self, model):\n"
        f"        assert TestAnswers.generate(model) == {RIGHT}\n",
        test_other=OTHER,
    )
    project.run(*FAULTS)
    result = project.run("--lf", *FAULTS)
    result.assert_outcomes(passed=2, failed=1, deselected=2)
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "fail"
    assert campaign["masked"] + campaign["sdc"] + campaign["due"] == 20


def test_last_failed_leaves_out_the_trials_of_gates_that_passed(project: Project) -> None:
    passing = RIGHT_OR_NOT.replace("BUDGET", "100")
    failing = passing.replace("budget(100)", "budget(0)").replace("test_answer", "test_strict")
    project.pytester.makepyfile(test_it=passing + failing)
    project.run(*FAULTS)
    result = project.run("--lf", *FAULTS)
    result.assert_outcomes(passed=2, failed=1)
    assert verdicts(project) == {"test_it.py::test_strict": "fail"}


def test_last_failed_with_an_expression_keeps_to_the_expression(project: Project) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "0"))
    project.run(*FAULTS)
    result = project.run("--lf", "-k", "gate or faults-0", *FAULTS)
    result.assert_outcomes(passed=1, failed=1, deselected=1)
    result.stdout.fnmatch_lines([INCOMPLETE.format(10, 10)])


def test_failed_first_starts_with_the_gate_and_decides_it_when_its_trials_are_in(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "0") + OTHER)
    project.run(*FAULTS)
    result = project.run("--ff", *FAULTS)
    result.assert_outcomes(passed=4, failed=1)
    assert verdicts(project) == {GATE: "fail"}


@WORKERS
def test_an_expression_that_picks_some_trials_runs_them_and_gives_no_verdict(
    gated: Project, workers: str
) -> None:
    result = run_with(gated, workers, "-k", "faults-10", "-rA", *FAULTS)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1, deselected=0 if workers == "-n2" else 4)
    campaign = gated.json()["campaigns"][0]
    assert campaign["verdict"] is None
    assert campaign["planned"] == 20
    assert [trial["trial"] for trial in campaign["trials"]] == list(range(10, 20))
    result.stdout.no_fnmatch_line("*PASSED*gate*")
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_answer * no verdict",
            "  No verdict: test_it.py::test_answer[[]gate[]] was not selected.",
        ]
    )


def test_a_mark_expression_picks_the_gate_with_its_trials(gated: Project) -> None:
    result = gated.run("-m", "sdc_budget", *FAULTS)
    result.assert_outcomes(passed=4, deselected=1)
    assert verdicts(gated) == {GATE: "pass"}


def test_a_mark_of_the_test_is_a_mark_of_its_trials_and_its_gate(project: Project) -> None:
    test = RIGHT_OR_NOT.replace("BUDGET", "100").replace("def test", "@pytest.mark.slow\ndef test")
    project.pytester.makepyfile(test_it=test + OTHER)
    result = project.run("-m", "not slow", "-W", "ignore", *FAULTS)
    result.assert_outcomes(passed=1, deselected=4)
    assert verdicts(project) == {}


@WORKERS
def test_a_gate_alone_fails_and_says_what_it_needs(gated: Project, workers: str) -> None:
    result = run_with(gated, workers, f"{GATE}[gate]", *FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([INCOMPLETE.format(0, 20)])
    assert verdicts(gated) == {GATE: "incomplete"}


def test_the_name_of_the_test_selects_the_whole_gate(gated: Project) -> None:
    result = gated.run(GATE, *FAULTS)
    result.assert_outcomes(passed=4)
    assert verdicts(gated) == {GATE: "pass"}


def test_one_parameter_set_alone_is_a_plain_test(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=RIGHT_OR_NOT.replace("BUDGET", "100")
        .replace("def test", "@pytest.mark.parametrize('n', [1, 2])\ndef test")
        .replace("(model)", "(model, n)", 1)
    )
    result = project.run(f"{GATE}[1]", *FAULTS)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1)
    assert verdicts(project) == {}
    result.stdout.fnmatch_lines(
        [
            "ft2: no gate ran, the selected tests are some of its parameter sets only: select the "
            "test's name, without brackets"
        ]
    )


def test_a_deselected_chunk_makes_the_gate_incomplete(gated: Project) -> None:
    result = gated.run("--deselect", f"{GATE}[faults-10-19]", *FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3, failed=1, deselected=1)
    campaign = gated.json()["campaigns"][0]
    assert campaign["verdict"] == "incomplete"
    assert campaign["planned"] == 20
    result.stdout.fnmatch_lines([INCOMPLETE.format(10, 10)])


SHARD = """

def pytest_collection_modifyitems(items):
    items[:] = items[SHARD::2]
"""


@pytest.mark.parametrize("shard", [0, 1])
def test_a_gate_does_not_pass_when_trials_went_to_another_shard(gated: Project, shard: int) -> None:
    conftest = gated.path / "conftest.py"
    conftest.write_text(conftest.read_text() + SHARD.replace("SHARD", str(shard)))
    result = gated.run("-rA", *FAULTS)
    campaign = gated.json()["campaigns"][0]
    assert len(campaign["trials"]) == 10
    # The items: the test, two chunks, the gate, another test.
    if shard == 0:
        assert result.ret == pytest.ExitCode.OK
        assert campaign["verdict"] is None
        result.stdout.no_fnmatch_line("PASSED *gate*")
    else:
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines([INCOMPLETE.format(10, 10)])


@WORKERS
def test_collecting_only_lists_chunks_and_gate_and_runs_and_writes_nothing(
    gated: Project, workers: str
) -> None:
    result = run_with(gated, workers, "--collect-only", "-q", *FAULTS)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_answer",
            "test_it.py::test_answer[[]faults-0-9[]]",
            "test_it.py::test_answer[[]faults-10-19[]]",
            "test_it.py::test_answer[[]gate[]]",
            "test_it.py::test_other",
            "",
            "5 tests collected *",
        ],
        consecutive=True,
    )
    result.stdout.no_fnmatch_line("*ft2: no gate*")
    assert not (gated.path / "out.json").exists()


def test_stepwise_is_refused_where_there_are_gates(gated: Project) -> None:
    result = gated.run("--sw-skip", *FAULTS)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --stepwise leaves out what ran before the test that failed" in (
        result.stderr.str()
    )
    for arguments in (("--ft2-faults=0",), ("-k", "other", *FAULTS[:2])):
        gated.run("--sw", *arguments).stdout.no_fnmatch_line("*ERROR*")


@WORKERS
def test_an_id_that_looks_like_a_group_of_workers_is_part_of_the_gates_name(
    project: Project, workers: str
) -> None:
    project.pytester.makepyfile(
        test_it=RIGHT_OR_NOT.replace("BUDGET", "0, per='params'")
        .replace(
            "def test",
            "@pytest.mark.xdist_group('a@b')\n"
            "@pytest.mark.parametrize('n', [1], ids=['llama[7b]@main'])\ndef test",
        )
        .replace("(model)", "(model, n)", 1)
    )
    result = run_with(project, workers, "--dist=loadgroup", *FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3, failed=1)
    assert verdicts(project) == {f"{GATE}[llama[7b]@main]": "fail"}
