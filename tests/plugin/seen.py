"""Run a gated test whose body notes what it sees, and read the notes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from tests.plugin.conftest import RIGHT, Project

__all__ = ["DEBUGGER", "FAULTS", "PLAIN", "RUNS", "Gated", "assert_passes", "run_gated"]

FAULTS = 20

# The user's own item, the chunk's golden run, noise, the trials, a golden run and noise at the end.
RUNS = FAULTS + 5

PLAIN = """
@GATE
def test_answer(model):
    assert generate(model) == RIGHT
"""

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

_HEAD = f"""
import json
import pytest
from pathlib import Path
from conftest import generate

RIGHT = {RIGHT}
HERE = Path(__file__).parent
GATE = pytest.mark.sdc_budget(100, due_budget=100)


def note(value):
    with (HERE / "notes.txt").open("a") as file:
        file.write(json.dumps(value) + "\\n")

"""


@dataclass
class Gated:
    """A run of one gated test.

    Attributes
    ----------
    notes:
        What the test noted, in order, in all its runs.
    """

    result: pytest.RunResult
    campaign: dict[str, Any]
    notes: list[Any]

    @property
    def verdict(self) -> str | None:
        """The gate's verdict."""
        return self.campaign["verdict"]

    @property
    def reason(self) -> str:
        """The sentences that say why."""
        return self.campaign["reason"] or ""

    @property
    def outcomes(self) -> list[str | None]:
        """The outcome of each trial."""
        return [trial["outcome"] for trial in self.campaign["trials"]]


def run_gated(
    project: Project, body: str, *arguments: str, faults: int = FAULTS, apart: bool = False
) -> Gated:
    """Run the one gated test of `body`, which can use RIGHT, GATE, generate and note.

    Its trials are unprotected, in one chunk, unless `arguments` say otherwise; in this process,
    unless they are to run `apart`.
    """
    project.pytester.makepyfile(test_it=_HEAD + body)
    run = project.run_apart if apart else project.run
    result = run(
        f"--ft2-faults={faults}", "--ft2-protection=none", "--ft2-json=out.json", *arguments
    )
    campaigns = project.json()["campaigns"]
    assert len(campaigns) == 1
    notes = project.path / "notes.txt"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return Gated(result, campaigns[0], [json.loads(line) for line in lines])


def assert_passes(run: Gated, outcomes: list[str | None]) -> None:
    """Assert that the gate passes, its trials ending in `outcomes`."""
    assert run.reason.startswith(f"{outcomes.count('sdc')} of {FAULTS} faults")
    assert run.verdict == "pass"
    assert run.outcomes == outcomes
    assert run.result.ret == pytest.ExitCode.OK
