"""A project of a user, in a folder of its own, with a real tiny model on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

# What a run in this process imports first, it forgets again: the rooms must be the same in all.
import pytest_ft2.chunk  # noqa: F401
from tests.tiny_models import tiny_model

CONFTEST = """
import pytest


def __getattr__(name):
    # Left to who asks: the process that deals tests out to workers runs none, and starts sooner.
    if name != "PROMPT":
        raise AttributeError(name)
    import torch

    return torch.tensor([[1, 5, 9, 11]])


def generate(model, prompt=None, **options):
    import torch

    prompt = __getattr__("PROMPT") if prompt is None else prompt
    options = {{"max_new_tokens": 6, "do_sample": False, **options}}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0].tolist()


@pytest.fixture(scope="session")
def model():
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained({model!r}).eval()
"""

RIGHT = [1, 5, 9, 11, 53, 12, 42, 53, 53, 42]
"""What the tiny Llama says to the prompt."""


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as transformers saves it."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    return folder


class Project:
    """A user's project: write tests into it, run pytest in it, read what came of it."""

    def __init__(self, pytester: pytest.Pytester, model_folder: Path, python: Path) -> None:
        self.pytester = pytester
        self._python = python
        self.path = pytester.path
        self.model_folder = model_folder
        pytester.makeini(
            "[pytest]\nft2_model_fixture = model\nft2_fault_model = exp\nft2_encoding = fp16\n"
            # What a trial is does not depend on batches; tests/plugin/test_batches.py is of these.
            "ft2_batch = 1\n"
        )
        pytester.makeconftest(CONFTEST.format(model=str(model_folder)))

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in this process, without plugins that change other tests' runs."""
        return self.pytester.runpytest_inprocess(*QUIET, *arguments)

    def run_apart(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in a process of its own, which may crash or use workers."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(self._python))
            return self.pytester.runpytest_subprocess(*QUIET, *_LOADED, *arguments)

    def run_anew(self, *arguments: str) -> pytest.RunResult:
        """Run pytest as :meth:`run_apart` does, in processes that each hash texts otherwise."""
        return self.pytester.runpytest_subprocess(*QUIET, *arguments)

    def json(self, name: str = "out.json") -> Any:
        """Read what ``--ft2-json`` wrote."""
        return json.loads((self.path / name).read_text())


_WARM = Path(__file__).parent / "warm_python.py"
# Transformers loads anyio, which is a plugin as well.
_LOADED = ("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning")
QUIET = ("-p", "no:randomly", "-p", "no:rerunfailures", "-p", "no:cov")


@pytest.fixture(scope="session")
def warm_python() -> Generator[Path, None, None]:
    """A command like ``python`` that takes no time to load torch and transformers."""
    with tempfile.TemporaryDirectory() as folder:
        command, line = Path(folder, "python"), Path(folder, "line")
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -S {_WARM} connect {line} "$@"\n')
        command.chmod(0o755)
        quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        serve = [sys.executable, str(_WARM), "serve", str(line), str(command)]
        # It ends with its input, and so with this process.
        pipe = subprocess.PIPE
        with subprocess.Popen(serve, stdin=pipe, stdout=pipe, env=os.environ | quiet) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield command
            server.terminate()


@pytest.fixture
def project(
    pytester: pytest.Pytester,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm_python: Path,
) -> Project:
    """An empty project with a model fixture called ``model``."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    torch.set_num_threads(1)
    return Project(pytester, model_folder, warm_python)


_PLAIN_OUTCOMES: list[str | None] = []


@pytest.fixture
def plain_outcomes(project: Project) -> list[str | None]:
    """What the trials of ``test_it.py::test_answer`` end in when it only asserts the answer."""
    from tests.plugin.seen import PLAIN, run_gated

    if not _PLAIN_OUTCOMES:
        _PLAIN_OUTCOMES.extend(run_gated(project, PLAIN).outcomes)
        (project.path / "out.json").unlink()
    assert {"masked", "sdc"} == set(_PLAIN_OUTCOMES)
    return _PLAIN_OUTCOMES
