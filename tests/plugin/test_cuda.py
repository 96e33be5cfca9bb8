"""A gate on a model that lives on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.plugin.conftest import Project

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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
