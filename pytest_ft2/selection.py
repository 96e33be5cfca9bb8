"""Bring a failed gate's trials back when ``--lf`` reruns it."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_ft2.items import ChunkItem, GateItem

__all__ = ["FailedGates"]


class FailedGates:
    """``--lf`` keeps the gate and drops its trials, which did not fail: without them it proves
    nothing. It drops them when a file is collected and once more when items are modified.
    """

    def __init__(self) -> None:
        self._kept: list[ChunkItem] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        if not config.getoption("lf", False):
            return (yield)
        there = set(items)
        for gate in [item for item in items if isinstance(item, GateItem)]:
            missing = [chunk for chunk in gate.campaign.chunks if chunk not in there]
            place = items.index(gate)
            items[place:place] = missing
        snapshot = _Snapshot()
        config.pluginmanager.register(snapshot)
        try:
            yield
        finally:
            config.pluginmanager.unregister(snapshot)
        kept = set(items)
        for gate in [item for item in items if isinstance(item, GateItem)]:
            lost = [
                chunk
                for chunk in gate.campaign.chunks
                if chunk in snapshot.selected and chunk not in kept
            ]
            place = items.index(gate)
            items[place:place] = lost
        return None


class _Snapshot:
    """Remembers which chunks ``-k``, ``-m`` and ``--deselect`` leave."""

    def __init__(self) -> None:
        self.selected: set[pytest.Item] = set()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.selected = {item for item in items if isinstance(item, ChunkItem)}
