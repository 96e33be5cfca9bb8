"""What was measured, in a JSON file that is complete after each step and grows with each run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ft2.verdict import Pairs, interval
from trials import DUE, RIGHT, SDC, UNREACHED, FaultFree, FaultSet

__all__ = ["CHANGED", "Cell", "Entry", "Place", "Results", "pairs", "pooled"]

# The letters of texts other than the fault-free one, right or wrong.
CHANGED = RIGHT + SDC

_FORMAT, _VERSION = "ft2 paper evaluation", 1


@dataclass(frozen=True)
class Place:
    """A model, a task and a precision, by name."""

    model: str
    task: str
    precision: str

    def __str__(self) -> str:
        return f"{self.model}, {self.task}, {self.precision}"


@dataclass(frozen=True)
class Cell:
    """One number of a table: where, which faults, under which protection (by its label)."""

    place: Place
    faults: FaultSet
    protection: str

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.place}, {self.faults.fault_model}, {self.faults.where}: {self.protection}"


@dataclass(frozen=True)
class Entry:
    """What is known of a cell.

    Attributes
    ----------
    digest:
        A hash of all that trials depend on beside their numbers.
    outcomes:
        A letter for each trial (:mod:`trials`).
    fault_free:
        The answers without a fault.
    rows, alone, checked, alike, seconds:
        As :class:`trials.Measured` has them; rows of the last run, else sums over all runs, of the
        seconds its share.
    device:
        What it was measured on.
    """

    digest: str
    outcomes: str
    fault_free: FaultFree
    rows: int
    alone: int
    checked: int
    alike: int
    seconds: float
    device: str

    @property
    def trials(self) -> int:
        """How many faults struck."""
        return len(self.outcomes) - self.unreached

    @property
    def sdc(self) -> int:
        """Wrong answers that nothing announced."""
        return self.outcomes.count(SDC)

    @property
    def due(self) -> int:
        """Exceptions in the model."""
        return self.outcomes.count(DUE)

    @property
    def unreached(self) -> int:
        """Trials whose step the protected answer never came to: no fault struck."""
        return self.outcomes.count(UNREACHED)

    @property
    def changed(self) -> int:
        """Texts other than the fault-free one, right or wrong."""
        return sum(self.outcomes.count(letter) for letter in CHANGED)

    @property
    def rate(self) -> float:
        """SDCs in per cent of the trials."""
        return 100 * self.sdc / self.trials if self.trials else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval of the rate (Clopper and Pearson)."""
        return interval(self.sdc, self.trials) if self.trials else (0.0, 100.0)

    def first(self, count: int) -> Entry:
        """Return what the first trials alone say."""
        share = count / max(len(self.outcomes), 1)
        if share >= 1:
            return self
        return Entry(
            **{
                **self.__dict__,
                "outcomes": self.outcomes[:count],
                "seconds": self.seconds * share,
            }
        )


def pairs(before: Sequence[Entry], after: Sequence[Entry], events: str = SDC) -> Pairs:
    """Pair the same faults under two protections, over some cells.

    Faults that struck under one of them alone are left out. `events` are the letters that count:
    SDCs, or with ``CHANGED`` every text that is not the fault-free one.
    """
    return Pairs.of(
        (one in events, other in events)
        for here, there in zip(before, after, strict=True)
        for one, other in zip(here.outcomes, there.outcomes, strict=True)
        if UNREACHED not in (one, other)
    )


def pooled(entries: Sequence[Entry]) -> tuple[float, tuple[float, float]]:
    """Return the mean rate over cells of equally many trials, and an interval of at least 95 %.

    The sum of binomial counts of different rates varies less than a binomial count of their mean
    (Hoeffding, 1956), so that the exact interval of the pooled count holds for the mean.
    """
    sdc, trials = (sum(getattr(each, name) for each in entries) for name in ("sdc", "trials"))
    if not trials:
        return 0.0, (0.0, 100.0)
    return 100 * sdc / trials, interval(sdc, trials)


@dataclass
class Results:
    """All entries, by the keys of their cells.

    Parameters
    ----------
    path:
        The file; None keeps them in memory alone.
    environment:
        What they were measured with last.
    runs:
        Of each run that measured anything: how many trials, in which wall time, where.
    subjects, fault_free:
        Facts of places, and answers without faults under bounds of other datasets.
    """

    path: Path | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    subjects: dict[str, dict[str, Any]] = field(default_factory=dict)
    fault_free: dict[str, dict[str, Any]] = field(default_factory=dict)
    _entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None) -> Results:
        """Read what an earlier run left, if anything.

        Raises
        ------
        ValueError
            If the file is there and holds something else.
        """
        results = cls(path)
        if path is None or not path.exists():
            return results
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if (document["format"], document["version"]) != (_FORMAT, _VERSION):
                raise ValueError("format")
            results.environment = dict(document["environment"])
            results.runs = list(document.get("runs", []))
            results.subjects = dict(document["subjects"])
            results.fault_free = dict(document["fault_free"])
            for key, entry in document["cells"].items():
                free = FaultFree(**entry.pop("fault_free"))
                results._entries[key] = Entry(**entry, fault_free=free)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} holds no results of this evaluation: name another file with --json"
            ) from error
        return results

    def get(self, cell: Cell, digest: str | None = None) -> Entry | None:
        """Return what is known of a cell, if it is of the trials that `digest` names."""
        entry = self._entries.get(cell.key)
        return entry if entry is not None and digest in (None, entry.digest) else None

    def known(self, cell: Cell, count: int) -> Entry | None:
        """Return a cell's first trials, if there are so many.

        They are of the subject that was measured last: numbers of other weights, questions or
        seeds met other faults, and are never put beside these.
        """
        entry = self._entries.get(cell.key)
        if entry is None or len(entry.outcomes) < count:
            return None
        subject = self.subjects.get(str(cell.place), {}).get("digest")
        of_another = subject is not None and not f"{entry.digest} ".startswith(f"{subject} ")
        return None if of_another else entry.first(count)

    def put(self, cell: Cell, entry: Entry) -> None:
        """Set what is known of a cell."""
        self._entries[cell.key] = entry

    @property
    def trials(self) -> int:
        """How many there are in all."""
        return sum(len(entry.outcomes) for entry in self._entries.values())

    def at(self, place: Place, path: Path) -> Results:
        """Return what is known of one place alone, to be kept in a file of its own."""
        return Results(
            path,
            subjects={k: v for k, v in self.subjects.items() if k == str(place)},
            fault_free={k: v for k, v in self.fault_free.items() if k.startswith(f"{place}: ")},
            _entries={k: v for k, v in self._entries.items() if k.startswith(f"{place}, ")},
        )

    def add(self, others: Results) -> None:
        """Take in other results; where both have numbers, theirs count."""
        self.subjects |= others.subjects
        self.fault_free |= others.fault_free
        self._entries |= others._entries

    def save(self) -> None:
        """Write the file; an older one is replaced at once or not at all."""
        if self.path is None:
            return
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "environment": self.environment,
            "runs": self.runs,
            "subjects": self.subjects,
            "fault_free": self.fault_free,
            "cells": {key: asdict(entry) for key, entry in self._entries.items()},
        }
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
        partial.replace(self.path)
