"""Figure 6: leave one kind of projection unprotected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from figures import FIGURES
from protections import FT2, NONE
from results import pairs


@pytest.mark.paper(task="squad", models=["gptj-6b-mini"])
def test_kinds_that_the_rule_calls_critical_need_protection_more_than_the_others(
    measured: Callable[..., Any],
) -> None:
    """Left out, they let more SDCs through, on the average over kinds; ft2 protects them alone."""
    numbers = measured(FIGURES["6"])
    everything = numbers.of("all kinds")
    rises: dict[bool, list[float]] = {True: [], False: []}
    for label, critical in numbers.facts["parts"]:
        compared = pairs([everything], [numbers.of(f"all but {label}")])
        rises[critical].append(compared.difference)
    assert sum(rises[True]) / len(rises[True]) >= sum(rises[False]) / len(rises[False])
    assert pairs([numbers.of(NONE)], [numbers.of(FT2)]).difference <= 0
