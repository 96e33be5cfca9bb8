"""What the owner learns from pytest-xdist; registered only when that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_ft2.owner import Owner

__all__ = ["WorkerHooks"]


class WorkerHooks:
    """Tells the owner which items the workers collected."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self._owner.ids = list(ids)
