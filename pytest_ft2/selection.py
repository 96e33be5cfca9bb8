"""Which trials run, and in which order: a failed gate's again, and the first ones first."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_ft2.items import ChunkItem, GateItem

__all__ = ["FailedGates", "put_chunks_in_order", "refused_selection"]


class FailedGates:
    """Makes ``--lf`` treat a gate's trials as part of the gate.

    ``--lf`` keeps a failed gate and drops its trials, which did not fail: without them it proves
    nothing. It drops them when a file is collected and once more when items are modified, so they
    are added before ``-k``, ``-m`` and ``--deselect`` have their say, and kept from ``--lf``'s.
    """

    def __init__(self) -> None:
        self._kept: dict[GateItem, list[ChunkItem]] = {}

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        if session.config.getoption("lf", False):
            session.config.pluginmanager.register(_KeptBack(self._kept), "ft2-kept-back")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        if not config.getoption("lf", False):
            return (yield)
        there = set(items)
        for gate in [item for item in items if isinstance(item, GateItem)]:
            missing = [chunk for chunk in gate.campaign.chunks if chunk not in there]
            _insert_before(gate, missing, items)
        yield
        there = set(items)
        for gate, chunks in self._kept.items():
            missing = [chunk for chunk in chunks if chunk not in there]
            if gate in there:
                _insert_before(gate, missing, items)
            elif missing:
                config.hook.pytest_deselected(items=missing)
        return None


class _KeptBack:
    """Takes the trials out of the items after ``-k``, ``-m`` and ``--deselect``."""

    def __init__(self, kept: dict[GateItem, list[ChunkItem]]) -> None:
        self._kept = kept

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        failed = config.cache.get("cache/lastfailed", {}) if config.cache is not None else {}
        there = set(items)
        for gate in [item for item in items if isinstance(item, GateItem)]:
            chunks = [
                chunk
                for chunk in gate.campaign.chunks
                if chunk in there and chunk.nodeid not in failed
            ]
            self._kept[gate] = chunks
            there.difference_update(chunks)
        items[:] = [item for item in items if item in there]


def refused_selection(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """Return a sentence on an option that no gate can be selected with, or None."""
    # It remembers one failed test, and leaves out all before it: a gate's trials, other gates.
    if config.getoption("stepwise", False) and any(isinstance(item, GateItem) for item in items):
        return (
            "--stepwise leaves out what ran before the test that failed, and with it a failed "
            "gate's trials: use --lf, or --ft2-faults=0 to step through the tests without faults"
        )
    return None


def put_chunks_in_order(items: list[pytest.Item]) -> None:
    """Let each gate's chunks run in the order of their trials, in the places that they have."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        if isinstance(item, ChunkItem):
            places.setdefault(item.campaign.plan.key, []).append(place)
    for taken in places.values():
        chunks = [item for place in taken if isinstance(item := items[place], ChunkItem)]
        chunks.sort(key=lambda chunk: chunk.trials.start)
        for place, chunk in zip(taken, chunks, strict=True):
            items[place] = chunk


def _insert_before(gate: GateItem, chunks: list[ChunkItem], items: list[pytest.Item]) -> None:
    place = items.index(gate)
    items[place:place] = chunks
