"""Campaigns as JSON, as a table, as Markdown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.report import (
    SCHEMA,
    SPACE,
    CampaignResult,
    as_document,
    markdown_page,
    notes,
    reweighted_rate,
    table,
    write_document,
)
from ft2.verdict import Budget, Counts, decide


def trial(number: int, outcome: str | None = "masked", **values: Any) -> dict[str, Any]:
    return {
        "trial": number,
        "params": "",
        "phase": "later",
        "outcome": outcome,
        "weights": {"macs": 1.0, "time": 1.0},
        "before": 0.5,
        "after": 2.0,
    } | values


def result(trials: list[dict[str, Any]], **values: Any) -> CampaignResult:
    outcomes = [each["outcome"] for each in trials]
    counts = Counts(len(trials), *(outcomes.count(outcome) for outcome in ("masked", "sdc", "due")))
    given = {
        "nodeid": "test_qa.py::test_capital",
        "seed": 0,
        "fault_model": "exp",
        "protection": "ft2",
        "encoding": "fp16",
        "budget": 0.5,
        "confidence": None,
        "due_budget": 5.0,
        "counts": counts,
        "verdict": decide(counts, Budget(0.5)),
        "trials": trials,
    }
    return CampaignResult(**{**given, **values})


FLOATS = st.floats(allow_nan=True, allow_infinity=True)


def read_strictly(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@given(before=FLOATS, after=FLOATS)
def test_the_document_is_strict_json_whatever_the_values(before: float, after: float) -> None:
    document = as_document([result([trial(0, before=before, after=after)])], {"torch": "2"})
    again = read_strictly(json.dumps(document, allow_nan=False))
    assert again["schema"] == SCHEMA == 1
    assert again["environment"] == {"torch": "2"}
    for name, value in (("before", before), ("after", after)):
        read = again["campaigns"][0]["trials"][0][name]
        if math.isfinite(value):
            assert read == value
        else:
            assert read == {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")


def test_the_document_has_what_the_contract_names(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_document(path, [result([trial(0), trial(1, "sdc")])], {})
    campaign = read_strictly(path.read_text())["campaigns"][0]
    assert {
        "nodeid",
        "seed",
        "fault_model",
        "protection",
        "encoding",
        "budget",
        "confidence",
        "planned",
        "masked",
        "sdc",
        "due",
        "rate",
        "interval",
        "verdict",
        "reason",
        "golden",
        "trials",
    } <= set(campaign)
    assert campaign["rate"] == 50
    assert campaign["verdict"] == "fail"
    assert campaign["planned"] == campaign["masked"] + campaign["sdc"] + campaign["due"] == 2


def test_a_campaign_without_a_verdict_has_nulls() -> None:
    campaign = as_document([result([], verdict=None)], {})["campaigns"][0]
    names = ("verdict", "reason", "rate", "interval", "rate_by_macs", "rate_by_time")
    assert [campaign[name] for name in names] == [None] * len(names)


def test_the_table_has_a_row_for_each_campaign() -> None:
    lines = table([result([trial(0), trial(1, "sdc")]), result([], verdict=None)]).splitlines()
    assert len(lines) == 4
    words = ["test", "faults", "masked", "SDC", "DUE", "rate", "95", "%", "interval", "budget"]
    assert lines[0].split()[:10] == words
    assert lines[2].split("  ")[0] == "test_qa.py::test_capital"
    numbers = ["2", "1", "1", "0", "50.00 %", "1.26\N{EN DASH}98.74 %", "0.5 %", "fail"]
    assert [cell for cell in map(str.strip, lines[2].split("  ")) if cell][1:] == numbers
    assert lines[3].endswith("no verdict")


OUTCOMES = st.sampled_from(["masked", "sdc", "due", None])


@given(st.lists(OUTCOMES, min_size=1), st.floats(0.1, 10))
def test_with_equal_weights_the_reweighted_rate_is_the_rate_of_the_known_trials(
    outcomes: list[str | None], weight: float
) -> None:
    trials = [
        trial(number, outcome, weights={"macs": weight}) for number, outcome in enumerate(outcomes)
    ]
    known = [outcome for outcome in outcomes if outcome is not None]
    rate = reweighted_rate(trials, "macs")
    if known:
        assert rate == pytest.approx(100 * known.count("sdc") / len(known))
    else:
        assert rate is None
    assert reweighted_rate(trials, "time") is None


@given(st.lists(st.tuples(OUTCOMES, st.floats(0, 10)), min_size=1))
def test_a_reweighted_rate_is_a_rate(weighted: list[tuple[str | None, float]]) -> None:
    trials = [trial(0, outcome, weights={"time": weight}) for outcome, weight in weighted]
    rate = reweighted_rate(trials, "time")
    assert rate is None or 0 <= rate <= 100 + 1e-9


def test_a_crashed_trial_without_weights_does_not_spoil_the_reweighted_rate() -> None:
    trials = [trial(0, "sdc"), trial(1), trial(2, "due", weights={}, phase=None)]
    assert reweighted_rate(trials, "macs") == 50


def test_notes_say_why_and_how_to_see_it_again() -> None:
    trials = [trial(number, "sdc", phase="first") for number in range(5)] + [trial(5)]
    lines = notes(
        result(
            trials,
            excluded=["a", "b"],
            golden=[{"params": "c", "changed_by_protection": True, "corrected_values": 3}],
            share_outside=0.25,
            replay_options=("--ft2-seed=1", "a b"),
        )
    )
    assert lines[0].startswith("5 of 6 faults changed a right answer into a wrong one")
    assert "Left out, answered wrongly without a fault: a, b." in lines
    assert "ft2 alone changed 1 of 1 fault-free outputs." in lines
    assert (
        lines[1] == "Another seed's faults would decide otherwise with a chance of less than 1 %."
    )
    assert lines[4] == (
        "SDCs: 5 of 5 in the first token, 0 of 1 in the later tokens; rate by MACs 83.33 %; "
        "rate by time 83.33 %; MACs outside the space 25 %."
    )
    assert lines[5:8] == [
        f"pytest --ft2-replay='test_qa.py::test_capital#{number}' --ft2-seed=1 'a b'"
        for number in range(3)
    ]
    assert lines[8] == "… and 2 more SDCs; --ft2-json=FILE lists them all."


def test_corrections_without_a_change_are_told() -> None:
    golden = [{"params": "", "changed_by_protection": False, "corrected_values": 3}]
    assert "ft2 alone corrected 3 values of the fault-free runs; no output changed." in notes(
        result([trial(0)], golden=golden)
    )


def test_the_markdown_page_has_the_table_and_the_notes() -> None:
    page = markdown_page([result([trial(0, "sdc")])])
    assert page.startswith("### Silent data corruption\n\n| test ")
    assert "**test_qa.py::test_capital**\n\n- 1 of 1 faults changed" in page
    assert page.endswith(f"{SPACE}\n")


def test_wrong_answers_of_the_protection_alone_are_not_blamed_on_faults() -> None:
    trials = [
        trial(0, "sdc", params="a"),
        trial(1, "sdc", params="b"),
        trial(2, "sdc", params="a"),
        trial(3, params="b"),
    ]
    golden = [
        {"params": "a", "passed_with_protection": False},
        {"params": "b", "passed_with_protection": True},
    ]
    told = "\n".join(notes(result(trials, golden=golden)))
    assert "ft2 alone makes 1 of 2 parameter sets fail without a fault" in told
    assert "2 of the 3 SDCs are theirs" in told
