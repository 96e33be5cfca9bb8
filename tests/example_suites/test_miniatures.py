"""The miniatures that are kept: small fp16 files, which load as any model and answer questions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tasks import TASKS
from tasks.__main__ import exam_questions
from training.architectures import MINIATURES
from training.exam import share_answered

FOLDER = Path(__file__).resolve().parents[2] / "example_suites" / "paper" / "miniatures"
if not FOLDER.is_dir():
    pytest.skip("source distributions leave the miniatures out", allow_module_level=True)
THERE = sorted(each.name for each in FOLDER.iterdir() if each.is_dir())
# Of 300: train.py asks all of them.
ASKED = 100


def test_all_seven_are_there_and_nothing_else() -> None:
    assert set(THERE) == set(MINIATURES)


def test_all_files_together_are_small() -> None:
    assert sum(each.stat().st_size for each in FOLDER.rglob("*")) < 20e6


@pytest.mark.parametrize("name", THERE)
def test_weights_are_kept_in_fp16(name: str) -> None:
    with safe_open(FOLDER / name / "model.safetensors", "pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    assert kinds == {"F16"}


@pytest.mark.parametrize(
    ("name", "task"), [(name, task) for name in THERE for task in MINIATURES[name].tasks]
)
def test_a_miniature_answers_nine_of_ten_test_questions(name: str, task: str) -> None:
    torch.set_num_threads(1)
    asked = exam_questions(task)[:ASKED]
    share = share_answered(FOLDER / name, TASKS[task], asked, torch.float32, torch.device("cpu"))
    assert share >= 0.9
