"""From what reports carry to counts and verdicts, whatever the order they come in."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft2.report import CampaignResult
from pytest_ft2.ledger import CampaignLedger, Ledger
from pytest_ft2.plan import GatePlan

KEY = "test_it.py::test_answer"
PREFIX = f"{KEY}["
CHUNK = f"{PREFIX}faults-0-3]"


def plan(planned: int = 4, **values: Any) -> GatePlan:
    given = {
        "key": KEY,
        "prefix": PREFIX,
        "location": ("test_it.py", 3, "test_answer"),
        "planned": planned,
        "chunk": 4,
        "sets": ("",),
        "budget": 50.0,
        "confidence": None,
        "due_budget": 5.0,
        "fault_model": "exp",
        "protection": "ft2",
        "encoding": None,
        "golden": "require",
        "seed": 0,
        "trial_timeout": None,
        "replay_options": (),
    }
    return GatePlan(**{**given, **values})


def trial(number: int, outcome: str | None = "masked", **values: Any) -> dict[str, Any]:
    return {
        "kind": "trial",
        "campaign": KEY,
        "trial": number,
        "params": "",
        "fault": f"fault {number}",
        "draw": number,
        "cell": None,
        "phase": "later",
        "outcome": outcome,
        "error": None if outcome else "the fault did not land.",
        "weights": {"macs": 1.0, "time": 1.0},
    } | values


def golden(params: str = "", **values: Any) -> dict[str, Any]:
    return {
        "kind": "golden",
        "campaign": KEY,
        "params": params,
        "passed": True,
        "skipped": None,
        "digest": "a",
        "protected_digest": "a",
        "left_first_token": True,
        "problem": None,
    } | values


def noise(holds: bool = False, params: str = "") -> dict[str, Any]:
    return {"kind": "noise", "campaign": KEY, "params": params, "holds": holds}


def problem(sentence: str) -> dict[str, Any]:
    return {"kind": "problem", "campaign": KEY, "sentence": sentence}


def all_well(planned: int = 4) -> list[dict[str, Any]]:
    return [golden(), noise(), *(trial(number) for number in range(planned))]


def ledger(payloads: list[dict[str, Any]], the_plan: GatePlan | None = None) -> CampaignLedger:
    """Return a campaign's ledger at the end of a session that selected everything."""
    the_plan = the_plan or plan()
    book = Ledger()
    book.add({"kind": "plan", "plan": the_plan.as_plain()}, CHUNK)
    for payload in payloads:
        book.add(payload, CHUNK)
    campaign = book.campaigns[KEY]
    campaign.selected = set(the_plan.numbers)
    campaign.ended = True
    return campaign


def decided(payloads: list[dict[str, Any]], the_plan: GatePlan | None = None) -> tuple[str, str]:
    """Return the verdict's name and reason."""
    verdict = ledger(payloads, the_plan).result(finished=True).verdict
    assert verdict is not None
    return verdict.name, verdict.reason


def test_when_all_is_well_the_gate_passes() -> None:
    name, reason = decided(all_well())
    assert name == "pass"
    assert reason.startswith("0 of 4 faults changed a right answer into a wrong one")


def test_a_trial_reported_twice_counts_once() -> None:
    campaign = ledger([*all_well(), trial(0), trial(3)])
    assert campaign.counts.seen == 4
    assert decided([*all_well(), trial(0)])[0] == "pass"


@pytest.mark.parametrize("other", [{"outcome": "sdc"}, {"fault": "another fault"}])
def test_two_runs_of_a_trial_that_disagree_make_the_verdict_incomplete(
    other: dict[str, Any],
) -> None:
    name, reason = decided([*all_well(), trial(2, **other)])
    assert name == "incomplete"
    assert "Trial 2 ran twice and ended differently (masked, " in reason
    assert "outcomes must not depend on where or when a trial runs" in reason


def test_a_trial_that_never_came_stays_in_the_denominator() -> None:
    payloads = [each for each in all_well() if each.get("trial") != 1]
    campaign = ledger(payloads)
    assert campaign.counts.planned == 4
    assert decided(payloads) == ("incomplete", "1 of 4 trials have no outcome.")


def test_a_harness_error_is_no_outcome() -> None:
    name, reason = decided([*all_well()[:-2], trial(2, None), trial(3, None)])
    assert name == "incomplete"
    assert "In trial 2 the fault did not land. 1 more trials ended so." in reason


def test_two_models_are_never_averaged() -> None:
    sets = ("a", "b", "c")
    models = ["x", "y", "x"]
    goldens = [golden(params, model=model) for params, model in zip(sets, models, strict=True)]
    name, reason = decided([*goldens, *all_well()[1:]], plan(sets=sets))
    assert name == "incomplete"
    assert reason.startswith(
        f"The parameter sets of {KEY} ran on 2 different models (sets a, b, say), and two models "
        "are never averaged: "
    )
    name, reason = decided([golden(model="x"), golden(model="y"), *all_well()[1:]])
    assert name == "incomplete"
    assert reason.startswith(f"The golden runs of {KEY} ran on 2 different models, and two models ")


@pytest.mark.parametrize(
    ("name", "shown"), [("threads", "threads: 1, 2"), ("dtype", "dtype: 1, 2")]
)
def test_environments_that_differ_make_the_verdict_incomplete(name: str, shown: str) -> None:
    same = {"torch": "2.13", "device": "x86_64", "dtype": "float32", "threads": 1}
    goldens = [golden(environment=same | {name: value}) for value in (2, 1)]
    verdict, reason = decided([*goldens, *all_well()[1:]])
    assert verdict == "incomplete"
    assert reason == (
        f"Not all golden runs of {KEY} ran in the same environment ({shown}), and outcomes can "
        "depend on it: run all trials alike."
    )
    assert decided([goldens[0], goldens[0], *all_well()[1:]])[0] == "pass"


def test_the_environment_is_that_of_the_golden_runs() -> None:
    book = Ledger()
    for key, threads in (("a.py::a", 2), ("b.py::b", 1)):
        book.add({"kind": "plan", "plan": plan(key=key).as_plain()}, CHUNK)
        facts = {"device": "x86_64", "threads": threads}
        book.add(golden(environment=facts) | {"campaign": key}, CHUNK)
    assert book.environment == {"device": "x86_64", "threads": "1, 2"}
    del book.campaigns["a.py::a"]
    assert book.environment == {"device": "x86_64", "threads": 1}


def test_goldens_that_differ_make_the_verdict_incomplete() -> None:
    for other in ({"digest": "b"}, {"protected_digest": "b"}):
        name, reason = decided([*all_well(), golden(**other)])
        assert name == "incomplete"
        assert f"The golden run {KEY} differs between two processes or two runs" in reason


def test_a_golden_run_that_fails_anywhere_makes_the_verdict_incomplete() -> None:
    name, reason = decided([*all_well(), golden(passed=False, wrong_answer=True)])
    assert name == "incomplete"
    assert f"The golden run {KEY} fails without any fault: make it pass." in reason


def test_an_assertion_that_holds_on_noise_makes_the_verdict_incomplete() -> None:
    for order in ([noise(True), noise(False)], [noise(False), noise(True)]):
        name, reason = decided([each for each in all_well() if each["kind"] != "noise"] + order)
        assert name == "incomplete"
        assert "This assertion holds when the model talks noise" in reason


def test_an_assertion_that_was_not_tried_on_noise_makes_the_verdict_incomplete() -> None:
    name, reason = decided([each for each in all_well() if each["kind"] != "noise"])
    assert (name, reason) == ("incomplete", "Whether the assertion can fail at all was not tried.")


def test_sets_whose_assertion_holds_on_noise_are_named() -> None:
    sets = tuple("abcdefgh")
    heard = [noise(holds, params) for holds, params in zip([False] + [True] * 7, sets, strict=True)]
    name, reason = decided([golden("a"), *all_well()[2:], *heard], plan(sets=sets))
    assert name == "incomplete"
    assert (
        "This assertion holds for 7 of 8 parameter sets (b, c, d, e, f and 2 more) when the model "
        "talks noise, so it cannot see a wrong answer: assert on what the model says." in reason
    )


def test_a_set_with_trials_that_was_not_tried_on_noise_makes_the_verdict_incomplete() -> None:
    two = plan(sets=("a", "b"))
    trials = [trial(number, params="ab"[number % 2]) for number in range(4)]
    heard = [golden("a"), golden("b"), *trials, noise(params="a")]
    assert decided(heard, two)[1] == "Whether the assertion can fail at all was not tried."
    assert decided([*heard, noise(params="b")], two)[0] == "pass"


def test_an_assertion_that_holds_on_noise_after_trials_makes_the_verdict_incomplete() -> None:
    deafened = {"kind": "deafened", "campaign": KEY, "params": ""}
    name, reason = decided([*all_well(), deafened])
    assert name == "incomplete"
    assert reason.startswith(f"After the trials the assertion of {KEY} holds when the model talks")
    # One that held before, be it in another process, is not told to have failed then.
    name, reason = decided([deafened, *all_well(), noise(holds=True)])
    assert name == "incomplete"
    assert reason.startswith("This assertion holds when the model talks noise")
    assert "After the trials" not in reason


def test_a_protection_that_never_left_the_first_token_makes_the_verdict_incomplete() -> None:
    name, reason = decided([golden(left_first_token=False), *all_well()[1:]])
    assert name == "incomplete"
    assert reason.startswith("Protection ft2 never left the first token, so it protected nothing")
    assert "ft2.request(model)" in reason


def test_a_parameter_set_that_protection_never_helped_is_not_covered_by_another() -> None:
    goldens = [golden("a"), golden("b", left_first_token=False), golden("c")]
    name, reason = decided([*goldens, *all_well()[1:]], plan(sets=("a", "b", "c")))
    assert name == "incomplete"
    assert reason.startswith(
        "Protection ft2 never left the first token for 1 of 3 parameter sets (b), so it protected "
        "nothing there: "
    )


def test_a_parameter_set_that_is_left_out_needs_no_protection() -> None:
    wrong = golden("b", passed=False, wrong_answer=True, left_first_token=False)
    three = plan(golden="exclude", sets=("a", "b", "c"))
    assert decided([golden("a"), wrong, golden("c"), *all_well()[1:]], three)[0] == "pass"


def test_a_selection_of_some_trials_makes_the_verdict_incomplete() -> None:
    campaign = ledger(all_well()[:-1])
    campaign.selected = {0, 1, 2}
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "incomplete"
    assert "Only 3 of the gate's 4 trials were selected" in verdict.reason


def test_no_trial_selected_makes_the_verdict_incomplete() -> None:
    campaign = ledger([golden()])
    campaign.selected = set()
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "incomplete"


def test_a_gate_that_is_not_selected_has_no_verdict() -> None:
    campaign = ledger(all_well())
    campaign.gate_selected = False
    assert campaign.result(finished=True).verdict is None


def test_a_chunk_that_did_not_end_makes_the_verdict_incomplete() -> None:
    campaign = ledger(all_well())
    campaign.ended = False
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "incomplete"
    assert "Not every chunk of trials ran to its end" in verdict.reason


def begins(number: int) -> dict[str, Any]:
    return {"kind": "begins", "campaign": KEY, "trial": number}


BEHIND = {"kind": "behind", "campaign": KEY}


def test_a_crash_is_the_due_of_the_trial_it_interrupted_and_the_rest_is_lost() -> None:
    campaign = ledger([golden(), noise(), begins(0), trial(0), begins(1)])
    campaign.ended = False
    record = campaign.crashed(CHUNK)
    assert record is not None
    assert (record["trial"], record["outcome"]) == (1, "due")
    result = campaign.result(finished=True)
    assert (result.counts.due, result.counts.seen) == (1, 2)
    assert result.trials[1]["error"] == "the process died in this trial"
    assert result.verdict is not None
    assert result.verdict.name == "incomplete"
    assert "A worker died in trial 1, which counts as a DUE" in result.verdict.reason
    assert "the 2 trials behind it were lost: `pytest --ft2-replay=" in result.verdict.reason
    assert "2 of 4 trials have no outcome." in result.verdict.reason


def test_a_chunk_that_ran_to_its_end_after_a_crash_makes_the_gate_complete() -> None:
    campaign = ledger([golden(), noise(), begins(0), trial(0), begins(1)], plan(due_budget=25.0))
    campaign.crashed(CHUNK)
    again = [golden(), begins(0), trial(0), begins(2), trial(2), begins(3), trial(3), BEHIND]
    for payload in again:
        campaign.add(payload, CHUNK)
    campaign.ended_chunks = {CHUNK}
    result = campaign.result(finished=True)
    assert (result.counts.masked, result.counts.due) == (3, 1)
    assert result.verdict is not None
    assert result.verdict.name == "pass"


def test_a_trial_that_ends_a_second_process_is_not_tried_a_third_time() -> None:
    campaign = ledger([golden(), noise(), begins(0), trial(0), begins(1)])
    assert campaign.crashed(CHUNK) is not None
    campaign.add(begins(1), CHUNK)
    assert campaign.crashed(CHUNK) is None
    assert campaign.counts.due == 1


def test_a_trial_that_ends_its_process_only_sometimes_makes_the_verdict_incomplete() -> None:
    campaign = ledger([*all_well(), begins(2)])
    campaign.crashed(CHUNK)
    campaign.ended_chunks = {CHUNK}
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "incomplete"
    assert "Trial 2 ran twice and ended differently (masked, due)" in verdict.reason


@pytest.mark.parametrize("before", [[], [begins(3), trial(3), BEHIND]])
def test_a_crash_outside_a_trial_is_no_due(before: list[dict[str, Any]]) -> None:
    campaign = ledger([*all_well(), *before])
    assert campaign.crashed(CHUNK) is None
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert campaign.counts.due == 0
    assert verdict.name == "incomplete"
    assert "died outside a trial" in verdict.reason


def test_the_line_that_replays_a_crash_is_one_that_a_shell_understands() -> None:
    key = "test_it.py::test_answer[it's $HOME]"
    options = ("--ft2-faults=4", "--ft2-model=a model")
    line = plan(key=key, replay_options=options).replay_line(1)
    assert shlex.split(line) == ["pytest", f"--ft2-replay={key}#1", *options]


def test_an_unfinished_session_has_a_verdict_only_when_the_budget_is_spent() -> None:
    campaign = ledger([golden(), noise(), trial(0, "sdc"), trial(1, "sdc")])
    assert campaign.result(finished=False).verdict is None
    campaign.add(trial(2, "sdc"), CHUNK)
    verdict = campaign.result(finished=False).verdict
    assert verdict is not None
    assert verdict.name == "fail"


def test_sets_answered_wrongly_are_excluded_and_half_must_remain() -> None:
    three = plan(golden="exclude", sets=("a", "b", "c"))
    goldens = [
        golden("a", passed=False, wrong_answer=True, problem="wrong"),
        golden("b"),
        golden("c"),
    ]
    payloads = [*goldens, *all_well()[1:]]
    assert decided(payloads, three)[0] == "pass"
    assert ledger(payloads, three).result(finished=True).excluded == ["a"]
    goldens[1] = golden("b", passed=False, wrong_answer=True, problem="wrong")
    name, reason = decided([*goldens, *all_well()[1:]], three)
    assert name == "incomplete"
    assert "Only 1 of 3 parameter sets are answered rightly without a fault" in reason


@pytest.mark.parametrize("also", [golden("a"), trial(0, params="a")])
def test_a_set_left_out_in_one_process_and_not_in_another_makes_the_verdict_incomplete(
    also: dict[str, Any],
) -> None:
    two = plan(golden="exclude", sets=("a", "b"))
    trials = [trial(number, params="b") for number in range(4)]
    left_out = golden("a", passed=False, wrong_answer=True, problem="wrong")
    payloads = [left_out, golden("b"), noise(params="a"), noise(params="b")]
    assert decided([*payloads, *trials], two)[0] == "pass"
    name, reason = decided([*payloads, also, *trials], two)
    assert name == "incomplete"
    assert reason.startswith(
        f"The golden run {KEY} [a] passes in one run and fails in another, so whether to leave it "
        "out is not known: make it independent of what ran before."
    )


def test_a_set_whose_fixture_fails_is_not_excluded() -> None:
    three = plan(golden="exclude", sets=("a", "b", "c"))
    goldens = [
        golden("a", passed=False, wrong_answer=False, problem="The fixtures fail."),
        golden("b"),
        golden("c"),
    ]
    name, reason = decided([*goldens, *all_well()[1:]], three)
    assert name == "incomplete"
    assert "The fixtures fail." in reason


def test_a_test_that_always_skips_has_no_verdict() -> None:
    campaign = ledger([golden(passed=False, skipped="not today")])
    assert campaign.all_skipped == "not today"
    assert campaign.result(finished=True).verdict is None


def test_a_plan_travels_as_plain_values() -> None:
    the_plan = plan(sets=("a", "b"), replay_options=("--ft2-seed=1",))
    assert GatePlan.from_plain(the_plan.as_plain()) == the_plan


def shown(result: CampaignResult) -> object:
    return (
        result.counts,
        None if result.verdict is None else (result.verdict.name, result.verdict.rate),
        result.trials,
        result.golden,
        result.excluded,
    )


EVENTS = [
    *all_well(),
    trial(1),
    golden(),
    problem("Something is odd."),
    {"kind": "plan", "plan": plan().as_plain()},
]


@given(st.permutations(EVENTS), st.booleans())
def test_the_order_of_reports_does_not_matter(events: list[dict[str, Any]], odd: bool) -> None:
    kept = [each for each in events if odd or each["kind"] != "problem"]
    book = Ledger()
    for payload in kept:
        book.add(payload, CHUNK)
    campaign = book.campaigns[KEY]
    campaign.selected, campaign.ended = set(range(4)), True
    result = campaign.result(finished=True)
    expected = ledger([*all_well(), *([problem("Something is odd.")] if odd else [])])
    assert shown(result) == shown(expected.result(finished=True))
    assert result.verdict is not None
    assert result.verdict.name == ("incomplete" if odd else "pass")


@given(
    st.lists(st.sampled_from(["masked", "sdc", "due", None]), min_size=1, max_size=8),
    st.data(),
)
def test_a_gate_passes_only_when_every_planned_trial_has_an_outcome(
    outcomes: list[str | None], data: st.DataObject
) -> None:
    sent = data.draw(st.sets(st.integers(0, len(outcomes) - 1)))
    payloads = [golden(), noise(), *(trial(number, outcomes[number]) for number in sorted(sent))]
    name, _ = decided(payloads, plan(len(outcomes), budget=100.0, due_budget=100.0))
    complete = len(sent) == len(outcomes) and None not in outcomes
    assert name == ("pass" if complete else "incomplete")


def test_a_parameter_set_that_fails_with_protection_alone_is_told_and_counted() -> None:
    fails = golden("b", failed_with_protection="Protection ft2 alone makes b fail.")
    payloads = [golden("a"), fails, *all_well()[1:]]
    campaign = ledger(payloads, plan(sets=("a", "b")))
    result = campaign.result(finished=True)
    assert result.verdict is not None
    assert result.verdict.name == "pass"
    assert [each["passed_with_protection"] for each in result.golden] == [True, False]


@pytest.mark.parametrize("stop", ["never", "early"])
def test_wrong_answers_of_the_protection_alone_are_not_told_as_those_of_faults(stop: str) -> None:
    fails = golden("b", failed_with_protection="Protection ft2 alone makes b fail.")
    trials = [trial(number, "sdc", params="ab"[number % 2]) for number in (1, 2, 3)]
    ends = [trial(0, params="a"), *trials]
    payloads = [golden("a"), fails, noise(params="a"), noise(params="b"), *ends]
    campaign = ledger(payloads, plan(sets=("a", "b"), budget=90.0, stop=stop))
    verdict = campaign.result(finished=True).verdict
    assert verdict is not None
    assert verdict.name == "pass"
    assert (
        "4 trials gave a wrong answer, 2 of them where the protection alone gives one, without a "
        "fault, 75 %" in verdict.reason
    )


def test_a_protection_that_makes_most_parameter_sets_fail_cannot_be_judged() -> None:
    fails = golden("b", failed_with_protection="Protection ft2 alone makes b fail.")
    name, reason = decided([fails, *all_well()[1:]], plan(sets=("b",)))
    assert name == "incomplete"
    assert reason.startswith("Protection ft2 alone makes b fail.")


def test_what_a_users_own_item_reports_late_hides_nothing_a_chunk_has_reported() -> None:
    late = golden(calls=None)
    del late["protected_digest"], late["left_first_token"], late["calls"]
    result = ledger([golden(calls=1, steps=5), *all_well()[1:], late]).result(finished=True)
    assert result.golden[0]["calls"] == 1
