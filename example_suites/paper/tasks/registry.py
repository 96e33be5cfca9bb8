"""The tasks by name, and questions of one of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tasks.gsm8k import word_problem
from tasks.question import Question, Split, split_of
from tasks.squad import english_question
from tasks.xtreme import question_in_some_language

__all__ = ["TASKS", "Task", "questions"]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes
    ----------
    name:
        Its name, after the dataset of the paper it stands for.
    make:
        Draws one question.
    new_tokens:
        How many tokens a model may write at most (FT2, section 5.1).
    """

    name: str
    make: Callable[[random.Random], Question]
    new_tokens: int


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("squad", english_question, new_tokens=60),
        Task("xtreme", question_in_some_language, new_tokens=60),
        Task("gsm8k", word_problem, new_tokens=180),
    )
}


def questions(task: Task, split: Split, seed: int | str = 0) -> Iterator[Question]:
    """Draw questions of one split without end; a prompt comes once only.

    The same seed draws the same questions.
    """
    rng = random.Random(f"{task.name} {split} {seed}")
    drawn: set[str] = set()
    while True:
        question = task.make(rng)
        if question.prompt not in drawn and split_of(question.prompt) == split:
            drawn.add(question.prompt)
            yield question
