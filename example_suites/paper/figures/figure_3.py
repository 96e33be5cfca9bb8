"""Figure 3: what bounds that were profiled on another dataset do to answers without any fault."""

from __future__ import annotations

from bench import Bench
from figures.figure import Figure, Selection, markdown, shown
from ft2.layers import UnsupportedModelError
from ft2.verdict import interval
from published import paper_says
from results import Results
from subject import answered

__all__ = ["Figure3"]

_OWN = "the task itself"


class Figure3(Figure):
    """Right answers without a fault, by what the bounds come from."""

    name = "Figure 3"
    title = (
        "Right answers without faults, with bounds of other datasets "
        "(the paper: OPT-6.7B, SQuAD 2.0)"
    )
    models = ("opt-6.7b",)
    tasks = ("squad",)

    def measure_more(self, bench: Bench, selection: Selection) -> None:
        subject = bench.subject
        count = len(subject.others)
        sources = {_OWN: subject.others}
        for task, there in bench.others.items():
            sources[task] = answered(
                subject.model, subject.tokenizer, there, task, count, bench.new_tokens
            )
        table = []
        for protection in selection.protections:
            if not protection.is_profiled:
                continue
            for source, questions in sources.items():
                try:
                    found = bench.with_bounds_of(protection, source, questions)
                except UnsupportedModelError as error:
                    bench.facts["refused"][protection.label] = str(error)
                    continue
                table.append(
                    [
                        protection.label,
                        source,
                        len(questions),
                        found.questions,
                        found.wrong,
                        found.changed,
                    ]
                )
        bench.recorded("bounds of other datasets", table)

    def table(self, results: Results, selection: Selection) -> str:
        rows = []
        for place in self.places(selection):
            facts = results.subjects.get(str(place), {})
            for label, source, count, asked, wrong, changed in facts.get(
                "bounds of other datasets", []
            ):
                right = asked - wrong
                other = "" if source == _OWN else "bounds of another dataset"
                rows.append(
                    [
                        str(place),
                        label,
                        source,
                        count,
                        shown(100 * right / asked, interval(right, asked)),
                        f"{changed} of {asked}",
                        other
                        and paper_says("3", model=place.model, task=place.task, protection=other),
                    ]
                )
        return markdown(
            rows,
            [
                "model, task, precision",
                "protection",
                "bounds of",
                "prompts",
                "right % [95 %]",
                "texts changed",
                "paper",
            ],
        )
