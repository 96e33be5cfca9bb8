"""Where the faults struck that became SDCs: drawn again, counted once, none made up."""

from __future__ import annotations

import pytest

import ft2
from bench import Bench, Need
from origins import Origin, Origins, is_critical
from protections import protections
from results import Cell, Place, Results
from subject import Subject
from tests.example_suites.quickstart_questions import make
from trials import FaultSet

EXP = FaultSet("exp")
PLACE = Place("llama", "gsm8k", "fp32:fp16")
LABELS = ("none", "ft2")
TRIALS = 60


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make()


@pytest.fixture(scope="module")
def results(subject: Subject) -> Results:
    results = Results()
    bench = Bench(subject, results, TRIALS, progress=False)
    bench.run(Need(protections()[label], EXP) for label in LABELS)
    return results


def test_every_fault_and_every_sdc_is_counted_once(subject: Subject, results: Results) -> None:
    origins = Origins(["exp"], LABELS)
    origins.add(subject, results)
    assert sum(origins.faults.values()) == TRIALS
    for label in LABELS:
        entry = results.get(Cell(PLACE, EXP, label))
        assert entry is not None
        assert sum(origins.sdc[origin, label] for origin in origins.faults) == entry.sdc
    first = [fault.step for _, fault in EXP.draw(subject, range(TRIALS), 0)].count(0)
    counted = sum(count for origin, count in origins.faults.items() if origin.first)
    assert 0 < counted == first < TRIALS


def test_the_table_has_a_row_of_each_origin(subject: Subject, results: Results) -> None:
    origins = Origins(["exp"], LABELS)
    origins.add(subject, results)
    text = origins.table()
    assert all(str(Origin(*each)) in text for each in [(True, True), (False, True), (False, False)])
    assert text.endswith("Models and tasks: 1.")


def test_other_questions_are_left_out_and_named(subject: Subject, results: Results) -> None:
    origins = Origins(["exp"], LABELS)
    origins.add(make(wanted=4), results)
    assert not origins.faults
    assert "Left out, since this machine would choose other questions: llama, gsm8k" in (
        origins.table()
    )


def test_faults_that_one_protection_has_not_met_are_not_counted(
    subject: Subject, results: Results
) -> None:
    origins = Origins(["exp"], [*LABELS, "maximals"])
    origins.add(subject, results)
    assert not origins.faults


def test_a_fault_is_critical_where_its_column_is(subject: Subject) -> None:
    projections = ft2.projections(subject.model)
    kinds = {each.name: each.kind for each in projections}
    drawn = [fault for _, fault in EXP.draw(subject, range(200), 0)]
    found = {kinds[fault.layer]: is_critical(fault, projections) for fault in drawn}
    assert found == {
        "q_proj": False,
        "k_proj": False,
        "v_proj": True,
        "o_proj": True,
        "gate_proj": False,
        "up_proj": True,
        "down_proj": True,
    }
