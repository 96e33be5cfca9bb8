"""Ask a saved model the test questions, as its user would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from judging import JUDGES
from tasks import Question, Task

__all__ = ["share_answered"]

_BATCH = 100


@torch.no_grad()
def share_answered(
    folder: Path,
    task: Task,
    asked: Sequence[Question],
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Return the share of questions that a saved model answers rightly by greedy decoding.

    Parameters
    ----------
    folder:
        Where the model and its tokenizer are saved.
    task:
        The task, which sets how many tokens may be written and how replies are judged.
    asked:
        The questions.
    dtype:
        The type to compute in.
    device:
        The device to compute on.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0
    for start in range(0, len(asked), _BATCH):
        some = asked[start : start + _BATCH]
        prompts = tokenizer(
            [question.prompt for question in some], padding=True, return_tensors="pt"
        ).to(device)
        written = model.generate(**prompts, max_new_tokens=task.new_tokens, do_sample=False)
        replies = tokenizer.batch_decode(
            written[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(
            JUDGES[task.name](reply, question.answers)
            for question, reply in zip(some, replies, strict=True)
        )
    return right / len(asked)
