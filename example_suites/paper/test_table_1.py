"""Table 1: critical layers, and what each protection covers. No fault is needed."""

from __future__ import annotations

from typing import Any

import pytest

from figures.figure_6 import kind_of_paper
from figures.table_1 import covered
from ft2.layers.parts import parts_of
from protections import protections
from published import table_1


@pytest.mark.paper(task="squad")
def test_the_rule_finds_the_critical_layers_of_the_paper(model: Any) -> None:
    """The rule reads the computation; the paper's table is the result of its experiments."""
    paper = table_1()
    parts = {kind_of_paper(part.label): part.critical for part in parts_of(model)}
    told = {kind: kind in paper["critical"] for kind in parts}
    assert set(parts) <= {*paper["critical"], *paper["not critical"]}
    assert parts == told


@pytest.mark.paper(task="squad")
@pytest.mark.parametrize("label", [name for name in table_1() if name in protections()])
def test_a_protection_covers_the_layers_that_the_paper_says(model: Any, label: str) -> None:
    """A protection restricts the outputs of these layers, of those that the model has."""
    kinds = {kind_of_paper(part.label) for part in parts_of(model)}
    covers = {kind_of_paper(part) for part in covered(model, protections()[label])}
    assert covers == kinds & set(table_1()[label])
