"""A gate on a model that lives on a GPU."""

from __future__ import annotations

import platform

import pytest
import torch

from tests.plugin.conftest import Project

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_kernels_assertion_that_makes_the_gpu_unusable_leaves_no_complete_gate(
    project: Project,
) -> None:
    project.pytester.makeini("[pytest]\nft2_fault_model = exp\n")
    project.pytester.makepyfile(
        test_it="""
        import pytest
        import torch

        PROMPT = torch.tensor([[1, 5, 9, 11]])
        SAID = []

        @pytest.mark.sdc_budget(100, due_budget=100)
        def test_answer(ft2_model):
            prompt = PROMPT.to(ft2_model.device)
            said = ft2_model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False
            ).tolist()
            SAID.append(said)
            wrong = [said != SAID[0]] if len(SAID) > 5 else [False]
            # An index out of bounds where the answer is wrong.
            torch.zeros(1, device="cuda")[torch.tensor(wrong, device="cuda").long() * 100]
            assert said == SAID[0]
        """
    )
    result = project.run_apart(
        "--ft2-faults=60",
        "--ft2-chunk=30",
        "--ft2-json=out.json",
        f"--ft2-model={project.model_folder}",
        "--ft2-device=cuda",
        "--ft2-protection=none",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "incomplete"
    assert "The device cannot be trusted since trial " in campaign["reason"]
    assert len(campaign["trials"]) < 30
    assert campaign["trials"][-1]["outcome"] is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("protection", ["none", "ft2"])
def test_a_gate_on_a_gpu_is_measured(project: Project, dtype: str, protection: str) -> None:
    project.pytester.makeini("[pytest]\nft2_fault_model = exp\n")
    project.pytester.makepyfile(
        test_it="""
        import pytest
        import torch

        PROMPT = torch.tensor([[1, 5, 9, 11]])
        SAID = []

        @pytest.mark.sdc_budget(90)
        def test_answer(ft2_model):
            prompt = PROMPT.to(ft2_model.device)
            said = ft2_model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False
            ).tolist()
            SAID.append(said)
            assert said == SAID[0]
        """
    )
    project.run(
        "--ft2-faults=60",
        "--ft2-json=out.json",
        f"--ft2-model={project.model_folder}",
        "--ft2-device=cuda",
        f"--ft2-dtype={dtype}",
        f"--ft2-protection={protection}",
    )
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "pass", campaign["reason"]
    assert all(trial["landed"] for trial in campaign["trials"])
    encoding = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]
    assert f"encoding={encoding}" in campaign["trials"][0]["fault"]
    assert campaign["sdc"] > 0
    environment = project.json()["environment"]
    assert environment["device"] == torch.cuda.get_device_name()
    assert environment["dtype"] == dtype


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("options", "differing"), [(["--ft2-batch=1"], 0), ([], 10)])
def test_a_gate_on_a_gpu_draws_from_strata(
    project: Project, dtype: str, options: list[str], differing: int
) -> None:
    project.pytester.makeini("[pytest]\nft2_sampling = stratified\n")
    project.pytester.makepyfile(
        test_it="""
        import pytest
        import torch

        PROMPTS = [torch.tensor([[1, 5, 9, 11]]), torch.tensor([[1, 7, 3, 2, 30, 12]])]
        SAID = {}

        @pytest.mark.sdc_budget(90)
        @pytest.mark.parametrize("number", [0, 1])
        def test_answer(ft2_model, number):
            prompt = PROMPTS[number].to(ft2_model.device)
            said = ft2_model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False
            ).tolist()
            assert said == SAID.setdefault(number, said)
        """
    )
    project.run(
        "--ft2-faults=1000",
        "--ft2-json=out.json",
        f"--ft2-model={project.model_folder}",
        "--ft2-device=cuda",
        f"--ft2-dtype={dtype}",
        *options,
        "--ft2-protection=none",
    )
    campaign = project.json()["campaigns"][0]
    assert campaign["verdict"] == "pass", campaign["reason"]
    assert (campaign["sampling"], len(campaign["trials"])) == ("stratified", 1000)
    assert all(trial["landed"] for trial in campaign["trials"])
    assert sum(campaign["allocation"]["more"].values()) > 0
    # The exponents that were read ahead are those of the values that the faults struck; in a batch
    # a GPU may compute others. The least and the largest size stand for all beyond.
    others = 0
    for trial in campaign["trials"]:
        change = abs(float(trial["after"]) - float(trial["before"]))
        least, bound = 2.0 ** (trial["size"] - 2), 2.0 ** (trial["size"] + 1)
        others += -20 < trial["size"] < 20 and not least <= change < bound
    assert others <= differing


def test_a_model_on_the_cpu_beside_a_gpu_says_so(project: Project) -> None:
    project.pytester.makepyfile(
        test_it="""
        import pytest
        from conftest import generate

        @pytest.mark.sdc_budget(100)
        def test_answer(model):
            assert len(generate(model)) > 4
        """
    )
    project.run("--ft2-faults=2", "--ft2-json=out.json")
    assert project.json()["environment"]["device"] == platform.machine()
