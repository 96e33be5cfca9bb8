"""What a figure of the paper is here: numbers that are needed, and a table made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from bench import Bench, Need
from protections import Protection
from published import MINIATURE
from results import Cell, Entry, Place, Results
from trials import FaultSet

__all__ = ["Figure", "Selection", "known", "markdown", "shown", "with_interval"]


@dataclass(frozen=True)
class Selection:
    """What was asked for.

    Attributes
    ----------
    subjects:
        ``(model, task)`` pairs that there are.
    named:
        Whether the user named the models: then a figure takes those, and not the paper's.
    precisions, fault_models:
        Names; a figure for one of these takes the first.
    protections:
        Those to compare.
    trials:
        How many for each number.
    """

    subjects: tuple[tuple[str, str], ...]
    named: bool
    precisions: tuple[str, ...]
    fault_models: tuple[str, ...]
    protections: tuple[Protection, ...]
    trials: int

    @property
    def exponent(self) -> str:
        """The paper's hardest fault model, ``exp``, or what there is in its place."""
        return "exp" if "exp" in self.fault_models else self.fault_models[0]


class Figure:
    """A figure, or a table, of the paper.

    Attributes
    ----------
    name, title:
        Its number, and what it shows.
    models, tasks:
        Those of the paper's that it is of; empty for all.
    all_precisions:
        Whether it is of every precision, or of the first alone.
    """

    name = ""
    title = ""
    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    all_precisions = False

    def places(self, selection: Selection) -> list[Place]:
        """Return where it is measured."""
        chosen = list(selection.subjects)
        if not selection.named and self.models:
            chosen = [pair for pair in chosen if pair[0].removesuffix(MINIATURE) in self.models]
        if self.tasks and any(task in self.tasks for _, task in chosen):
            chosen = [pair for pair in chosen if pair[1] in self.tasks]
        precisions = selection.precisions if self.all_precisions else selection.precisions[:1]
        return [Place(*pair, precision) for precision in precisions for pair in chosen]

    def needs(self, bench: Bench, selection: Selection) -> list[Need]:
        """Return the trials that the table is made of, in one place."""
        return []

    def measure_more(self, bench: Bench, selection: Selection) -> None:
        """Measure what is no trial."""

    def table(self, results: Results, selection: Selection) -> str:
        """Return the table in Markdown, with a sentence or two below it."""
        raise NotImplementedError

    def heading(self) -> str:
        """Return the heading above the table."""
        return f"## {self.name}: {self.title}"


def known(
    results: Results, place: Place, faults: FaultSet, labels: Iterable[str], count: int
) -> dict[str, Entry]:
    """Return the entries that there are, by their protections."""
    found = {label: results.known(Cell(place, faults, label), count) for label in labels}
    return {label: entry for label, entry in found.items() if entry is not None}


def shown(rate: float, around: tuple[float, float]) -> str:
    """Show a rate and its interval."""
    return f"{rate:.2f} [{around[0]:.2f}, {around[1]:.2f}]"


def with_interval(entry: Entry) -> str:
    """Show an entry's rate and its interval; a star where faults found no step to strike."""
    return shown(entry.rate, entry.interval) + ("*" if entry.unreached else "")


def markdown(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """Return a table."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
