"""Write the test questions of each task into ``questions/``.

Usage: ``python -m tasks`` in this suite's folder.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tasks import TASKS, Question, questions

QUESTIONS = Path(__file__).resolve().parents[1] / "questions"
COUNT = 300


def exam_questions(task: str) -> list[Question]:
    """Return the test questions of a task."""
    return list(itertools.islice(questions(TASKS[task], "test"), COUNT))


def as_lines(task: str, asked: list[Question]) -> str:
    """Return questions as JSON, one a line, with an id made of the task and the line's number."""
    lines = [
        json.dumps(
            {
                "id": f"{task}-{number}",
                "prompt": question.prompt,
                "answers": list(question.answers),
            },
            ensure_ascii=False,
        )
        for number, question in enumerate(asked)
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all tasks' files."""
    QUESTIONS.mkdir(exist_ok=True)
    for task in TASKS:
        text = as_lines(task, exam_questions(task))
        (QUESTIONS / f"{task}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
