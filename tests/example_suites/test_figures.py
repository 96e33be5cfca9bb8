"""Tables of the figures, from numbers that are made up."""

from __future__ import annotations

from figures import FIGURES, Selection
from protections import protections
from results import CHANGED, Cell, Entry, Place, Results, pairs
from trials import FaultFree, FaultSet

FREE = FaultFree(questions=5, wrong=0, changed=0, steps=40, corrected=0)
# Of each model, what became of the same ten faults without protection and with FT2.
OUTCOMES = {
    "one": {"none": "ssssrrmmmm", "ft2": "smmmrmmmmm"},
    "other": {"none": "ssssmmmmmm", "ft2": "ssssmmmmmm"},
}


def entry(outcomes: str) -> Entry:
    return Entry("d", outcomes, FREE, 32, 0, 4, 4, 2.0, "cpu")


def figure_13() -> str:
    results = Results()
    for model, column in OUTCOMES.items():
        for label, outcomes in column.items():
            cell = Cell(Place(model, "squad", "fp16"), FaultSet("exp"), label)
            results.put(cell, entry(outcomes))
    selection = Selection(
        subjects=tuple((model, "squad") for model in OUTCOMES),
        named=True,
        precisions=("fp16",),
        fault_models=("exp",),
        protections=tuple(protections()[label] for label in ("none", "ft2")),
        trials=10,
    )
    return FIGURES["13"].table(results, selection)


def rows(table: str) -> dict[str, str]:
    """The last column of each row, by its first."""
    cells = [line.strip("| ").split("|") for line in table.splitlines() if line.startswith("|")]
    return {each[0].strip(): each[-1].strip() for each in cells}


def test_what_is_prevented_is_shown_of_each_model_task_and_fault_model() -> None:
    found = rows(figure_13()[figure_13().index("| prevented") :])
    assert found["one"].startswith("75.0 [")
    assert found["other"].startswith("0.0 [")
    # Three of eight.
    assert found["squad"] == found["exp"] == found["all"]
    assert found["all"].startswith("37.5 [")


def test_the_strictest_judge_counts_every_changed_text() -> None:
    found = rows(figure_13()[figure_13().index("| prevented") :])
    # Four of ten.
    assert found["all: texts changed"].startswith("40.0 [")
    none, ft2 = (entry(OUTCOMES["one"][label]) for label in ("none", "ft2"))
    assert pairs([none], [ft2], CHANGED).only_before == 4
    assert pairs([none], [ft2]).only_before == 3
