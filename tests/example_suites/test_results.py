"""Results in a file: kept, read again, and put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from results import Cell, Entry, Place, Results, pairs, pooled
from trials import FaultFree, FaultSet

CELL = Cell(Place("llama", "squad", "fp16"), FaultSet("exp"), "ft2")
FREE = FaultFree(questions=5, wrong=0, changed=1, steps=40, corrected=3)


def entry(outcomes: str, digest: str = "d") -> Entry:
    return Entry(digest, outcomes, FREE, 32, 0, 4, 4, 2.0, "cpu")


def test_an_entry_counts_what_its_letters_say() -> None:
    found = entry("mmrssdu" + "m" * 4)
    assert (found.trials, found.sdc, found.due, found.unreached, found.changed) == (10, 2, 1, 1, 3)
    assert found.rate == 20
    low, high = found.interval
    assert (low, high) == pytest.approx((2.52, 55.61), abs=0.01)


def test_an_entry_whose_faults_all_found_nothing_to_strike_proves_nothing() -> None:
    assert entry("uuu").interval == (0.0, 100.0)


def test_the_first_trials_of_an_entry_are_those_of_a_smaller_run() -> None:
    first = entry("smms").first(2)
    assert (first.outcomes, first.seconds) == ("sm", 1.0)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.json")
    results.subjects["x"] = {"refused": {}}
    results.put(CELL, entry("ms"))
    results.save()
    again = Results.open(results.path)
    assert again.get(CELL) == entry("ms")
    assert again.subjects == results.subjects


def test_trials_of_other_weights_or_questions_are_not_taken_for_these() -> None:
    results = Results()
    results.put(CELL, entry("ms", digest="old"))
    assert results.get(CELL, "new") is None
    assert results.get(CELL, "old") is not None


def test_fewer_trials_than_asked_for_fill_no_table() -> None:
    results = Results()
    results.put(CELL, entry("ms"))
    assert results.known(CELL, 3) is None
    known = results.known(CELL, 1)
    assert known is not None
    assert known.outcomes == "m"


def test_numbers_of_an_older_subject_are_never_put_beside_those_of_the_last() -> None:
    results = Results()
    results.subjects[str(CELL.place)] = {"digest": "new seed=0"}
    results.put(CELL, entry("ms", digest="old seed=0"))
    assert results.known(CELL, 1) is None
    results.put(CELL, entry("ms", digest="new seed=01"))
    assert results.known(CELL, 1) is None
    results.put(CELL, entry("ms", digest="new seed=0 profile"))
    assert results.known(CELL, 1) is not None


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "x", "version": 1}', "{}"])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"notes\.json holds no results of this evaluation"):
        Results.open(path)
    assert path.read_text(encoding="utf-8") == content


def test_pairs_leave_out_faults_that_struck_under_one_protection_alone() -> None:
    compared = pairs([entry("ssmmu")], [entry("smsus")])
    assert (compared.both, compared.only_before, compared.only_after) == (1, 1, 1)
    assert compared.trials == 3


def test_the_mean_over_cells_is_that_of_their_counts() -> None:
    rate, (low, high) = pooled([entry("s" + "m" * 99), entry("s" * 3 + "m" * 97)])
    assert rate == 2
    assert low < 2 < high
