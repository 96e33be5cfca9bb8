"""Figure 3: bounds of another dataset cost right answers where there is no fault at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from figures import FIGURES


@pytest.mark.paper(task="squad", models=["opt-6.7b-mini"])
def test_bounds_of_the_task_itself_cost_no_more_right_answers_than_those_of_others(
    measured: Callable[..., Any],
) -> None:
    """Of each protection that needs bounds."""
    table = measured(FIGURES["3"]).facts["bounds of other datasets"]
    wrong: dict[str, list[int]] = {}
    for label, _, _, _, answered_wrongly, _ in table:
        # The task itself is the first source of each.
        wrong.setdefault(label, []).append(answered_wrongly)
    assert wrong
    for label, (own, *others) in wrong.items():
        assert others, "there is no other task to take bounds of"
        assert own <= min(others), label
