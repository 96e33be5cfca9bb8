"""Word on which trials a campaign needs, for whoever runs them.

The process that decides the gate sees which trials have ended; once the first of them decide which
others are needed, it leaves a note in a folder that the processes running trials look into. One
that cannot read it, on another machine, say, runs all trials that are drawn uniformly: that changes
no verdict, which is that of the trials that the first ones chose. Where trials are drawn from
strata that the first ones chose, nobody can run them without the note.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ft2.verdict import Cell
from pytest_ft2.ledger import CampaignLedger, Ledger
from pytest_ft2.plan import GatePlan
from pytest_ft2.reports import payloads

__all__ = ["NeededTrials", "Word", "needed_trials", "wait_for_word"]

_FOLDER = pytest.StashKey[str]()
_INPUT = "ft2_needed"

# Changed with each report that comes in from anywhere.
_PULSE = "pulse"
_SILENCE = 600.0
# So long no trial may come in that others are waited for to run.
_PATIENCE = 20.0
_PAUSE = 0.05
_MISSING = ".missing"


@dataclass(frozen=True)
class Word:
    """What is known of the trials that a campaign needs.

    Attributes
    ----------
    needed:
        Their numbers.
    strata:
        Of each cell of the space the number of its stratum; empty where all trials are uniform.
    more:
        How many of the trials behind the planned ones are drawn from each stratum.
    """

    needed: tuple[range, ...]
    strata: Mapping[Cell, int]
    more: Sequence[int]


def needed_trials(config: pytest.Config, plan: GatePlan) -> Word | None:
    """Return word on the trials that a campaign needs; None while there is none here."""
    folder = _folder(config)
    note = None if folder is None else _note(folder, plan.key)
    if note is None or not note.exists():
        return None
    word = json.loads(note.read_text(encoding="utf-8"))
    return Word(
        tuple(range(*each) for each in word["needed"]),
        {Cell(*cell): number for *cell, number in word["strata"]},
        word["more"],
    )


def wait_for_word(
    config: pytest.Config, plan: GatePlan, ask: Callable[[], None]
) -> Word | list[int] | None:
    """Wait until other processes have run the trials that the word depends on, and return it.

    Where that takes long, those of the trials that are still missing: whoever was to run them may
    have died, or be waiting itself.

    Parameters
    ----------
    ask:
        Asks the process that decides the gate which trials are missing.

    Returns
    -------
    Word, list of int, or None
        None where nobody can be waited for, or none has reported anything for ten minutes.
    """
    folder = _folder(config)
    missing: list[int] | None = None
    since = asked = -math.inf
    while (word := needed_trials(config, plan)) is None:
        if not hasattr(config, "workerinput") or folder is None or not folder.exists():
            return None
        pulse = folder / _PULSE
        if time.time() - (pulse if pulse.exists() else folder).stat().st_mtime > _SILENCE:
            return None
        now = time.monotonic()
        if now > asked + _PATIENCE / 20:
            asked = now
            ask()
        answer = _note(folder, plan.key).with_suffix(_MISSING)
        if answer.exists() and (found := json.loads(answer.read_text("ascii"))) != missing:
            missing, since = found, now
        if missing and now > since + _PATIENCE:
            return missing
        time.sleep(_PAUSE)
    return word


class NeededTrials:
    """Leaves a note as soon as that is known of a campaign; registered with the owner."""

    def __init__(self, config: pytest.Config, ledger: Ledger) -> None:
        self._ledger = ledger
        self._folder = TemporaryDirectory(prefix="ft2-needed-")
        self._noted: set[str] = set()
        config.stash[_FOLDER] = self._folder.name

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_INPUT] = self._folder.name

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        (Path(self._folder.name) / _PULSE).touch()
        for payload in payloads(report):
            if payload["kind"] == "waits":
                self._answer(payload["campaign"])
        heard = {payload["campaign"] for payload in payloads(report) if "campaign" in payload}
        for key in heard - self._noted:
            campaign = self._ledger.campaigns.get(key)
            word = None if campaign is None else _word(campaign)
            if word is not None:
                _write(_note(Path(self._folder.name), key), word)
                self._noted.add(key)

    def _answer(self, key: str) -> None:
        campaign = self._ledger.campaigns.get(key)
        if campaign is not None:
            note = _note(Path(self._folder.name), key)
            _write(note.with_suffix(_MISSING), campaign.missing)


def _write(note: Path, values: object) -> None:
    # Whoever looks sees all of it or nothing.
    written = note.with_suffix(f"{note.suffix}.written")
    written.write_text(json.dumps(values), encoding="utf-8")
    written.replace(note)


def _word(campaign: CampaignLedger) -> dict[str, Any] | None:
    if campaign.needed is None:
        if not campaign.is_hopeless:
            return None
        # Nobody waits for the strata of a campaign that cannot have a verdict.
        return {"needed": [(0, campaign.plan.planned)], "strata": [], "more": []}
    strata: list[list[Any]] = []
    more: Sequence[int] = ()
    if campaign.allocation is not None:
        more = campaign.allocation.more
        strata = [[*cell, number] for cell, number in campaign.allocation.strata.numbers.items()]
    needed = [(each.start, each.stop) for each in campaign.needed]
    return {"needed": needed, "strata": strata, "more": more}


def _folder(config: pytest.Config) -> Path | None:
    name = config.stash.get(_FOLDER, None) or getattr(config, "workerinput", {}).get(_INPUT)
    return None if name is None else Path(name)


def _note(folder: Path, campaign: str) -> Path:
    return folder / blake2b(campaign.encode(), digest_size=16).hexdigest()
