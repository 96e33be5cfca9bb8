"""Table 1: which kinds of layers are critical, and which protection covers them."""

from __future__ import annotations

from typing import Any

from bench import Bench
from figures.figure import Figure, Selection, markdown
from figures.figure_6 import kind_of_paper
from ft2.layers import Projection, UnsupportedModelError
from ft2.layers.parts import part_of, parts_of
from ft2.protection.places import Place
from ft2.protection.policies import make_policy, profiled_policy
from ft2.protection.policies.first_token import FirstTokenPolicy
from ft2.protection.settings import PolicySettings
from protections import Protection
from published import table_1
from results import Results

__all__ = ["Table1", "covered"]


class Table1(Figure):
    """The layers, read from the model: no fault is needed."""

    name = "Table 1"
    title = "Critical layers, and what each protection covers"

    def measure_more(self, bench: Bench, selection: Selection) -> None:
        model = bench.subject.model
        table: dict[str, Any] = {}
        for protection in selection.protections:
            try:
                labels = covered(model, protection)
            except UnsupportedModelError as error:
                bench.facts["refused"][protection.label] = str(error)
                continue
            for part in parts_of(model):
                known = table.setdefault(part.label, {"critical": part.critical, "covered": []})
                if part.label in labels:
                    known["covered"].append(protection.label)
        bench.recorded("coverage", table)

    def table(self, results: Results, selection: Selection) -> str:
        labels = [each.label for each in selection.protections]
        paper = table_1()
        rows = []
        seen = set()
        for place in self.places(selection):
            if place.model in seen:
                continue
            seen.add(place.model)
            coverage = results.subjects.get(str(place), {}).get("coverage", {})
            for label, facts in coverage.items():
                kind = kind_of_paper(label)
                told = kind in paper["critical"] + paper["not critical"]
                rows.append(
                    [
                        place.model,
                        label,
                        _yes(facts["critical"])
                        + _differs(told, kind in paper["critical"], facts["critical"]),
                        *(
                            _yes(name in facts["covered"])
                            + _differs(
                                told and name in paper,
                                kind in paper.get(name, []),
                                name in facts["covered"],
                            )
                            for name in labels
                        ),
                    ]
                )
        table = markdown(rows, ["model", "layer", "critical", *labels])
        return f"{table}\n\n`(paper: …)` stands where the paper's table says otherwise."


def covered(model: Any, protection: Protection) -> set[str]:
    """Return the kinds of projections whose outputs a protection restricts or checks.

    Raises
    ------
    UnsupportedModelError
        If it cannot protect the model.
    """
    if protection.is_profiled:
        places = profiled_policy(protection.policy).places(model)
        return {label for place in places for label in _of_place(place)}
    policy = make_policy(protection.policy, PolicySettings(correction=protection.correction))
    # FT2 protects the critical columns of what it finds, others all columns.
    only_critical = isinstance(policy, FirstTokenPolicy)
    return {
        part_of(projection, critical).label
        for projection in policy.find(model)
        for _, _, critical in projection.columns
        if critical or not only_critical
    }


def _of_place(place: Place) -> set[str]:
    projection = place.layer
    if not isinstance(projection, Projection):
        return set()
    ranges = place.ranges or ((0, projection.out_features),)
    return {
        part_of(projection, critical).label
        for start, stop, critical in projection.columns
        if any(low < stop and start < high for low, high in ranges)
    }


def _yes(is_so: bool) -> str:
    return "yes" if is_so else ""


def _differs(told: bool, paper: bool, ours: bool) -> str:
    return f" (paper: {'yes' if paper else 'no'})" if told and paper != ours else ""
