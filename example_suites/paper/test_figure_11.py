"""Figure 11: faults that strike the first token, before there are bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from figures import FIGURES
from protections import FT2
from trials import FIRST_TOKEN


@pytest.mark.paper(task="squad", models=["opt-6.7b-mini"])
def test_correcting_nan_and_inf_in_the_first_token_prevents_sdcs(
    measured: Callable[..., Any],
) -> None:
    """FT2 corrects there what needs no bounds."""
    numbers = measured(FIGURES["11"])
    (faults,) = {those for those, _ in numbers.entries if those.where == FIRST_TOKEN}
    assert numbers.points_above_none(FT2, faults) < 0
