"""Every run starts from the same random state, and leaves the session's own alone."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Project
from tests.plugin.seen import RUNS, assert_passes, run_gated


def test_every_run_starts_from_the_same_random_state_setup_included(
    project: Project, plain_outcomes: list[str | None]
) -> None:
    run = run_gated(
        project,
        """
import random
import numpy
import torch

@pytest.fixture(scope="session")
def wide():
    random.random(), numpy.random.rand(), torch.rand(1)
    return [random.random(), numpy.random.rand(), torch.rand(1).item()]

@pytest.fixture
def narrow():
    return [random.random(), numpy.random.rand(), torch.rand(1).item()]

@GATE
def test_answer(model, wide, narrow):
    note([wide, narrow, [random.random(), numpy.random.rand(), torch.rand(1).item()]])
    assert generate(model) == RIGHT
""",
    )
    assert_passes(run, plain_outcomes)
    assert run.notes == [run.notes[0]] * RUNS
    assert len({tuple(numbers) for numbers in run.notes[0]}) == 3


def test_sampling_without_a_seed_of_its_own_repeats(project: Project) -> None:
    run = run_gated(
        project,
        """
ANSWERS = []

@GATE
def test_answer(model):
    ANSWERS.append(generate(model, do_sample=True))
    note(ANSWERS[-1])
    assert ANSWERS[-1] == ANSWERS[0]
""",
    )
    assert run.verdict == "pass"
    # The last run talks noise, the one before it is golden again.
    assert run.notes[0] == run.notes[1] == run.notes[-2]


def test_the_sessions_own_random_state_is_as_without_campaigns(project: Project) -> None:
    project.pytester.makepyfile(
        f"""
        import random
        import numpy
        import pytest
        import torch
        from pathlib import Path
        from conftest import generate

        def test_before():
            random.seed(5), numpy.random.seed(5), torch.manual_seed(5)

        @pytest.mark.sdc_budget(100)
        def test_answer(model):
            assert generate(model) == {[1, 5, 9, 11, 53, 12, 42, 53, 53, 42]}

        def test_after():
            drawn = [random.random(), numpy.random.rand(), torch.rand(1).item()]
            Path("drawn.txt").write_text(repr(drawn))
        """
    )
    drawn = []
    for faults in ("0", "10"):
        result = project.run(f"--ft2-faults={faults}", "--ft2-protection=none")
        assert result.ret == pytest.ExitCode.OK
        drawn.append((project.path / "drawn.txt").read_text())
    assert drawn[0] == drawn[1]
