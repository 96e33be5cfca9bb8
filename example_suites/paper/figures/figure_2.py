"""Figure 2: what existing protections leave, on mathematics and under exponent faults."""

from __future__ import annotations

from bench import Bench, Need
from figures.figure import Figure, Selection, known, markdown, shown, with_interval
from protections import NONE
from published import paper_says
from results import Results, pairs
from trials import FaultSet

__all__ = ["Figure2"]


class Figure2(Figure):
    """The motivating example."""

    name = "Figure 2"
    title = "SDC rates with existing protections (the paper: Llama2-7B, GSM8K, EXP)"
    models = ("llama2-7b",)
    tasks = ("gsm8k",)

    def needs(self, bench: Bench, selection: Selection) -> list[Need]:
        faults = FaultSet(selection.exponent)
        return [Need(protection, faults) for protection in selection.protections]

    def table(self, results: Results, selection: Selection) -> str:
        labels = [each.label for each in selection.protections]
        bits = selection.exponent
        rows = []
        for place in self.places(selection):
            column = known(results, place, FaultSet(bits), labels, selection.trials)
            for label, entry in column.items():
                compared = pairs([column[NONE]], [entry]) if NONE in column else None
                against = compared is not None and label != NONE
                rows.append(
                    [
                        str(place),
                        label,
                        with_interval(entry),
                        shown(compared.difference, compared.difference_interval())
                        if against and compared
                        else "",
                        f"{compared.p_value:.1g}" if against and compared else "",
                        paper_says(
                            "2",
                            model=place.model,
                            task=place.task,
                            faults=bits,
                            protection=label,
                        ),
                        entry.trials,
                        f"{entry.seconds:.0f}",
                    ]
                )
        return markdown(
            rows,
            [
                "model, task, precision",
                "protection",
                "SDC % [95 %]",
                "points above none [95 %]",
                "p",
                "paper",
                "faults",
                "seconds",
            ],
        )
