"""The common path: a gated test, its trials, its gate, in one process and in workers."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import RIGHT, Project

GATED = f"""
import pytest
from conftest import generate

@pytest.mark.sdc_budget(90)
def test_answer(model):
    assert generate(model) == {RIGHT}
"""


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_a_gate_within_its_budget_passes(project: Project, workers: str) -> None:
    project.pytester.makepyfile(test_it=GATED)
    run = project.run if workers == "-n0" else project.run_apart
    result = run(workers, "--ft2-faults=60", "--ft2-json=out.json")
    result.assert_outcomes(passed=4)
    assert result.ret == pytest.ExitCode.OK
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "pass"
    assert campaign["masked"] + campaign["sdc"] + campaign["due"] == campaign["planned"] == 60
    assert campaign["sdc"] > 0
    assert [trial["trial"] for trial in campaign["trials"]] == list(range(60))
    assert all(trial["landed"] for trial in campaign["trials"])
