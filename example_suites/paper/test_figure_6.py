"""Figure 6: leave one kind of projection unprotected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from figures import FIGURES
from protections import FT2, NONE
from results import pairs


@pytest.mark.paper(task="squad", models=["gptj-6b-mini"])
def test_every_kind_that_is_left_out_lets_sdcs_through_and_ft2_prevents_some(
    measured: Callable[..., Any],
) -> None:
    """No kind is better left out: with all of them protected the fewest SDCs are left.

    Which kinds need it most, the table shows; it takes tens of thousands of faults to tell.
    """
    numbers = measured(FIGURES["6"])
    everything = numbers.of("all kinds")
    for label, _ in numbers.facts["parts"]:
        low, _ = pairs([numbers.of(f"all but {label}")], [everything]).difference_interval()
        assert low <= 0, label
    assert pairs([numbers.of(NONE)], [numbers.of(FT2)]).difference <= 0
