"""What the terminal, junit, the JSON file and the exit status say of one session: the same."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.plugin.conftest import Project
from tests.plugin.gated import RIGHT_OR_NOT, WORKERS, outcomes, run_with, verdicts

FAULTS = ("--ft2-faults=20", "--ft2-chunk=10", "--ft2-json=out.json")
PASSING = RIGHT_OR_NOT.replace("BUDGET", "100")
STRICT = RIGHT_OR_NOT.replace("BUDGET", "0").replace("test_answer", "test_strict")


def percentages(result: pytest.RunResult) -> list[int]:
    """Return the progress that the terminal showed, in order."""
    return [int(text) for text in re.findall(r"\[ *(\d+)%\]", result.stdout.str())]


@WORKERS
def test_terminal_junit_json_and_exit_status_agree_on_a_gate_that_fails_and_one_that_passes(
    project: Project, workers: str
) -> None:
    project.pytester.makepyfile(test_it=PASSING + STRICT)
    result = run_with(project, workers, "--junitxml=junit.xml", "-rA", *FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=7, failed=1)
    assert verdicts(project) == {
        "test_it.py::test_answer": "pass",
        "test_it.py::test_strict": "fail",
    }
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_answer * 100 %  pass",
            "test_it.py::test_strict * 0 %  fail",
            "FAILED test_it.py::test_strict?gate? - fail: *",
        ]
    )

    (suite,) = ElementTree.parse(project.path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("8", "1", "0")
    cases = suite.findall("testcase")
    names = [case.get("name") for case in cases]
    assert sorted(map(str, names)) == sorted(
        f"{test}{part}"
        for test in ("test_answer", "test_strict")
        for part in ("", "[faults-0-9]", "[faults-10-19]", "[gate]")
    )
    failed = [case for case in cases if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == ["test_strict[gate]"]
    failure = failed[0].find("failure")
    assert failure is not None
    reason = project.json()["campaigns"][1]["reason"]
    assert failure.text == f"fail: {reason}"

    for campaign in project.json()["campaigns"]:
        counted = [trial["outcome"] for trial in campaign["trials"]]
        assert [campaign[name] for name in ("masked", "sdc", "due")] == [
            counted.count(name) for name in ("masked", "sdc", "due")
        ]
        assert len(counted) == campaign["planned"] == 20
    shown = result.parseoutcomes()
    for name in ("masked", "sdc"):
        assert shown[name] == sum(each[name] for each in project.json()["campaigns"])

    shown_progress = percentages(result)
    assert shown_progress == sorted(shown_progress)
    assert shown_progress[-1] == 100


def test_verbose_output_names_each_trial_and_its_outcome(project: Project) -> None:
    project.pytester.makepyfile(test_it=PASSING)
    result = project.run("-v", *FAULTS)
    lines = [line for line in result.outlines if "(trial " in line]
    assert len(lines) == 20
    outcome = {str(trial[0]): str(trial[6]).upper() for trial in outcomes(project)}
    for line in lines:
        shown = re.search(r"(MASKED|SDC|DUE) \(trial (\d+)\)", line)
        assert shown is not None
        assert outcome[shown[2]] == shown[1]
    result.stdout.fnmatch_lines(["test_it.py::test_answer?gate? PASSED * ?100%?"])
    progress = percentages(result)
    assert progress == sorted(progress)
    assert progress[-1] == 100


def test_quiet_output_keeps_the_table(project: Project) -> None:
    project.pytester.makepyfile(test_it=STRICT)
    result = project.run("-q", *FAULTS)
    result.stdout.fnmatch_lines(["test_it.py::test_strict * 0 %  fail"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_counted_progress_counts_trials_too(project: Project) -> None:
    project.pytester.makepyfile(test_it=PASSING)
    result = project.run("-o", "console_output_style=count", *FAULTS)
    result.stdout.fnmatch_lines(["test_it.py .* [[]24/24[]]"])


def test_durations_are_those_of_tests_and_not_one_line_for_each_trial(project: Project) -> None:
    project.pytester.makepyfile(test_it=PASSING)
    result = project.run("--durations=0", *FAULTS)
    lines = [line for line in result.outlines if re.match(r"\d+\.\d\ds ", line)]
    chunks = [line for line in lines if "faults-0-9" in line and " call " in line]
    assert len(chunks) == 1
    assert float(chunks[0].split("s ")[0]) > 0
    assert not [line for line in lines if " trial " in line or " golden " in line]


@WORKERS
def test_a_session_without_a_terminal_decides_its_gates_all_the_same(
    project: Project, workers: str
) -> None:
    project.pytester.makepyfile(test_it=PASSING + STRICT)
    arguments = ("-p", "no:terminal", "--junitxml=junit.xml", *FAULTS)
    result = run_with(project, workers, *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(project) == {
        "test_it.py::test_answer": "pass",
        "test_it.py::test_strict": "fail",
    }
    (suite,) = ElementTree.parse(project.path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("8", "1")


def test_a_page_for_github_gets_the_table_below_what_is_there(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = project.path / "summary.md"
    page.write_text("# Before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    project.pytester.makepyfile(test_it=STRICT)
    project.run(*FAULTS)
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert re.search(r"\| test_it\.py::test_strict +\| +20 \|.*\| fail +\|", text)
    assert "pytest --ft2-replay='test_it.py::test_strict#" in text
    page.unlink()
    project.run("--collect-only", *FAULTS)
    assert not page.exists()


@WORKERS
def test_without_faults_gated_tests_run_once_and_one_line_says_so(
    project: Project, workers: str
) -> None:
    project.pytester.makepyfile(
        test_it=PASSING + STRICT.replace("budget(0)", "budget(0, faults=9)")
    )
    result = run_with(project, workers, "--ft2-json=out.json")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2)
    lines = [line for line in result.outlines if "ft2:" in line]
    assert lines == [
        "ft2: 2 gated tests ran once, without faults, so no gate was measured; --ft2-faults=500 "
        "measures"
    ]
    assert not (project.path / "out.json").exists()


def test_a_session_without_a_gated_test_says_so(project: Project) -> None:
    project.pytester.makepyfile(test_it="def test_it(): pass")
    result = project.run(*FAULTS)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(
        ["ft2: no gate ran: mark a test with @pytest.mark.sdc_budget(PERCENT)"]
    )
    assert project.json()["campaigns"] == []


def test_a_fixture_that_fails_when_the_session_ends_is_an_error_beside_the_verdict(
    project: Project,
) -> None:
    broken = """

@pytest.fixture(scope="session", autouse=True)
def broken():
    yield
    1 / 0
"""
    project.pytester.makepyfile(test_it=PASSING + broken)
    result = project.run("--junitxml=junit.xml", *FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*ZeroDivisionError: division by zero"])
    assert verdicts(project) == {"test_it.py::test_answer": "pass"}
    (suite,) = ElementTree.parse(project.path / "junit.xml").getroot()
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")


def test_a_misspelt_marker_does_not_look_like_a_gate_that_passed(project: Project) -> None:
    project.pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.sdc_budgt(1)
        def test_answer(model):
            pass
        """
    )
    result = project.run("--ft2-faults=20")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["ft2: no gate ran: mark a test with *"])


def test_a_folder_that_is_called_like_the_marker_gates_nothing(project: Project) -> None:
    folder = project.path / "sdc_budget"
    folder.mkdir()
    (folder / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.sdc_budgt(1)\ndef test_answer():\n    pass\n"
    )
    result = project.run("--ft2-faults=20")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["ft2: no gate ran: mark a test with *"])
    result = project.run("--ft2-faults=0")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("ft2:*")


def test_files_that_can_no_longer_be_written_leave_the_summary_and_a_failure(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, page = project.path / "out.json", project.path / "gone" / "page.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    replaced = f"\n\ndef test_replaces_the_file():\n    __import__('os').mkdir({str(document)!r})\n"
    project.pytester.makepyfile(test_it=PASSING + replaced)
    result = project.run(*FAULTS)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_answer * pass",
            f"ft2: --ft2-json: {document} could not be written (Is a directory), so what was found "
            "stands here alone.",
            f"ft2: GITHUB_STEP_SUMMARY: {page} could not be written (No such file or directory), "
            "so what was found stands here alone.",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_document_that_cannot_be_written_is_refused_before_anything_runs(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=PASSING)
    document = project.path / f"{'long' * 100}.json"
    result = project.run("--ft2-faults=20", f"--ft2-json={document}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (
        f"ERROR: --ft2-json: {document} cannot be written (File name too long): name a file that "
        "can be\n" in result.stderr.str()
    )
    assert result.outlines == []
