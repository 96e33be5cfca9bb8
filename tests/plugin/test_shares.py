"""Workers share a machine: each has GPUs of its own, and its share of the threads."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytest_ft2 import shares
from tests.plugin.conftest import QUIET, Project
from tests.plugin.gated import RIGHT_OR_NOT


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", *shares._THREADS_CHOSEN):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("workers", "gpus", "expected"),
    [
        (2, ["0", "1"], ["0", "1"]),
        (2, ["4", "GPU-7", "1", "0", "9"], ["4,GPU-7", "1,0"]),
        (1, ["0", "1"], ["0,1"]),
        (3, ["0", "1"], [None] * 3),
        (2, [], [None] * 2),
    ],
)
def test_each_worker_has_gpus_of_its_own_if_there_are_enough(
    workers: int, gpus: list[str], expected: list[str | None]
) -> None:
    given = [shares.share(worker, workers, gpus) for worker in range(workers)]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in given] == expected


def test_cores_are_shared_out_unless_somebody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "_cores", lambda: 10)
    given = [shares.share(0, workers, [])["OMP_NUM_THREADS"] for workers in (1, 4, 20)]
    assert given == ["10", "2", "1"]
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    assert shares.share(0, 4, []) == {}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("2,0", ["2", "0"]), ("", []), ("-1", []), ("1, 3,-1,2", ["1", "3"])],
)
def test_the_gpus_are_those_that_are_chosen(
    monkeypatch: pytest.MonkeyPatch, chosen: str, expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert shares.gpus_here() == expected


def test_where_none_are_chosen_they_are_those_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert shares.gpus_here() == []
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert shares.gpus_here() == ["0", "1", "2"]


def test_a_worker_knows_whether_it_shares_its_gpu() -> None:
    def said(**given: Any) -> str | None:
        return shares.crowding(SimpleNamespace(**given))  # type: ignore[arg-type]

    assert said() is None
    assert said(workerinput={"workercount": 4, shares.GPUS: 4}) is None
    assert said(workerinput={"workercount": 4, shares.GPUS: 0}) is None
    sentence = said(workerinput={"workercount": 4, shares.GPUS: 2})
    assert sentence == ("4 workers would share 2 GPUs, where each needs one of its own: use -n 2")


def test_workers_are_born_with_their_shares(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    pytester.makeconftest(
        """
        import os
        BORN_WITH = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
        """
    )
    pytester.makepyfile(
        """
        import os
        from pathlib import Path
        from conftest import BORN_WITH

        def test_it():
            Path(os.environ["PYTEST_XDIST_WORKER"]).write_text(" ".join(BORN_WITH))
        """
    )
    pytester.runpytest_subprocess(*QUIET, "-n2", "--dist=each", "--ft2-faults=1")
    threads = max(len(os.sched_getaffinity(0)) // 2, 1)
    assert (pytester.path / "gw0").read_text() == f"3 {threads}"
    assert (pytester.path / "gw1").read_text() == f"1 {threads}"
    result = pytester.runpytest_subprocess(*QUIET, "-n3", "--ft2-faults=1", "--ft2-device=cuda")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*3 workers would share 2 GPUs, * use -n 2"])


def test_a_model_on_a_gpu_that_workers_would_share_leaves_no_complete_gate(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_ft2.goldens.crowding", lambda config: "use -n 2")
    # On a machine with a GPU, other tests in this process have used it.
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100"))
    project.run("--ft2-faults=4", "--ft2-json=out.json")
    assert project.json()["campaigns"][0]["verdict"] == "pass"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    project.run("--ft2-faults=4", "--ft2-json=out.json")
    (campaign,) = project.json()["campaigns"]
    assert campaign["verdict"] == "incomplete"
    assert "test_it.py::test_answer uses a GPU, and use -n 2" in campaign["reason"]
