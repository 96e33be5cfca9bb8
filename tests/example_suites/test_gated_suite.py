"""The gated suite, on the quickstart's Llama and a few questions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.example_suites.quickstart_questions import MODEL, capitals, sums, write

SUITE = Path(__file__).resolve().parents[2] / "example_suites" / "paper"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", str(SUITE), "-q", "-p", "no:cacheprovider"]
    command += [f"--ft2-model={MODEL}", "--ft2-dtype=float32", "--paper-new-tokens=12", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=SUITE.parent)


def test_a_gate_is_measured_on_a_model_and_a_file_of_the_users(tmp_path: Path) -> None:
    file = write(tmp_path / "capitals.jsonl", capitals())
    result = run(
        f"--paper-data=squad={file}", "--paper-questions=9", "--ft2-faults=20", "-k", "figure_13"
    )
    assert result.returncode == 0, result.stdout
    (row,) = (line for line in result.stdout.splitlines() if line.endswith("pass"))
    assert row.split()[:2] == ["test_figure_13.py::test_a_passage_is_read", "20"]


def test_the_figures_are_measured_where_faults_are_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "sums.jsonl", sums())
    data = (f"--paper-data=gsm8k={file}", "--paper-questions=4", "-k", "figure_2 or figure_9")
    without = run(*data, "-rs")
    assert without.returncode == 0, without.stdout
    assert "no faults are injected: --ft2-faults=500 measures" in without.stdout
    result = run(*data, "--ft2-faults=20", "-rP")
    assert "| llama, gsm8k, fp32:fp16" in result.stdout
    assert "2 passed" in result.stdout


def test_table_1_holds_for_a_llama(tmp_path: Path) -> None:
    file = write(tmp_path / "capitals.jsonl", capitals())
    result = run(f"--paper-data=squad={file}", "-k", "table_1", "-rA")
    assert result.returncode == 0, result.stdout
    assert "test_table_1.py::test_the_rule_finds_the_critical_layers" in result.stdout


def test_a_missing_file_is_refused_at_the_start() -> None:
    result = run("--paper-data=squad=nowhere.json")
    assert result.returncode == 4
    assert "nowhere.json cannot be read" in result.stderr
