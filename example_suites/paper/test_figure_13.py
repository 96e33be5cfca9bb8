"""Figure 13: how many of the faults turn a right answer into a wrong one, by model and task.

The budgets hold for ``ft2``; ``--ft2-protection`` compares others, on the same faults.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from judging import contains_answer, contains_number
from readers import Question


@pytest.mark.paper(task="squad")
@pytest.mark.sdc_budget(5)
def test_a_passage_is_read(say: Callable[[Question], str], question: Question) -> None:
    """What the model says holds a reference answer (SQuAD 2.0)."""
    text = say(question)
    assert contains_answer(text, question.answers)


@pytest.mark.paper(task="xtreme")
@pytest.mark.sdc_budget(5)
def test_a_passage_in_some_language_is_read(
    say: Callable[[Question], str], question: Question
) -> None:
    """What the model says holds a reference answer (XTREME)."""
    text = say(question)
    assert contains_answer(text, question.answers)


@pytest.mark.paper(task="gsm8k")
@pytest.mark.sdc_budget(5)
def test_a_word_problem_is_solved(say: Callable[[Question], str], question: Question) -> None:
    """The right number is among those that the model says (GSM8K)."""
    text = say(question)
    assert contains_number(text, question.answers)
