"""Figure 6: leave one kind of projection unprotected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from figures import FIGURES
from protections import FT2
from results import pairs


@pytest.mark.paper(task="squad", models=["gptj-6b-mini"])
def test_no_kind_is_better_left_out_and_ft2_prevents_sdcs(
    measured: Callable[..., Any],
) -> None:
    """With one kind left out there are not fewer SDCs than with all of them protected.

    Which kinds need it most, the table shows; it takes tens of thousands of faults to tell.
    """
    numbers = measured(FIGURES["6"])
    everything = numbers.of("all kinds")
    for label, _ in numbers.facts["parts"]:
        low, _ = pairs([numbers.of(f"all but {label}")], [everything]).difference_interval()
        assert low <= 0, label
    assert numbers.points_above_none(FT2) < 0
