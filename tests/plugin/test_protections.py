"""Gates under protections with profiled bounds: which file they take, and which they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import ft2
from tests.plugin.conftest import RIGHT, Project
from tests.plugin.gated import RIGHT_OR_NOT, WORKERS, outcomes, run_with
from tests.tiny_models import tiny_model

_GATE = RIGHT_OR_NOT.replace("BUDGET", "100")
_POLICIES = ["ranger", "maximals", "global-clipper", "ft2-offline"]


def _save_profile(project: Project, policy: str, folder: Path | None = None) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder or project.model_folder).eval()
    prompts = torch.tensor([[1, 5, 9, 11], [1, 6, 7, 8]])
    profile = ft2.profile(model, prompts, policy, max_new_tokens=6, progress=False)
    profile.save(project.path / "profile.json")


@pytest.mark.parametrize("policy", _POLICIES)
def test_a_gate_is_measured_with_profiled_bounds(project: Project, policy: str) -> None:
    project.pytester.makepyfile(test_it=_GATE)
    _save_profile(project, policy)
    result = project.run(
        "--ft2-faults=40",
        f"--ft2-protection={policy}",
        "--ft2-bounds=profile.json",
        "--ft2-json=out.json",
    )
    assert result.ret == pytest.ExitCode.OK
    campaign = project.json()["campaigns"][0]
    assert campaign["protection"] == policy
    assert campaign["verdict"] == "pass"
    assert campaign["golden"][0]["corrected_values"] == 0
    assert any(trial["corrected"] for trial in campaign["trials"])


@WORKERS
def test_every_worker_takes_the_bounds_of_the_same_file(project: Project, workers: str) -> None:
    project.pytester.makepyfile(test_it=_GATE)
    _save_profile(project, "ft2-offline")
    arguments = (
        "--ft2-faults=40",
        "--ft2-chunk=10",
        "--ft2-protection=ft2-offline",
        "--ft2-bounds=profile.json",
        "--ft2-json=out.json",
    )
    assert run_with(project, workers, *arguments).ret == pytest.ExitCode.OK
    seen = outcomes(project)
    assert run_with(project, "-n0", *arguments).ret == pytest.ExitCode.OK
    assert outcomes(project) == seen
    assert sum(trial[-1] for trial in seen) > 0


def test_a_marker_chooses_a_protection_and_the_ini_file_its_bounds(project: Project) -> None:
    project.pytester.makepyfile(test_it=_GATE.replace("(100)", '(100, protection="maximals")'))
    _save_profile(project, "maximals")
    with (project.path / "tox.ini").open("a") as file:
        file.write("\nft2_bounds = profile.json\n")
    below = project.path / "below"
    below.mkdir()
    (project.path / "test_it.py").rename(below / "test_it.py")
    result = project.run("--ft2-faults=3", "--ft2-json=out.json", "below")
    assert result.ret == pytest.ExitCode.OK
    assert project.json()["campaigns"][0]["protection"] == "maximals"


def _refused_at_collection(project: Project, *arguments: str) -> str:
    result = project.run("--ft2-faults=3", *arguments)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    return result.stdout.str()


def test_a_protection_without_its_profile_is_refused_at_collection(project: Project) -> None:
    project.pytester.makepyfile(test_it=_GATE)
    assert (
        "test_it.py::test_answer: protection ranger needs profiled bounds: write them with "
        "ft2.profile(model, prompts, policy='ranger').save(FILE), and pass --ft2-bounds=FILE."
    ) in _refused_at_collection(project, "--ft2-protection=ranger")


def test_another_policys_profile_and_what_is_none_are_refused_at_collection(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=_GATE)
    _save_profile(project, "maximals")
    arguments = ("--ft2-protection=ranger", "--ft2-bounds=profile.json")
    assert (
        "--ft2-bounds=profile.json holds bounds for maximals, not for the protection ranger."
    ) in _refused_at_collection(project, *arguments)
    (project.path / "profile.json").write_text(json.dumps({"bounds": {}}))
    assert "profile.json is no profile that ft2.profile" in _refused_at_collection(
        project, *arguments
    )


def test_another_models_profile_makes_the_gate_incomplete_before_any_trial(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project.pytester.makepyfile(test_it=_GATE)
    other = tmp_path_factory.mktemp("other")
    tiny_model(seed=1).save_pretrained(other)
    _save_profile(project, "ranger", other)
    result = project.run(
        "--ft2-faults=3",
        "--ft2-protection=ranger",
        "--ft2-bounds=profile.json",
        "--ft2-json=out.json",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "incomplete"
    assert campaign["trials"] == []
    assert (
        "Protection ranger cannot be put on the model of test_it.py::test_answer: the profile was "
        "made on another model (LlamaForCausalLM) than this LlamaForCausalLM"
    ) in campaign["reason"]


def test_a_correction_is_chosen_for_ft2s_layers_and_refused_for_others(project: Project) -> None:
    project.pytester.makepyfile(test_it=_GATE)
    _save_profile(project, "ranger")
    arguments = ("--ft2-bounds=profile.json", "--ft2-correction=zero")
    assert (
        "--ft2-correction is for ft2 and ft2-offline: ranger has a correction of its own."
    ) in _refused_at_collection(project, "--ft2-protection=ranger", *arguments)
    _save_profile(project, "ft2-offline")
    outcomes_of = {}
    for correction in ("clip", "zero"):
        project.run(
            "--ft2-faults=60",
            "--ft2-protection=ft2-offline",
            "--ft2-bounds=profile.json",
            f"--ft2-correction={correction}",
            "--ft2-json=out.json",
        )
        trials = project.json()["campaigns"][0]["trials"]
        outcomes_of[correction] = [each["outcome"] for each in trials]
    assert outcomes_of["clip"] != outcomes_of["zero"]


def test_a_replay_line_names_the_bounds(project: Project) -> None:
    project.pytester.makepyfile(test_it=_GATE.replace("100", "0"))
    _save_profile(project, "ranger")
    arguments = ("--ft2-protection=ranger", "--ft2-bounds=profile.json", "--ft2-faults=40")
    text = project.run(*arguments).stdout.str()
    line = next(each.strip() for each in text.splitlines() if "--ft2-replay=" in each)
    assert "--ft2-bounds=profile.json" in line
    shown = project.run(*line.replace("'", "").split()[1:]).stdout.str()
    assert "protection: ranger" in shown


def test_the_protected_model_of_an_ungated_test_takes_the_bounds(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=f"""
        from conftest import generate

        def test_answer(protected_model):
            assert generate(protected_model) == {RIGHT}
        """
    )
    _save_profile(project, "ranger")
    chosen = ("--ft2-protection=ranger", "--ft2-bounds=profile.json")
    project.run(*chosen).assert_outcomes(passed=1)
    result = project.run(chosen[0])
    result.assert_outcomes(errors=1)
    assert "test_it.py::test_answer: protection ranger needs profiled bounds" in result.stdout.str()
