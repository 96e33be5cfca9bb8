"""Figure 6: leave one kind of projection unprotected; what it needs its protection for shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench import Bench, Need
from figures.figure import Figure, Selection, known, markdown, shown, with_interval
from ft2.layers.parts import Part, parts_of
from ft2.protection import POLICIES
from ft2.protection.policies.chosen_parts import ChosenPartsPolicy
from protections import FT2, NONE, Protection
from published import paper_says
from results import Results, pairs
from trials import FaultSet

__all__ = ["Figure6", "kind_of_paper"]

_ALL = "all kinds"
# What the paper calls them in every model.
_NAMES = {"o_proj": "out_proj", "fc_in": "fc1", "fc_out": "fc2"}


class Figure6(Figure):
    """SDC rates with one kind of projection left out of the protection."""

    name = "Figure 6"
    title = (
        "SDC rates with all kinds of projections protected but one (the paper: GPTJ-6B, SQuAD 2.0)"
    )
    models = ("gptj-6b",)
    tasks = ("squad",)

    def needs(self, bench: Bench, selection: Selection) -> list[Need]:
        parts = parts_of(bench.subject.model)
        bench.recorded("parts", [[part.label, part.critical] for part in parts])
        left_out = [_protection(_without(part.label), part.__ne__) for part in parts]
        everything = _protection(_ALL, lambda _: True)
        faults = FaultSet(selection.exponent)
        protections = [Protection(NONE, NONE), Protection(FT2, FT2), everything, *left_out]
        return [Need(protection, faults) for protection in protections]

    def table(self, results: Results, selection: Selection) -> str:
        faults = FaultSet(selection.exponent)
        rows = []
        for place in self.places(selection):
            parts = results.subjects.get(str(place), {}).get("parts", [])
            labels = {_without(label): (label, critical) for label, critical in parts}
            column = known(results, place, faults, [*labels, _ALL, FT2, NONE], selection.trials)
            if _ALL not in column:
                continue
            for name, entry in column.items():
                compared = pairs([column[_ALL]], [entry])
                label, critical = labels.get(name, ("", None))
                rows.append(
                    [
                        str(place),
                        name,
                        {True: "critical", False: "not critical", None: ""}[critical],
                        with_interval(entry),
                        shown(compared.difference, compared.difference_interval()),
                        f"{compared.p_value:.1g}",
                        label
                        and paper_says(
                            "6", model=place.model, task=place.task, kind=kind_of_paper(label)
                        ),
                        f"{entry.fault_free.wrong}/{entry.fault_free.questions}",
                        entry.trials,
                        f"{entry.seconds:.0f}",
                    ]
                )
        return markdown(
            rows,
            [
                "model, task, precision",
                "protected",
                "the one left out is",
                "SDC % [95 %]",
                "points above all kinds [95 %]",
                "p",
                "paper",
                "wrong without fault",
                "faults",
                "seconds",
            ],
        )


def kind_of_paper(label: str) -> str:
    """Return what the paper calls a kind of projection."""
    kind = label.partition(",")[0].rpartition(".")[2]
    return _NAMES.get(kind, kind)


def _without(label: str) -> str:
    return f"all but {label}"


def _protection(label: str, is_chosen: Callable[[Part], bool]) -> Protection:
    # The batch engine knows policies by their names.
    POLICIES[label] = partial(ChosenPartsPolicy, is_chosen)
    return Protection(label, label)
