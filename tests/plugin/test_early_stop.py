"""Gates that the first trials decide: the same verdict, from fewer trials."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.report import table
from ft2.verdict import Counts, stopping_rule
from pytest_ft2.ledger import CampaignLedger
from tests.plugin.conftest import Project
from tests.plugin.gated import RIGHT_OR_NOT, WORKERS, outcomes, run_with
from tests.plugin.test_ledger import golden, ledger, noise, plan, trial


def early(outcomes: Sequence[str | None], order: list[int], **values: Any) -> CampaignLedger:
    """Return the ledger of a gate that may stop early, its trials heard of in an order."""
    the_plan = plan(len(outcomes), **{"stop": "early", "due_budget": 50.0} | values)
    trials = [trial(number, outcomes[number]) for number in order]
    return ledger([golden(), noise(), *trials], the_plan)


OUTCOMES = st.lists(st.sampled_from(["masked", "sdc", "due"]), min_size=1, max_size=40)
BUDGETS = st.sampled_from([5.0, 20.0, 60.0])
CONFIDENCES = st.none() | st.sampled_from([0.7, 0.95])


@given(OUTCOMES, BUDGETS, CONFIDENCES, st.randoms(use_true_random=False))
def test_the_verdict_does_not_depend_on_the_order_in_which_trials_end(
    ends: list[str], budget: float, confidence: float | None, shuffle: random.Random
) -> None:
    numbers = list(range(len(ends)))
    given = {"budget": budget, "confidence": confidence}
    in_order = early(ends, numbers, **given).result(finished=True)
    shuffle.shuffle(numbers)
    shuffled = early(ends, numbers, **given).result(finished=True)
    assert shuffled == in_order


@given(OUTCOMES, BUDGETS, CONFIDENCES, st.data())
def test_only_a_prefix_without_a_missing_trial_decides(
    ends: list[str], budget: float, confidence: float | None, data: st.DataObject
) -> None:
    missing = data.draw(st.integers(0, len(ends) - 1))
    numbers = [number for number in range(len(ends)) if number != missing]
    campaign = early(ends, numbers, budget=budget, confidence=confidence)
    found = campaign.result(finished=True)
    assert found.verdict is not None
    if campaign.stopped_after is None:
        assert found.verdict.name == "incomplete"
        assert "1 of" in found.verdict.reason
    else:
        assert campaign.stopped_after <= missing
        rule = stopping_rule(len(ends), campaign.budget)
        seen = ends[: campaign.stopped_after]
        counts = Counts(len(ends), *(seen.count(name) for name in ("masked", "sdc", "due")))
        assert found.counts == counts
        assert found.verdict.name == rule.decide(counts)


def test_trials_behind_the_deciding_ones_are_not_counted() -> None:
    ends = ["masked"] * 4 + ["sdc"] * 3 + ["masked"] * 13
    campaign = early(ends, [*range(7), 12], budget=10.0)
    found = campaign.result(finished=True)
    assert (found.counts.planned, found.counts.seen, found.counts.sdc) == (20, 7, 3)
    assert found.stop == {"after": 7, "saved": 12, "not_counted": 1}
    assert [each["trial"] for each in found.trials] == list(range(7))
    assert "7 of 20" in table([found])
    assert found.verdict is not None
    assert found.verdict.name == "fail"
    assert found.verdict.reason.endswith("The 13 other planned trials were not needed.")


def test_prompts_that_had_no_trial_yet_keep_a_gate_from_passing() -> None:
    # The first 900 prompts are never wrong, the last 100 always: a rate of 10 %.
    sets = tuple(f"p{number}" for number in range(1000))
    the_plan = plan(2000, stop="early", budget=1.0, confidence=0.95, sets=sets)
    trials = [
        trial(number, "sdc" if number % 1000 >= 900 else "masked", params=sets[number % 1000])
        for number in range(1000)
    ]
    campaign = ledger(trials[:950], the_plan)
    assert campaign.stopped_after is None
    for record in trials[950:]:
        campaign.add(record, "chunk")
    assert campaign.stopped_after == 1000
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "incomplete"
    assert "Whether the assertion can fail at all was not tried." in verdict.reason


def test_an_error_of_the_harness_stops_nothing_and_makes_the_verdict_incomplete() -> None:
    ends = ["masked", None, *["sdc"] * 18]
    campaign = early(ends, list(range(20)), budget=10.0)
    assert campaign.stopped_after is None
    found = campaign.result(finished=True)
    assert found.verdict is not None
    assert found.verdict.name == "incomplete"


def test_a_problem_makes_a_gate_that_stopped_incomplete() -> None:
    ends = ["sdc"] * 20
    campaign = early(ends, list(range(20)), budget=10.0)
    assert campaign.stopped_after == 3
    campaign.note("Something broke.")
    found = campaign.result(finished=True)
    assert found.verdict is not None
    assert (found.verdict.name, found.verdict.reason) == ("incomplete", "Something broke.")


@WORKERS
def test_a_gate_that_its_first_trials_decide_runs_few_of_the_others(
    project: Project, workers: str
) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "2"))
    plan = ("--ft2-faults=200", "--ft2-chunk=5", "--ft2-json=out.json")
    result = run_with(project, workers, *plan, "--ft2-stop=early")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    campaign = project.json()["campaigns"][0]
    seen = outcomes(project)
    assert campaign["verdict"] == "fail"
    assert campaign["planned"] == 200
    # The fifth SDC of 200 trials is over the budget of 2 %, so it ends them.
    assert campaign["sdc"] == 5
    assert campaign["stop"]["after"] == campaign["masked"] + 5 == len(seen)
    assert campaign["stop"]["saved"] > 0
    assert "other planned trials were not needed." in campaign["reason"]
    result.stdout.fnmatch_lines([f"test_it.py::test_answer * {len(seen)} of 200 * fail"])
    if workers == "-n0":
        assert campaign["stop"]["not_counted"] == 0
        project.run(f"--ft2-faults={len(seen)}", "--ft2-json=out.json")
        assert outcomes(project) == seen


def test_a_plan_that_can_never_pass_is_warned_of_when_it_is_collected(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=RIGHT_OR_NOT.replace("BUDGET", "1, confidence=0.95")
        + RIGHT_OR_NOT.replace("BUDGET", "1").replace("test_answer", "test_other")
    )
    result = project.run("--collect-only", "--ft2-faults=20")
    warned = [line.strip() for line in result.outlines if "can never pass" in line]
    assert len(warned) == 1
    assert warned[0].endswith(
        "test_it.py::test_answer: 20 faults without a single SDC do not prove a rate within 1 % "
        "with 95 % confidence, so this gate can never pass: plan at least 299 (--ft2-faults=299), "
        "or leave confidence out."
    )
