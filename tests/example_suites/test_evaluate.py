"""The command: tables from a model and files of questions, kept and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bench
import evaluate
import trials
from figures import FIGURES
from tests.example_suites.quickstart_questions import MODEL, NEW_TOKENS, capitals, sums, write


class Command:
    """Runs the command on the quickstart's Llama, with few questions and faults."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results.json"
        squad = write(folder / "capitals.jsonl", capitals())
        gsm8k = write(folder / "sums.jsonl", sums())
        self._given = ["--ft2-model", str(MODEL), "--json", str(self.results)]
        self._given += ["--data", f"squad={squad}", f"gsm8k={gsm8k}", "--dtype", "fp32:fp16"]
        self._given += ["--questions", "4", "--profile", "5", "--new-tokens", str(NEW_TOKENS)]

    def run(self, *given: str) -> int:
        return evaluate.main([*self._given, *given])

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.results.read_text(encoding="utf-8"))
        return found

    @property
    def cells(self) -> dict[str, Any]:
        cells: dict[str, Any] = self.document["cells"]
        return cells


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


ONE = ("--figures", "13", "--policies", "none", "ft2", "--fault-models", "exp", "--tasks", "gsm8k")


def test_all_tables_are_filled(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = tmp_path / "tables.md"
    assert command.run("--faults", "6", "--markdown", str(tables)) == 0
    text = tables.read_text(encoding="utf-8")
    assert text.strip() in capsys.readouterr().out
    parts = text.split("\n## ")
    assert len(parts) == len(FIGURES)
    for figure, part in zip(FIGURES.values(), parts, strict=True):
        assert figure.title in part
        assert "| llama" in part
        assert all(len(line) > 3 for line in part.splitlines() if line.startswith("|"))


def test_the_same_command_measures_nothing_again(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.run(*ONE, "--faults", "8") == 0
    before = command.cells

    def never(*given: Any, **options: Any) -> Any:
        raise AssertionError("this is known")

    monkeypatch.setattr(bench, "measure", never)
    assert command.run(*ONE, "--faults", "8") == 0
    assert command.cells == before
    assert len(before) == 2


def test_more_faults_are_added_to_those_that_are_there(command: Command, tmp_path: Path) -> None:
    assert command.run(*ONE, "--faults", "10") == 0
    few = command.cells
    assert command.run(*ONE, "--faults", "25") == 0
    more = command.cells
    command.results.unlink()
    assert command.run(*ONE, "--faults", "25") == 0
    for key, cell in command.cells.items():
        assert len(cell["outcomes"]) == 25
        assert cell["outcomes"] == more[key]["outcomes"]
        assert cell["outcomes"].startswith(few[key]["outcomes"])


def test_an_interrupted_run_loses_nothing_that_was_complete_and_goes_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = trials.measure

    def until_ft2(subject: Any, protection: Any, *given: Any, **options: Any) -> Any:
        if protection.label == "ft2":
            raise KeyboardInterrupt
        return measure(subject, protection, *given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(bench, "measure", until_ft2)
        assert command.run(*ONE, "--faults", "8") == 130
    assert "interrupted: what is complete is in" in capsys.readouterr().err
    (kept,) = command.cells.values()
    assert command.run(*ONE, "--faults", "8") == 0
    assert len(command.cells) == 2
    assert kept in command.cells.values()


def test_processes_measure_what_one_does(command: Command) -> None:
    given = ("--figures", "13", "3", "--policies", "none", "maximals", "--fault-models", "exp")
    assert command.run(*given, "--faults", "4") == 0
    one = command.document
    command.results.unlink()
    assert command.run(*given, "--faults", "4", "--processes", "2") == 0
    two = command.document
    assert command.run(*given, "--faults", "6", "--processes", "2") == 0
    assert [run["trials"] for run in command.document["runs"]] == [16, 8]
    assert two["environment"] | {"threads": 1} == one["environment"] | {"threads": 1}
    assert two["subjects"] == one["subjects"]
    assert two["fault_free"].keys() == one["fault_free"].keys() != set()
    for key, cell in one["cells"].items():
        assert two["cells"][key] == {**cell, "seconds": two["cells"][key]["seconds"]}
    assert two["cells"].keys() == one["cells"].keys()
    assert [each.name for each in command.results.parent.glob("results*")] == ["results.json"]


def test_several_numbers_of_faults_come_one_after_the_other(command: Command) -> None:
    assert command.run(*ONE, "--faults", "7", "3", "5") == 0
    one = command.cells
    assert {len(cell["outcomes"]) for cell in one.values()} == {7}
    command.results.unlink()
    assert command.run(*ONE, "--faults", "3", "7", "--processes", "2") == 0
    for key, cell in command.cells.items():
        timed = ("seconds", "checked", "alike")
        assert {**cell, **{name: one[key][name] for name in timed}} == one[key]


def test_what_a_killed_process_left_is_taken_over(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.run(*ONE, "--faults", "5") == 0
    folder = command.results.with_name("results.json.parts")
    folder.mkdir()
    command.results.rename(folder / "0.json")
    monkeypatch.setattr(bench, "measure", None)
    assert command.run(*ONE, "--faults", "5", "--processes", "2") == 0
    assert len(command.cells) == 2
    assert not folder.exists()


def test_what_fails_in_one_process_does_not_take_the_others_along(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*ONE[:-2], "--processes", "2", "--questions", "10", "--faults", "5")
    assert command.run(*given) == 2
    assert "answers 9 of 10 questions of squad rightly" in capsys.readouterr().err
    assert {key.split(", ")[1] for key in command.cells} == {"gsm8k"}


def test_another_seed_is_another_experiment(command: Command) -> None:
    assert command.run(*ONE, "--faults", "20") == 0
    before = command.cells
    assert command.run(*ONE, "--faults", "20", "--seed", "1") == 0
    digests = {cell["digest"] for cells in (before, command.cells) for cell in cells.values()}
    assert len(digests) == 2


def test_tables_of_a_file_need_no_model(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(*ONE, "--faults", "8") == 0
    measured = capsys.readouterr().out.rpartition("\n\n")[0]
    assert command.run(*ONE, "--faults", "8", "--tables-only") == 0
    assert capsys.readouterr().out.rpartition("\n\n")[0] == measured


def test_a_protection_that_refuses_the_model_leaves_a_sentence_and_not_a_number(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ft2.layers import UnsupportedModelError

    measure = trials.measure

    def refusing(subject: Any, protection: Any, *given: Any, **options: Any) -> Any:
        if protection.label == "ranger":
            raise UnsupportedModelError("ranger cannot reach it")
        return measure(subject, protection, *given, **options)

    monkeypatch.setattr(bench, "measure", refusing)
    options = ("--figures", "13", "--policies", "none", "ranger", "--tasks", "gsm8k")
    assert command.run(*options, "--fault-models", "exp", "--faults", "5") == 0
    out = capsys.readouterr().out
    assert "ranger cannot reach it." in out
    assert "0 of 1 cells have every protection" in out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data", "squad"], "data is TASK=FILE with one of squad, xtreme, gsm8k as TASK"),
        (["--data", "boolq=x.json"], "not 'boolq=x.json'"),
        (["--dtype", "fp8"], "'fp8' is no precision"),
        (["--faults", "0"], "should be a whole number from 1, not '0'"),
        (["--policies", "hope"], "invalid choice: 'hope'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_a_sentence(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(given)
    assert message in capsys.readouterr().err


def test_too_few_right_answers_end_the_command(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(*ONE[:-1], "squad", "--questions", "10") == 2
    assert "answers 9 of 10 questions of squad rightly" in capsys.readouterr().err


def test_a_missing_file_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--ft2-model", str(MODEL), "--data", "squad=nowhere.json"]
    assert evaluate.main(given) == 2
    assert "nowhere.json cannot be read: No such file" in capsys.readouterr().err
