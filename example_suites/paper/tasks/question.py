"""One question, and the split it belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

__all__ = ["Question", "Split", "split_of"]

Split = Literal["train", "validation", "test"]

# Of 50 prompts one is for validation and one for the test.
_PARTS = 50


@dataclass(frozen=True)
class Question:
    """A question with a definite answer.

    Attributes
    ----------
    prompt:
        What a model is given.
    reply:
        What it is trained to write after the prompt, without the end token.
    answers:
        Texts of which a right reply contains one; a number where the task asks for a number.
    """

    prompt: str
    reply: str
    answers: tuple[str, ...]


def split_of(prompt: str) -> Split:
    """Return the split a prompt belongs to.

    It follows from the prompt's text alone: no prompt is in two splits, whatever the seed and
    however many questions are made.
    """
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).digest()
    part = int.from_bytes(digest, "little") % _PARTS
    if part == 0:
        return "test"
    return "validation" if part == 1 else "train"
