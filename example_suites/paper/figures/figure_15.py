"""Figure 15: the same comparison in two number formats."""

from __future__ import annotations

from bench import Bench, Need
from figures.figure import Figure, Selection, known, markdown, shown
from published import paper_says
from results import Results, pooled
from trials import FaultSet

__all__ = ["Figure15"]


class Figure15(Figure):
    """SDC rates by precision."""

    name = "Figure 15"
    title = "SDC rates by precision (the paper: OPT-6.7B and GPTJ-6B, SQuAD 2.0, FP16 and FP32)"
    models = ("opt-6.7b", "gptj-6b")
    tasks = ("squad",)
    all_precisions = True

    def needs(self, bench: Bench, selection: Selection) -> list[Need]:
        return [
            Need(protection, FaultSet(name))
            for protection in selection.protections
            for name in selection.fault_models
        ]

    def table(self, results: Results, selection: Selection) -> str:
        labels = [each.label for each in selection.protections]
        rows = []
        for place in self.places(selection):
            by_label: dict[str, list[object]] = {}
            cells = [
                known(results, place, FaultSet(name), labels, selection.trials)
                for name in selection.fault_models
            ]
            row = []
            for label in labels:
                entries = [cell[label] for cell in cells if label in cell]
                by_label[label] = [*entries]
                whole = len(entries) == len(cells)
                row.append(shown(*pooled(entries)) if whole else "")
            if any(row):
                rows.append([str(place), *row])
        says = [
            paper_says("15", precision="fp32", over="opt-6.7b and gptj-6b, squad", protection=label)
            for label in labels
        ]
        rows.append(["(paper, both models, fp32)", *says])
        return markdown(rows, ["model, task, precision", *labels]) + (
            "\n\nMean rates over the fault models "
            f"{', '.join(selection.fault_models)}, {selection.trials} faults each."
        )
