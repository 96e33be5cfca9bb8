"""``--ft2-sampling=stratified``: more faults where SDCs are, and the rate of the whole space."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.report import as_document, notes
from ft2.verdict import Allocation, AllocationRule, interval
from pytest_ft2.ledger import CampaignLedger
from tests.plugin.conftest import Project
from tests.plugin.gated import RIGHT_OR_NOT
from tests.plugin.test_ledger import CHUNK, golden, ledger, noise, plan, trial

STRATIFIED = "--ft2-sampling=stratified"
TOP, OTHERS = "top-exponent-bit", "other-bits"
WEIGHTS = {TOP: 0.2, OTHERS: 0.8}
FAULT = "call=0,step=1,layer=model.layers.0.mlp.up_proj,row=0,position=0,neuron=1,bits={}"


def test_a_campaign_is_the_same_with_workers_and_in_a_replay_and_begins_as_a_uniform_one(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100, due_budget=100"))
    wide = (STRATIFIED, "--ft2-json=out.json", "--ft2-faults=100", "--ft2-protection=none")
    project.run_apart("-n2", *wide, "--ft2-chunk=10")
    campaign = project.json()["campaigns"][0]
    assert (campaign["verdict"], campaign["sampling"]) == ("pass", "stratified")
    allocation = Allocation(**campaign["allocation"])
    assert allocation.first + allocation.uniform + allocation.hot == 100
    uniform = range(allocation.first + allocation.uniform)
    hot = range(100, 100 + allocation.hot)
    assert [each["trial"] for each in campaign["trials"]] == [*uniform, *hot]
    for each in campaign["trials"]:
        assert (each["stratum"] == TOP) == (",bits=14," in each["fault"])
        assert each["stratum"] == TOP or each["trial"] in uniform
    # Each stage's own estimate counts by its trials.
    first = [each for each in campaign["trials"] if each["trial"] < allocation.first]
    later = 0.0
    for stratum in campaign["strata"]:
        drawn = [one for one in campaign["trials"] if one["stratum"] == stratum["name"]]
        assert len(drawn) == stratum["trials"]
        behind = [one["outcome"] == "sdc" for one in drawn if one not in first]
        later += stratum["weight"] * sum(behind) / len(behind)
    events = sum(each["outcome"] == "sdc" for each in first)
    rate = events + (100 - allocation.first) * later
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
    result.stdout.fnmatch_lines(
        [f"*Sampled by strata from trial {allocation.first} on, {allocation.hot} trials from top-*"]
    )

    project.run(*wide[1:])
    plain = project.json()["campaigns"][0]
    faults = [each["fault"] for each in plain["trials"]]
    assert [each["fault"] for each in campaign["trials"][: len(uniform)]] == faults[: len(uniform)]

    wrong = next(
        one for one in campaign["trials"] if one["outcome"] == "sdc" and one["trial"] in hot
    )
    name = f"--ft2-replay=test_it.py::test_answer#{wrong['trial']}"
    shown = project.run(name, STRATIFIED, "--ft2-protection=none", "--ft2-faults=100")
    assert shown.ret == pytest.ExitCode.TESTS_FAILED
    shown.stdout.fnmatch_lines([f"fault:      {wrong['fault']}"])
    # Which fault has a number behind the planned ones depends on how many are planned.
    refused = project.run(name, STRATIFIED, "--ft2-protection=none")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*give --ft2-faults=N as the campaign had it*"])


def test_no_more_trials_run_than_were_planned_whatever_order_the_chunks_are_put_in(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100, due_budget=100"))
    with (project.path / "conftest.py").open("a") as file:
        file.write("\ndef pytest_collection_modifyitems(items):\n    items.reverse()\n")
    wide = (STRATIFIED, "--ft2-faults=60", "--ft2-chunk=5", "--ft2-protection=none")
    result = project.run(*wide, "--ft2-json=out.json")
    assert project.json()["campaigns"][0]["allocation"] is not None
    outcomes = result.parseoutcomes()
    assert outcomes["masked"] + outcomes["sdc"] == 60


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


def stratified(ends: Sequence[tuple[str, str | None]], **values: Any) -> CampaignLedger:
    """Return the ledger of trials given by stratum and outcome; those behind the plan are hot."""
    bits = {TOP: 14, OTHERS: 3}
    planned = values.pop("planned", len(ends))
    hot = AllocationRule(planned).most_hot
    trials = [
        trial(number, outcome, stratum=stratum, fault=FAULT.format(bits[stratum]))
        for number, (stratum, outcome) in enumerate(ends)
    ]
    random.Random(0).shuffle(trials)
    the_plan = plan(planned, **{"sampling": "stratified", "hot": hot} | values)
    return ledger([golden(strata=WEIGHTS), noise(), *trials], the_plan)


EARLY_SDCS = [(TOP, "sdc"), (OTHERS, "masked"), (OTHERS, "masked"), (OTHERS, "masked")] * 50


def test_sdcs_of_the_first_trials_draw_others_from_their_stratum() -> None:
    # All 200 planned trials run here, and all 97 behind them: those that count are chosen.
    ends = [*EARLY_SDCS, *[(TOP, "masked")] * AllocationRule(200).most_hot]
    campaign = stratified(ends, planned=200, budget=100.0)
    allocation = campaign.allocation
    assert allocation is not None
    behind = allocation.first + allocation.uniform
    assert [*campaign.counted] == [*range(behind), *range(200, 200 + allocation.hot)]
    found = campaign.result(finished=True)
    assert found.counts.seen == 200
    document = as_document([found], {})["campaigns"][0]
    assert document["allocation"] == {
        "first": allocation.first,
        "uniform": allocation.uniform,
        "hot": allocation.hot,
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
    assert f"{campaign.allocation.hot} of 200 trials have no outcome." in verdict.reason


def test_a_process_that_dies_counts_in_the_stratum_of_its_trial() -> None:
    campaign = stratified([(TOP, "masked"), *[(OTHERS, "masked")] * 11], due_budget=100.0)
    del campaign.trials[11]
    begins = {"kind": "begins", "trial": 11, "stratum": OTHERS}
    campaign.add(begins, CHUNK)
    assert campaign.crashed(CHUNK) is not None
    found = campaign.strata()
    assert found is not None
    assert [(each.trials, each.due) for each in found] == [(1, 0), (11, 1)]


def test_strata_of_other_weights_are_never_averaged() -> None:
    ends = [trial(number, stratum=OTHERS) for number in range(12)]
    runs = [golden(strata=WEIGHTS), golden(strata={TOP: 0.1, OTHERS: 0.9})]
    campaign = ledger([*runs, noise(), *ends], plan(12, sampling="stratified"))
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "incomplete"
    assert (
        "compute in different number formats, so the strata weigh differently in them"
        in verdict.reason
    )
