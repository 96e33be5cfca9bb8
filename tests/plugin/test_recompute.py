"""Gates under ft2-recompute: faults that fail a gate without it, and a report of what it did."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plugin.conftest import RIGHT, Project
from tests.plugin.gated import RIGHT_OR_NOT, WORKERS, run_with

_GATE = RIGHT_OR_NOT.replace("BUDGET", "0.5, due_budget=0.5")
_FAULTS = "--ft2-faults=60"


def _run(project: Project, protection: str, *arguments: str) -> dict[str, Any]:
    project.run(_FAULTS, f"--ft2-protection={protection}", "--ft2-json=out.json", *arguments)
    campaign: dict[str, Any] = project.json()["campaigns"][0]
    return campaign


def _ends(project: Project) -> list[tuple[Any, ...]]:
    """What ``out.json`` says of each trial, but for values, whose last digits hang on the batch."""
    names = ("trial", "fault", "landed", "outcome", "corrected")
    trials = project.json()["campaigns"][0]["trials"]
    return [tuple(trial[name] for name in names) for trial in trials]


def test_a_gate_that_fails_unprotected_passes_with_the_same_faults(project: Project) -> None:
    project.pytester.makepyfile(test_it=_GATE)
    without = _run(project, "none")
    assert without["verdict"] == "fail"
    assert without["sdc"] > 5
    under = _run(project, "ft2-recompute")
    assert [each["fault"] for each in under["trials"]] == [
        each["fault"] for each in without["trials"]
    ]
    assert all(each["landed"] for each in under["trials"])
    assert under["verdict"] == "pass"
    assert (under["sdc"], under["due"]) == (0, 0)
    for before, after in zip(without["trials"], under["trials"], strict=True):
        assert (after["before"], after["after"]) == (before["before"], before["after"])
        assert after["corrected"] == 1 or before["outcome"] == "masked"
    assert {each["corrected"] for each in under["trials"] if each["phase"] == "first"} >= {1}


def test_golden_runs_are_computed_once_and_unchanged(project: Project) -> None:
    project.pytester.makepyfile(test_it=_GATE)
    golden = _run(project, "ft2-recompute")["golden"]
    assert len(golden) == 1
    assert golden[0]["passed"]
    assert not golden[0]["changed_by_protection"]
    assert golden[0]["corrected_values"] == 0
    assert golden[0]["recomputed_steps"] == 0
    assert golden[0]["steps"] == 6


@WORKERS
def test_a_trial_ends_in_a_batch_as_it_does_alone(project: Project, workers: str) -> None:
    project.pytester.makepyfile(test_it=_GATE)
    arguments = (_FAULTS, "--ft2-chunk=20", "--ft2-protection=ft2-recompute", "--ft2-json=out.json")
    assert run_with(project, workers, *arguments, "-o", "ft2_batch=16").ret == pytest.ExitCode.OK
    batches = [each["batch"] for each in project.json()["campaigns"][0]["trials"]]
    assert min(batches) > 1
    together = _ends(project)
    assert run_with(project, "-n0", *arguments).ret == pytest.ExitCode.OK
    assert _ends(project) == together


def test_a_model_whose_forward_cannot_be_undone_makes_the_gate_incomplete(
    project: Project,
) -> None:
    project.pytester.makepyfile(
        test_it=f"""
import pytest
import torch
from torch import nn
from conftest import generate


class Remembering(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, hidden):
        self.seen += 1
        return self.inner(hidden)


@pytest.fixture(scope="session")
def model(model):
    model.model.norm = Remembering(model.model.norm)
    return model


@pytest.mark.sdc_budget(100)
def test_answer(model):
    assert generate(model) == {RIGHT}
"""
    )
    campaign = _run(project, "ft2-recompute")
    assert campaign["verdict"] == "incomplete"
    assert "leaves model.norm.seen behind, and ft2-recompute could not undo" in campaign["reason"]
