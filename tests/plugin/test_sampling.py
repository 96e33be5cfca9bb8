"""``--ft2-sampling=stratified``: more faults where SDCs are, and the rate of the whole space."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.report import as_document, notes
from ft2.verdict import AllocationRule, Cell, interval
from pytest_ft2.ledger import CampaignLedger
from tests.plugin.conftest import Project
from tests.plugin.gated import RIGHT_OR_NOT
from tests.plugin.test_ledger import CHUNK, KEY, golden, ledger, noise, plan, trial

STRATIFIED = "--ft2-sampling=stratified"
TOP, OTHERS = "top-exponent-bit", "other-bits"
WEIGHTS = {TOP: 0.2, OTHERS: 0.8}
FAULT = "call=0,step=1,layer=model.layers.0.mlp.up_proj,row=0,position=0,neuron=1,bits={}"


DYING = """
import os

def pytest_configure(config):
    import pytest_ft2.needed
    pytest_ft2.needed._PATIENCE = 2.0
    if hasattr(config, "workerinput"):
        from pytest_ft2.chunk import _ChunkRun
        run_trial = _ChunkRun._run_trial

        def die_once(run, trial, number):
            if trial == 21:
                os._exit(3)
            return run_trial(run, trial, number)

        _ChunkRun._run_trial = die_once
"""


def test_a_campaign_is_the_same_with_workers_and_in_a_replay_and_begins_as_a_uniform_one(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100, due_budget=100"))
    wide = (STRATIFIED, "--ft2-json=out.json", "--ft2-faults=400", "--ft2-protection=none")
    project.run_anew("-n2", *wide, "--ft2-chunk=25")
    campaign = project.json()["campaigns"][0]
    assert (campaign["verdict"], campaign["sampling"]) == ("pass", "stratified")
    first, uniform, more = (campaign["allocation"][name] for name in ("first", "uniform", "more"))
    assert first + uniform + sum(more.values()) == 400
    behind = [*range(first + uniform)]
    assert [each["trial"] for each in campaign["trials"][: len(behind)]] == behind
    drawn = campaign["trials"][len(behind) :]
    assert all(each["trial"] >= 400 for each in drawn)
    assert Counter(each["stratum"] for each in drawn) == {
        name: count for name, count in more.items() if count
    }
    for each in campaign["trials"]:
        assert each["stratum"] in more
        # A power of two says how far a fault moves its value.
        change = abs(float(each["after"]) - float(each["before"]))
        assert each["size"] == 20 or 2.0 ** (each["size"] - 2) <= change < 2.0 ** (each["size"] + 1)
    # Each stage's own estimate counts by its trials.
    deciding = [each for each in campaign["trials"] if each["trial"] < first]
    later = 0.0
    for stratum in campaign["strata"]:
        drawn = [one for one in campaign["trials"] if one["stratum"] == stratum["name"]]
        assert len(drawn) == stratum["trials"]
        behind = [one["outcome"] == "sdc" for one in drawn if one not in deciding]
        later += stratum["weight"] * sum(behind) / len(behind)
    events = sum(each["outcome"] == "sdc" for each in deciding)
    rate = (events + (400 - first) * later) / 4
    assert campaign["rate"] == pytest.approx(rate)
    assert campaign["interval"][0] < rate < campaign["interval"][1]
    for part in campaign["breakdown"]["bit"].values():
        assert part["interval"][0] <= part["rate"] <= part["interval"][1]

    result = project.run(*wide)
    alone = project.json()["campaigns"][0]
    names = ("trial", "fault", "stratum", "outcome")
    for one, other in zip(campaign["trials"], alone["trials"], strict=True):
        assert [one[name] for name in names] == [other[name] for name in names]
    assert alone["allocation"] == campaign["allocation"]
    result.stdout.fnmatch_lines([f"*Sampled by strata from trial {first} on, {uniform} trials*"])

    project.run(*wide[1:])
    plain = project.json()["campaigns"][0]
    faults = [each["fault"] for each in plain["trials"]]
    assert [each["fault"] for each in campaign["trials"][: len(behind)]] == faults[: len(behind)]

    wrong = next(one for one in drawn if one["outcome"] == "sdc")
    name = f"--ft2-replay=test_it.py::test_answer#{wrong['trial']}"
    shown = project.run(name, STRATIFIED, "--ft2-protection=none", "--ft2-faults=400")
    assert shown.ret == pytest.ExitCode.TESTS_FAILED
    shown.stdout.fnmatch_lines([f"fault:      {wrong['fault']}"])
    # A number determines its fault, however many are planned and however they are drawn.
    shown = project.run(name, "--ft2-protection=none")
    shown.stdout.fnmatch_lines([f"fault:      {wrong['fault']}"])


def test_no_more_trials_run_than_were_planned_whatever_order_the_chunks_are_put_in(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100, due_budget=100"))
    with (project.path / "conftest.py").open("a") as file:
        file.write("\ndef pytest_collection_modifyitems(items):\n    items.reverse()\n")
    wide = (STRATIFIED, "--ft2-faults=400", "--ft2-chunk=25", "--ft2-protection=none")
    result = project.run(*wide, "--ft2-json=out.json")
    assert project.json()["campaigns"][0]["allocation"] is not None
    outcomes = result.parseoutcomes()
    assert outcomes["masked"] + outcomes["sdc"] == 400


def test_first_trials_that_a_dead_worker_left_behind_are_run_by_those_who_wait_for_them(
    project: Project,
) -> None:
    # What the dead one was to run is dealt out again behind what the others have and wait with.
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100, due_budget=100"))
    with (project.path / "conftest.py").open("a") as file:
        file.write(DYING)
    wide = (STRATIFIED, "--ft2-json=out.json", "--ft2-faults=400", "--ft2-protection=none")
    project.run_apart("-n2", *wide, "--ft2-chunk=10")
    campaign = project.json()["campaigns"][0]
    assert (campaign["verdict"], campaign["due"]) == ("pass", 1)
    assert len(campaign["trials"]) == 400
    assert campaign["allocation"] is not None


def test_strata_cannot_be_combined_with_stopping_early(project: Project) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "1"))
    result = project.run(STRATIFIED, "--ft2-faults=2000", "--ft2-stop=early")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert (
        "test_it.py::test_answer: --ft2-sampling=stratified cannot be combined with "
        "--ft2-stop=early, whose looks count each trial alike: leave one of them out."
    ) in result.stdout.str()


def test_a_plan_is_warned_of_exactly_when_it_could_never_pass_uniformly(project: Project) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "0.5, confidence=0.95"))
    for faults, hopeless in ((597, True), (598, False)):
        result = project.run(STRATIFIED, f"--ft2-faults={faults}", "--collect-only", "-q")
        assert ("this gate can never pass: plan at least 598" in result.stdout.str()) == hopeless


CELLS = {
    TOP: Cell("mlp.up_proj", "later", 14, True, 12),
    OTHERS: Cell("mlp.up_proj", "later", 3, False, -8),
}


def cells(weights: dict[str, float] = WEIGHTS) -> dict[str, Any]:
    """Return word of how large the strata's only cells are."""
    shares = [[*CELLS[name], weight] for name, weight in weights.items()]
    return {"kind": "cells", "campaign": KEY, "shares": shares}


def stratified(ends: Sequence[tuple[str, str | None]], **values: Any) -> CampaignLedger:
    """Return the ledger of trials given by stratum and outcome."""
    planned = values.pop("planned", len(ends))
    trials = [
        trial(number, outcome, cell=[*CELLS[name]], fault=FAULT.format(CELLS[name].bit))
        for number, (name, outcome) in enumerate(ends)
    ]
    random.Random(0).shuffle(trials)
    more = AllocationRule(planned).most_more
    the_plan = plan(planned, **{"sampling": "stratified", "more": more} | values)
    strata = {"kind": "strata", "campaign": KEY, "shares": {"": [*WEIGHTS.values()]}}
    return ledger([golden(), noise(), cells(), strata, *trials], the_plan)


EARLY_SDCS = [(TOP, "sdc"), (OTHERS, "masked"), (OTHERS, "masked"), (OTHERS, "masked")] * 50


def test_sdcs_of_the_first_trials_draw_others_from_their_stratum() -> None:
    # All 200 planned trials run here, and all that may be behind them: some are chosen.
    ends = [*EARLY_SDCS, *[(TOP, "masked")] * AllocationRule(200).most_more]
    campaign = stratified(ends, planned=200, budget=100.0)
    allocation = campaign.allocation
    assert allocation is not None
    behind = allocation.first + allocation.uniform
    assert [*campaign.counted] == [*range(behind), *range(200, 200 + sum(allocation.more))]
    found = campaign.result(finished=True)
    assert found.counts.seen == 200
    document = as_document([found], {})["campaigns"][0]
    assert document["allocation"] == {
        "first": allocation.first,
        "uniform": allocation.uniform,
        "more": dict(zip((TOP, OTHERS), allocation.more, strict=True)),
    }
    low, high = document["breakdown"]["bit"]["14"]["interval"]
    assert 0 < low <= document["breakdown"]["bit"]["14"]["rate"] <= high < 100
    # With one prompt only, nothing is said of others.
    assert document["interval_for_new_prompts"] is None


def test_without_sdcs_a_stratified_campaign_is_a_uniform_one() -> None:
    ends = [(TOP, "masked"), *[(OTHERS, "masked")] * 4] * 40
    campaign = stratified(ends, budget=2.0, confidence=0.95)
    assert campaign.allocation is None
    assert campaign.needed == (range(200),)
    found = campaign.result(finished=True)
    assert found.verdict is not None
    assert (found.verdict.name, found.verdict.interval) == ("pass", interval(0, 200))
    assert any(line.startswith("Sampled uniformly, as the SDCs gave no") for line in notes(found))
    document = as_document([found], {})["campaigns"][0]
    assert document["breakdown"]["phase"]["later"]["interval"] == [*interval(0, 200)]
    assert document["chance_of_another_verdict"] is not None


@given(
    st.lists(
        st.tuples(st.sampled_from([TOP, OTHERS]), st.sampled_from(["masked", "sdc"])), max_size=120
    ),
    st.integers(0, 119),
)
def test_only_trials_without_a_missing_one_before_them_decide_where_others_are_drawn(
    ends: list[tuple[str, str]], missing: int
) -> None:
    whole = stratified(ends, planned=120)
    cut = [(name, None if number == missing else end) for number, (name, end) in enumerate(ends)]
    part = stratified(cut, planned=120)
    if part.allocation is not None:
        assert part.allocation == whole.allocation
        assert part.allocation.first <= missing or missing >= len(ends)
    elif whole.allocation is not None:
        assert missing < whole.allocation.first


def test_many_sdcs_of_an_oversampled_stratum_lose_no_unfinished_campaign() -> None:
    campaign = stratified(EARLY_SDCS[:190], planned=200, budget=5.0)
    assert not campaign.decided
    assert campaign.result(finished=False).verdict is None


def test_a_trial_of_the_chosen_ones_that_never_came_makes_the_verdict_incomplete() -> None:
    campaign = stratified(EARLY_SDCS, planned=200, budget=100.0)
    assert campaign.allocation is not None
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "incomplete"
    assert f"{sum(campaign.allocation.more)} of 200 trials have no outcome." in verdict.reason


def test_a_process_that_dies_counts_in_the_stratum_of_its_trial() -> None:
    campaign = stratified([(TOP, "masked"), *[(OTHERS, "masked")] * 11], due_budget=100.0)
    del campaign.trials[11]
    begins = {"kind": "begins", "trial": 11, "draw": 11, "cell": [*CELLS[OTHERS]]}
    campaign.add(begins, CHUNK)
    assert campaign.crashed(CHUNK) is not None
    found = campaign.strata()
    assert found is not None
    assert [(each.trials, each.due) for each in found] == [(1, 0), (11, 1)]


def test_processes_that_compute_different_values_make_the_verdict_incomplete() -> None:
    ends = [trial(number, cell=[*CELLS[OTHERS]]) for number in range(12)]
    words = [cells(), cells({TOP: 0.21, OTHERS: 0.79})]
    campaign = ledger([golden(), *words, noise(), *ends], plan(12, sampling="stratified"))
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "incomplete"
    assert "Two processes computed different values in the golden runs" in verdict.reason


def test_values_that_differ_by_rounding_make_no_other_strata() -> None:
    ends = [trial(number, cell=[*CELLS[OTHERS]]) for number in range(12)]
    words = [cells(), cells({TOP: 0.2001, OTHERS: 0.7999})]
    campaign = ledger([golden(), *words, noise(), *ends], plan(12, sampling="stratified"))
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "pass"


def test_a_fault_that_two_trials_have_makes_the_verdict_incomplete() -> None:
    ends = [*EARLY_SDCS, *[(TOP, "masked")] * AllocationRule(200).most_more]
    campaign = stratified(ends, planned=200, budget=100.0)
    campaign.trials[201]["draw"] = 200
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "incomplete"
    assert "Processes disagree on which faults" in verdict.reason


def test_words_that_come_behind_all_trials_decide_alike() -> None:
    before = stratified(EARLY_SDCS, planned=200)
    after = stratified(EARLY_SDCS, planned=200)
    after = ledger([*after.trials.values(), golden(), noise(), cells()], after.plan)
    assert after.allocation == before.allocation is not None
