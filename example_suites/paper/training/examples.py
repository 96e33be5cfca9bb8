"""Questions as tensors to train on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tasks import TASKS, Question, questions

__all__ = ["IGNORE", "Examples", "encode", "join", "load", "save", "training_examples"]

# The label that the loss of transformers leaves out.
IGNORE = -100

_CHUNK = 10_000
_TENSORS = ("ids", "prompt", "length")


@dataclass(frozen=True)
class Examples:
    """Questions with their replies, one a row.

    Attributes
    ----------
    ids:
        Token ids of prompt, reply and end token, padded on the right: int16, (rows, width).
    prompt:
        How many of a row's tokens are the prompt: int16, (rows,).
    length:
        How many of a row's tokens are no padding: int16, (rows,).
    """

    ids: torch.Tensor
    prompt: torch.Tensor
    length: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Examples:
        """Return these examples on a device."""
        return Examples(self.ids.to(device), self.prompt.to(device), self.length.to(device))

    def batch(self, rows: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and labels of some rows, cut to a width; the labels are the replies alone.

        Both are int64, (rows, width).
        """
        ids = self.ids[rows, :width].long()
        position = torch.arange(width, device=ids.device)
        inside = (position >= self.prompt[rows, None]) & (position < self.length[rows, None])
        return ids, torch.where(inside, ids, IGNORE)


def encode(drawn: Sequence[Question], tokenizer: PreTrainedTokenizerBase) -> Examples:
    """Return questions as tensors.

    Raises
    ------
    ValueError
        If a text holds a word that the tokenizer does not know.
    """
    prompts = tokenizer([question.prompt for question in drawn])["input_ids"]
    replies = tokenizer([question.reply for question in drawn], add_special_tokens=False)
    rows = [
        [*prompt, *reply, tokenizer.eos_token_id]
        for prompt, reply in zip(prompts, replies["input_ids"], strict=True)
    ]
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id, dtype=torch.int16)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int16)
    if bool((ids == tokenizer.unk_token_id).any()):
        raise ValueError("a question holds a word that is not in the tokenizer's vocabulary")
    return Examples(
        ids,
        torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int16),
        torch.tensor([len(row) for row in rows], dtype=torch.int16),
    )


def training_examples(
    tasks: Iterable[str], count: int, tokenizer: Path, processes: int, seed: int
) -> dict[str, Examples]:
    """Draw questions of the training split for each task, in several processes.

    The same seed draws the same questions, whatever the number of processes.

    Parameters
    ----------
    tasks:
        Names of tasks.
    count:
        How many questions of each.
    tokenizer:
        The folder of the tokenizer.
    processes:
        How many processes draw.
    seed:
        The seed.
    """
    chunks = [
        _Chunk(task, min(_CHUNK, count - start), f"{seed} {start}", tokenizer)
        for task in tasks
        for start in range(0, count, _CHUNK)
    ]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(_draw, chunks))
    by_task: dict[str, list[Examples]] = {}
    for chunk, arrays in zip(chunks, parts, strict=True):
        part = Examples(*(torch.from_numpy(array) for array in arrays))
        by_task.setdefault(chunk.task, []).append(part)
    return {task: join(parts) for task, parts in by_task.items()}


@dataclass(frozen=True)
class _Chunk:
    task: str
    count: int
    seed: str
    tokenizer: Path


def _draw(chunk: _Chunk) -> tuple[npt.NDArray[np.int16], ...]:
    tokenizer = AutoTokenizer.from_pretrained(chunk.tokenizer)
    drawn = questions(TASKS[chunk.task], "train", chunk.seed)
    examples = encode(list(itertools.islice(drawn, chunk.count)), tokenizer)
    # Tensors would be passed as shared memory, a file handle each.
    return examples.ids.numpy(), examples.prompt.numpy(), examples.length.numpy()


def join(parts: Sequence[Examples]) -> Examples:
    """Return the rows of several sets of examples as one."""
    width = max(part.ids.shape[1] for part in parts)
    return Examples(
        # The padding's token is 0.
        torch.cat([functional.pad(part.ids, (0, width - part.ids.shape[1])) for part in parts]),
        torch.cat([part.prompt for part in parts]),
        torch.cat([part.length for part in parts]),
    )


def save(examples: Mapping[str, Examples], file: Path) -> None:
    """Write the examples of each task into one file."""
    save_file(
        {
            f"{task}.{name}": getattr(of_task, name)
            for task, of_task in examples.items()
            for name in _TENSORS
        },
        file,
    )


def load(file: Path, tasks: Iterable[str]) -> dict[str, Examples]:
    """Read the examples of some tasks from a file that :func:`save` wrote."""
    with safe_open(file, framework="pt") as tensors:
        return {
            task: Examples(*(tensors.get_tensor(f"{task}.{name}") for name in _TENSORS))
            for task in tasks
        }
