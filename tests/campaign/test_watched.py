"""Which batched trials run again alone."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ft2.campaign import Watched


def chosen(planned: int, alone: frozenset[int] = frozenset(), stops: bool = False) -> list[int]:
    watched = Watched(planned, stops)
    return [each for each in range(planned) if watched.takes(each, each not in alone)]


@pytest.mark.parametrize(
    ("planned", "count"), [(1, 1), (4, 4), (40, 5), (500, 5), (501, 6), (25_000, 250)]
)
def test_it_is_one_in_a_hundred_and_at_least_five(planned: int, count: int) -> None:
    found = chosen(planned)
    assert len(found) == count
    # From the first on, over all of the campaign.
    assert found[0] == 0
    assert max((b - a for a, b in pairwise(found)), default=0) <= 101


def test_what_runs_alone_anyway_leaves_it_to_the_next() -> None:
    assert chosen(500, frozenset(range(0, 500, 2))) == [1, 101, 201, 301, 401]


def test_a_campaign_that_may_stop_watches_its_first() -> None:
    assert len([each for each in chosen(4000, stops=True) if each < 8]) >= 5
