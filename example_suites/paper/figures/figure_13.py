"""Figure 13: SDC rates of all models and tasks under each protection, and what they average to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

from bench import Bench, Need
from figures.figure import Figure, Selection, known, markdown, shown, with_interval
from ft2.verdict import interval
from protections import FT2, NONE, ZERO
from published import paper_says, rates, reduction
from results import CHANGED, Entry, Place, Results, pairs, pooled
from trials import SDC, FaultSet

__all__ = ["Figure13"]

_Column = dict[str, Entry]


class Figure13(Figure):
    """The main comparison; from its trials the averages come."""

    name = "Figure 13"
    title = "SDC rates under each protection"
    all_precisions = True

    def needs(self, bench: Bench, selection: Selection) -> list[Need]:
        return [
            Need(protection, FaultSet(name))
            for protection in selection.protections
            for name in selection.fault_models
        ]

    def table(self, results: Results, selection: Selection) -> str:
        labels = [each.label for each in selection.protections]
        parts = []
        columns: dict[tuple[Place, str], _Column] = {}
        for place in self.places(selection):
            for name in selection.fault_models:
                column = known(results, place, FaultSet(name), labels, selection.trials)
                if column:
                    columns[place, name] = column
        for precision in selection.precisions:
            chosen = {key: each for key, each in columns.items() if key[0].precision == precision}
            if chosen:
                parts += self._of_precision(precision, chosen, labels, selection, results)
        return "\n\n".join(parts) if parts else "Nothing is measured."

    def _of_precision(
        self,
        precision: str,
        columns: dict[tuple[Place, str], _Column],
        labels: Sequence[str],
        selection: Selection,
        results: Results,
    ) -> list[str]:
        parts = []
        for name in selection.fault_models:
            rows = []
            for (place, bits), column in columns.items():
                if bits == name:
                    rows.append([place.model, place.task, *_cells(column, labels)])
                    rows += _of_paper(place, bits, labels)
            parts.append(
                f"**{name}, {precision}**: SDCs in per cent of {selection.trials} faults, with "
                "exact 95 % intervals"
            )
            parts.append(markdown(rows, ["model", "task", *labels]))
        complete = {key: each for key, each in columns.items() if set(each) == set(labels)}
        parts.append(
            f"**Averages, {precision}**: {len(complete)} of {len(columns)} cells have every "
            "protection; the same faults under each"
        )
        if complete:
            parts.append(self._summary(complete, labels))
            parts.append(self._by_task(columns, labels))
            if NONE in labels:
                parts.append(_prevented(complete, labels))
            parts += _order([*complete.values()], labels)
            parts += _clip_against_zero([*complete.values()])
        refused = [
            f"{key}: {sentence}."
            for key, facts in results.subjects.items()
            if key.endswith(f", {precision}")
            for sentence in facts["refused"].values()
        ]
        return parts + refused

    def _summary(self, columns: dict[tuple[Place, str], _Column], labels: Sequence[str]) -> str:
        cells = list(columns.values())
        rows = []
        for label in labels:
            entries = [cell[label] for cell in cells]
            before = [cell[NONE] for cell in cells] if NONE in labels else []
            compared = pairs(before, entries) if before and label != NONE else None
            trials = sum(each.trials for each in entries)
            # All fault models have the same answers without a fault.
            once = list({place: cell[label] for (place, _), cell in columns.items()}.values())
            free = [each.fault_free for each in once]
            wrong, asked, changed, corrected, steps = (
                sum(getattr(each, name) for each in free)
                for name in ("wrong", "questions", "changed", "corrected", "steps")
            )
            again = [each.recomputed for each in free if each.recomputed is not None]
            alike, checked = (
                sum(getattr(each, name) for each in once) for name in ("alike", "checked")
            )
            rows.append(
                [
                    label,
                    trials,
                    sum(each.sdc for each in entries),
                    shown(*pooled(entries)),
                    paper_says("13", over="all cells", protection=label),
                    "" if compared is None else _reduction(before, entries),
                    f"{reduction():.2f}" if label == FT2 else "",
                    "" if compared is None else f"{compared.p_value:.1g}",
                    _share(sum(each.changed for each in entries), trials),
                    sum(each.due for each in entries),
                    sum(each.unreached for each in entries),
                    f"{wrong}/{asked}",
                    f"{changed}/{asked}",
                    f"{corrected}/{steps}",
                    f"{sum(again)}/{steps}" if again else "",
                    f"{alike}/{checked}",
                    f"{sum(each.seconds for each in entries):.0f}",
                ]
            )
        return markdown(rows, _SUMMARY)

    def _by_task(self, columns: dict[tuple[Place, str], _Column], labels: Sequence[str]) -> str:
        rows = []
        for task in dict.fromkeys(place.task for place, _ in columns):
            cells = [
                column
                for (place, _), column in columns.items()
                if place.task == task and set(column) == set(labels)
            ]
            if cells:
                rates = [shown(*pooled([cell[label] for cell in cells])) for label in labels]
                rows.append([task, *rates])
                says = [paper_says("13", over=task, protection=label) for label in labels]
                if any(says):
                    rows.append(["(paper)", *says])
        return markdown(rows, ["task", *labels])


_SUMMARY = [
    "protection",
    "faults",
    "SDC",
    "mean rate % [95 %]",
    "paper",
    "SDCs prevented % [95 %]; mean of cells",
    "paper",
    "p against none",
    "texts changed % [95 %]",
    "DUE",
    "unreached",
    "wrong without fault",
    "texts changed without fault",
    "corrected without fault/steps",
    "steps computed again",
    "alike alone",
    "seconds",
]


def _cells(column: _Column, labels: Sequence[str]) -> list[str]:
    return [with_interval(column[label]) if label in column else "" for label in labels]


def _of_paper(place: Place, bits: str, labels: Sequence[str]) -> list[list[str]]:
    says = [
        paper_says("13", model=place.model, task=place.task, faults=bits, protection=label)
        for label in labels
    ]
    return [["(paper)", "", *says]] if any(says) else []


def _reduction(before: Sequence[Entry], after: Sequence[Entry]) -> str:
    """Say by how much the SDCs of all cells became fewer, and those of a cell on the average."""
    cells = (pairs([one], [other]).reduction for one, other in zip(before, after, strict=True))
    some = [each for each in cells if each is not None]
    return f"{_fewer(before, after)}; {mean(some):.1f}" if some else ""


def _prevented(columns: dict[tuple[Place, str], _Column], labels: Sequence[str]) -> str:
    """Compare parts of the cells, and the strictest judge with the paper's."""
    others = [label for label in labels if label != NONE]
    kinds: list[Callable[[Place, str], str]] = [
        lambda place, bits: place.model,
        lambda place, bits: place.task,
        lambda place, bits: bits,
    ]
    rows = []

    def add(name: str, cells: Sequence[_Column], events: str = SDC) -> None:
        before = [cell[NONE] for cell in cells]
        fewer = (_fewer(before, [cell[label] for cell in cells], events) for label in others)
        rows.append([name, *fewer])

    for kind in kinds:
        groups: dict[str, list[_Column]] = {}
        for (place, bits), column in columns.items():
            groups.setdefault(kind(place, bits), []).append(column)
        for name, cells in groups.items():
            add(name, cells)
    add("all", [*columns.values()])
    add("all: texts changed", [*columns.values()], CHANGED)
    return markdown(rows, ["prevented % [95 %]", *others])


def _fewer(before: Sequence[Entry], after: Sequence[Entry], events: str = SDC) -> str:
    """Say by how many per cent events of the same faults became fewer."""
    compared = pairs(before, after, events)
    if compared.reduction is None:
        return ""
    low, high = compared.reduction_proven(0.975), compared.reduction_possible(0.975)
    return f"{compared.reduction:.1f} [{low:.1f}, {high:.1f}]"


def _share(events: int, trials: int) -> str:
    return shown(100 * events / trials, interval(events, trials)) if trials else ""


def _order(cells: Sequence[_Column], labels: Sequence[str]) -> list[str]:
    ours = {label: pooled([cell[label] for cell in cells])[0] for label in labels}
    paper = rates()
    both = [label for label in labels if label in paper]
    if len(both) < 2:
        return []
    orders = (" < ".join(sorted(both, key=rate.__getitem__)) for rate in (ours, paper))
    return ["Order by mean rate, here: {}; in the paper: {}.".format(*orders)]


def _clip_against_zero(cells: Sequence[_Column]) -> list[str]:
    if not all(FT2 in cell and ZERO in cell for cell in cells):
        return []
    compared = pairs([cell[FT2] for cell in cells], [cell[ZERO] for cell in cells])
    return [
        f"Clip against zero, {compared.trials} faults: {compared.only_after} are SDCs only where "
        f"values out of bounds are set to zero, {compared.only_before} only where they are "
        f"clipped, {compared.both} under both; p = {compared.p_value:.1g}."
    ]
