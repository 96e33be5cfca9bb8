"""The items beside a gated test: chunks of trials, and the gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_ft2.deadline import Deadline
from pytest_ft2.plan import GatePlan
from pytest_ft2.timeouts import golden_timeout

__all__ = ["Campaign", "ChunkItem", "GateItem", "tear_down"]


@dataclass(eq=False)
class Campaign:
    """One gate in this process: its plan, the user's items it runs, and its own items.

    Attributes
    ----------
    sets:
        The user's items, one for each parameter set of ``plan.sets``, in that order.
    state:
        What the runs in this process have learned; made by whoever runs the first of them.
    """

    plan: GatePlan
    sets: list[pytest.Function]
    chunks: list[ChunkItem] = field(default_factory=list)
    state: Any = None


class _CampaignItem(pytest.Item):
    """Stands where the test's function stands, with the function's marks."""

    def __init__(
        self, *, name: str, parent: pytest.Collector, campaign: Campaign, **kwargs: Any
    ) -> None:
        # Given as text, so that pytest parses it as it parses the ids of reports and of --lf.
        nodeid = f"{parent.nodeid}::{name}"
        super().__init__(name=name, parent=parent, nodeid=nodeid, **kwargs)
        self.campaign = campaign
        function = campaign.sets[0]
        self._reported = function.reportinfo()
        self.own_markers.extend(
            mark
            for mark in function.own_markers
            if mark.name not in ("parametrize", "timeout", "flaky", "filterwarnings")
        )
        self.keywords.update({mark.name: mark for mark in self.own_markers})
        self.extra_keyword_matches.add(function.originalname)
        # A timeout is for one trial; the whole item must not be stopped by it.
        if self.config.pluginmanager.hasplugin("timeout"):
            self.add_marker(pytest.mark.timeout(0))

    def reportinfo(self) -> tuple[Any, int | None, str]:
        path, line, _ = self._reported
        return path, line, self.name

    def runtest(self) -> None:
        raise RuntimeError(f"{self.nodeid} runs in a protocol of its own")


class ChunkItem(_CampaignItem):
    """Some of a campaign's trials, one after the other."""

    def __init__(self, *, trials: range, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trials = trials


class GateItem(_CampaignItem):
    """Collected, selected and listed like a test; decided by the process that owns the session."""


def tear_down(item: ChunkItem | GateItem, nextitem: pytest.Item | None) -> str | None:
    """Tear down what the next item does not need; return how a fixture failed at that, or None."""
    limit = golden_timeout(item.campaign.sets[0])
    try:
        with Deadline(limit, item.config) as deadline:
            item.session._setupstate.teardown_exact(nextitem)
    except pytest.exit.Exception:
        raise
    except Exception as error:
        return str(pytest.ExceptionInfo.from_exception(error).getrepr(style="short"))
    if deadline.expired:
        return f"Tearing down what was set up for {item.nodeid} took longer than {limit:g} s."
    return None
