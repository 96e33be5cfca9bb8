"""Figure 11: faults that strike the first token, for which FT2 has no bounds yet."""

from __future__ import annotations

from bench import Bench, Need
from figures.figure import Figure, Selection, known, markdown, with_interval
from protections import FT2, NONE, Protection
from published import paper_says
from results import Results
from trials import ANYWHERE, FIRST_TOKEN, FaultSet

__all__ = ["Figure11"]

_PLACES = (ANYWHERE, FIRST_TOKEN)
_LABELS = (NONE, FT2)


class Figure11(Figure):
    """SDC rates of faults anywhere and in the first token alone, there with NaN corrected."""

    name = "Figure 11"
    title = "SDC rates of faults in the first token (the paper: OPT-6.7B, SQuAD 2.0)"
    models = ("opt-6.7b",)
    tasks = ("squad",)

    def needs(self, bench: Bench, selection: Selection) -> list[Need]:
        return [
            Need(Protection(label, label), FaultSet(name, where))
            for label in _LABELS
            for name in selection.fault_models
            for where in _PLACES
        ]

    def table(self, results: Results, selection: Selection) -> str:
        rows = []
        for place in self.places(selection):
            for name in selection.fault_models:
                found = {
                    (where, label): entry
                    for where in _PLACES
                    for label, entry in known(
                        results, place, FaultSet(name, where), _LABELS, selection.trials
                    ).items()
                }
                if not found:
                    continue
                rows.append(
                    [
                        str(place),
                        name,
                        *(
                            with_interval(found[key]) if (key := (where, label)) in found else ""
                            for where in _PLACES
                            for label in _LABELS
                        ),
                        paper_says(
                            "11",
                            model=place.model,
                            task=place.task,
                            protection=FT2,
                            where=FIRST_TOKEN,
                        ),
                        sum(entry.trials for entry in found.values()),
                        f"{sum(entry.seconds for entry in found.values()):.0f}",
                    ]
                )
        return markdown(
            rows,
            [
                "model, task, precision",
                "fault model",
                *(f"{where}, {label}: SDC % [95 %]" for where in _PLACES for label in _LABELS),
                f"paper: {FIRST_TOKEN}, {FT2}",
                "faults",
                "seconds",
            ],
        )
