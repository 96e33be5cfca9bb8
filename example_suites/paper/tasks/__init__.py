"""The three tasks of the miniatures: made by script, with definite answers.

Each stands for a dataset of the paper (FT2, section 5.1): ``squad`` for SQuAD 2.0, ``xtreme`` for
Google's XTREME, ``gsm8k`` for GSM8K.
"""

from tasks.question import Question, Split, split_of
from tasks.registry import TASKS, Task, questions

__all__ = ["TASKS", "Question", "Split", "Task", "questions", "split_of"]
