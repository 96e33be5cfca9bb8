"""What tests of the plugin write into a project, and how they read what came of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plugin.conftest import RIGHT, Project

__all__ = ["IN_TRIAL", "RIGHT_OR_NOT", "WORKERS", "outcomes", "run_with", "verdicts"]

WORKERS = pytest.mark.parametrize("workers", ["-n0", "-n2"])

RIGHT_OR_NOT = f"""
import pytest
from conftest import generate

@pytest.mark.sdc_budget(BUDGET)
def test_answer(model):
    assert generate(model) == {RIGHT}
"""
"""A gated test; replace BUDGET. Of its first 40 trials, some are SDCs."""

IN_TRIAL = f"""
import os
import time
import pytest
from conftest import generate

RIGHT = {RIGHT}

@pytest.mark.sdc_budget(100)
def test_answer(model):
    answer = generate(model)
    if answer != RIGHT and answer[:5] == RIGHT[:5]:
        EVENT
    assert answer == RIGHT
"""
"""A gated test; what replaces EVENT happens in some trials, and in no run without a fault."""


def run_with(project: Project, workers: str, *arguments: str) -> pytest.RunResult:
    """Run pytest with ``-n0`` in this process, with workers in one of its own."""
    run = project.run if workers == "-n0" else project.run_apart
    return run(workers, *arguments)


def verdicts(project: Project) -> dict[str, str | None]:
    """Return the verdict of each campaign in ``out.json``, by the campaign's name."""
    return {each["nodeid"]: each["verdict"] for each in project.json()["campaigns"]}


def outcomes(project: Project, campaign: int = 0) -> list[tuple[Any, ...]]:
    """Return what ``out.json`` says of each trial that must not depend on how tests are run."""
    names = ("trial", "params", "fault", "before", "after", "landed", "outcome", "corrected")
    trials = project.json()["campaigns"][campaign]["trials"]
    return [tuple(trial[name] for name in names) for trial in trials]
