"""``--ft2-sampling=stratified``: more faults where they matter, and the rate of the whole space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ft2.report import as_document, notes
from pytest_ft2.ledger import CampaignLedger
from tests.plugin.conftest import Project
from tests.plugin.gated import RIGHT_OR_NOT
from tests.plugin.test_ledger import CHUNK, golden, ledger, noise, plan, trial

STRATIFIED = "--ft2-sampling=stratified"
WEIGHTS = {"top-exponent-bit": 0.2, "other-bits": 0.8}
FAULT = "call=0,step=1,layer=model.layers.0.mlp.up_proj,row=0,position=0,neuron=1,bits={}"


def test_a_campaign_is_the_same_with_workers_under_another_protection_and_in_a_replay(
    project: Project,
) -> None:
    with (project.path / "conftest.py").open("a") as file:
        file.write("\nimport pytest_ft2.collection\npytest_ft2.collection.LEAST_STRATIFIED = 20\n")
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100, due_budget=100"))
    wide = (STRATIFIED, "--ft2-json=out.json")
    project.run_apart("-n2", *wide, "--ft2-faults=60", "--ft2-chunk=20", "--ft2-protection=none")
    campaign = project.json()["campaigns"][0]
    assert (campaign["verdict"], campaign["sampling"]) == ("pass", "stratified")
    top, others = campaign["strata"]
    assert (top["name"], top["weight"]) == ("top-exponent-bit", 1 / 5)
    assert (others["name"], others["weight"]) == ("other-bits", 4 / 5)
    assert top["trials"] + others["trials"] == 60
    assert top["sdc"] + others["sdc"] == campaign["sdc"] > 0
    for each in campaign["strata"]:
        drawn = [one for one in campaign["trials"] if one["stratum"] == each["name"]]
        assert len(drawn) == each["trials"]
        assert {",bits=14," in one["fault"] for one in drawn} == {each is top}
    rates = [each["weight"] * each["sdc"] / each["trials"] for each in campaign["strata"]]
    assert campaign["rate"] == pytest.approx(100 * sum(rates))
    low, high = campaign["interval"]
    assert low < campaign["rate"] < high
    assert {part["interval"] for part in campaign["breakdown"]["bit"].values()} == {None}

    # Fewer trials are the first ones of a larger plan.
    result = project.run(*wide, "--ft2-faults=20", "--ft2-protection=ft2")
    protected = project.json()["campaigns"][0]
    assert protected["verdict"] == "pass"
    faults = [one["fault"] for one in campaign["trials"][:20]]
    assert [one["fault"] for one in protected["trials"]] == faults
    result.stdout.fnmatch_lines(["*Sampled by strata, * top-exponent-bit, 20 % of the space, *"])

    wrong = next(one for one in campaign["trials"] if one["outcome"] == "sdc")
    name = f"--ft2-replay=test_it.py::test_answer#{wrong['trial']}"
    shown = project.run(name, STRATIFIED, "--ft2-protection=none")
    assert shown.ret == pytest.ExitCode.TESTS_FAILED
    shown.stdout.fnmatch_lines([f"fault:      {wrong['fault']}"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--ft2-faults=2000", "--ft2-stop=early"],
            "--ft2-sampling=stratified cannot be combined with --ft2-stop=early, whose looks count "
            "each trial alike: leave one of them out.",
        ),
        (
            ["--ft2-faults=999"],
            "--ft2-sampling=stratified needs 1000 faults or more, and 999 are planned: with so few "
            "its interval would be wider than that of uniform sampling.",
        ),
    ],
)
def test_what_strata_cannot_be_combined_with_is_refused_at_collection(
    project: Project, arguments: list[str], sentence: str
) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "1"))
    result = project.run(STRATIFIED, *arguments)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert f"test_it.py::test_answer: {sentence}" in result.stdout.str()


def stratified(ends: Sequence[tuple[str, str | None]], **values: Any) -> CampaignLedger:
    """Return the ledger of trials given by stratum and outcome."""
    bits = {"top-exponent-bit": 14, "other-bits": 3}
    trials = [
        trial(number, outcome, stratum=stratum, fault=FAULT.format(bits[stratum]))
        for number, (stratum, outcome) in enumerate(ends)
    ]
    the_plan = plan(len(ends), **{"sampling": "stratified"} | values)
    return ledger([golden(strata=WEIGHTS), noise(), *trials], the_plan)


TOP = [("top-exponent-bit", "sdc")] * 3 + [("top-exponent-bit", "masked")] * 3
OTHERS = [("other-bits", "masked")] * 6


def test_every_rate_of_the_document_is_weighted() -> None:
    found = stratified(TOP + OTHERS, budget=10.5).result(finished=True)
    campaign = as_document([found], {})["campaigns"][0]
    # Half of the fifth of the space that the top bit is.
    assert campaign["rate"] == pytest.approx(10)
    assert campaign["verdict"] == "pass"
    assert campaign["breakdown"]["phase"]["later"]["rate"] == pytest.approx(10)
    assert campaign["rate_by_macs"] == campaign["measures"]["macs"]["rate"] == pytest.approx(10)
    assert campaign["measures"]["macs"]["interval"] is None
    assert campaign["interval_for_new_prompts"] is campaign["chance_of_another_verdict"] is None
    assert any("rate by MACs 10.00 %" in line for line in notes(found))


def test_many_sdcs_of_an_oversampled_stratum_lose_no_unfinished_campaign() -> None:
    campaign = stratified(TOP + [("other-bits", None)] * 6, budget=20.0)
    campaign.ended = False
    assert not campaign.decided
    assert campaign.result(finished=False).verdict is None


def test_a_process_that_dies_counts_in_the_stratum_of_its_trial() -> None:
    campaign = stratified([*TOP, *OTHERS[:5], ("other-bits", "masked")], due_budget=100.0)
    del campaign.trials[11]
    begins = {"kind": "begins", "trial": 11, "stratum": "other-bits"}
    campaign.add(begins, CHUNK)
    assert campaign.crashed(CHUNK) is not None
    assert campaign.strata is not None
    assert [(each.trials, each.due) for each in campaign.strata] == [(6, 0), (6, 1)]


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        (
            [golden(strata=WEIGHTS), golden(strata={"top-exponent-bit": 0.1, "other-bits": 0.9})],
            "compute in different number formats, so the strata weigh differently in them",
        ),
        ([golden()], "12 of 12 trials have no outcome."),
    ],
)
def test_strata_of_other_or_unknown_weights_are_never_averaged(
    runs: list[dict[str, Any]], sentence: str
) -> None:
    ends = [trial(number, stratum=name) for number, (name, _) in enumerate(TOP + OTHERS)]
    campaign = ledger([*runs, noise(), *ends], plan(12, sampling="stratified"))
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "incomplete"
    assert sentence in verdict.reason
