"""Trials are computed together, and their tests do not notice."""

from __future__ import annotations

import json

import pytest

from tests.plugin.conftest import RIGHT, Project
from tests.plugin.gated import outcomes

BATCHES = "-o", "ft2_batch=64"

ANSWERS = f"""
import pytest
import torch
from conftest import generate

@pytest.mark.sdc_budget(100)
@pytest.mark.parametrize("length", [6, 4])
def test_answer(model, length):
    assert generate(model, max_new_tokens=length) == {RIGHT}[: 4 + length]
"""

# The second call asks what the first one said; the third, a batch of prompts, comes after both.
SEVERAL_CALLS = """
import pytest
import torch
from conftest import PROMPT, generate

KNOWN = []

@pytest.mark.sdc_budget(100)
def test_answer(model):
    first = generate(model)
    second = generate(model, torch.tensor([first]), max_new_tokens=3)
    padded = torch.tensor([[0, 0, 1, 5, 9], [7, 7, 7, 3, 2]])
    both = model.generate(
        padded, attention_mask=(padded > 0).long(), max_new_tokens=5, do_sample=False
    )
    KNOWN.append((first, second, both.tolist()))
    assert KNOWN[-1] == KNOWN[0]
"""

# A tolerance, and none, which a batch meets up to the fault.
SCORES = """
import pytest
import torch
from conftest import PROMPT

KNOWN = []

def scores(model):
    said = model.generate(
        PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        max_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    KNOWN.append(torch.stack(said.scores))
    return KNOWN[-1]

@pytest.mark.sdc_budget(100)
def test_answer(model):
    assert torch.allclose(scores(model), KNOWN[0], atol=0.01)

@pytest.mark.sdc_budget(100)
def test_digits(model):
    assert torch.equal(scores(model)[0], KNOWN[0][0])
"""

ALONE = {
    "samples": ("generate(model, do_sample=True)", "it samples"),
    "beams": ("generate(model, num_beams=2)", "it does not call the model by generate alone"),
    "loop": ("model(PROMPT).logits.argmax(-1)[0].tolist()", "generate alone"),
    "cache": ("generate(model, past_key_values=DynamicCache())", "it passes a cache"),
    "processor": ("generate(model, repetition_penalty=1.5)", "RepetitionPenaltyLogitsProcessor"),
    "time": ("generate(model, max_time=100.0)", "it stops by MaxTimeCriteria"),
    "fields": (
        "model.generate(PROMPT.repeat(2, 1), return_dict_in_generate=True).sequences.tolist()",
        "return_dict_in_generate",
    ),
    "autocast": ("with_autocast(model)", "it runs under autocast"),
    "hook": ("with_hook(model)", "a hook is registered on lm_head"),
}

BODY = """
import pytest
import torch
from conftest import PROMPT, generate
from transformers import DynamicCache


def with_autocast(model):
    with torch.autocast("cpu", torch.float16):
        return generate(model)


def with_hook(model):
    handle = model.lm_head.register_forward_hook(lambda module, args, output: None)
    try:
        return generate(model)
    finally:
        handle.remove()


KNOWN = []

@pytest.mark.sdc_budget(100)
def test_answer(model):
    said = EXPRESSION
    KNOWN.append(said)
    assert said == KNOWN[0]
"""


def run(project: Project, body: str, *arguments: str) -> pytest.RunResult:
    project.pytester.makepyfile(test_it=body)
    return project.run("--ft2-faults=40", "--ft2-json=out.json", *arguments)


@pytest.mark.parametrize("protection", ["none", "ft2"])
@pytest.mark.parametrize(
    ("body", "together"),
    # Two trials overflow in a padded call.
    [(ANSWERS, 40), (SEVERAL_CALLS, 38)],
    ids=["one call", "several calls"],
)
def test_batched_trials_end_as_they_do_alone(
    project: Project, body: str, together: int, protection: str
) -> None:
    asked = f"--ft2-protection={protection}"
    run(project, body, asked, "-o", "ft2_batch=1")
    alone = without_rounding(project)
    result = run(project, body, asked, *BATCHES)
    assert without_rounding(project) == alone
    assert {"masked", "sdc"} == {trial[-2] for trial in alone}
    result.stdout.fnmatch_lines(
        [
            f"  {together} trials were computed in batches of up to 64 rows.",
            "  5 of the batched ones ran again alone: all ended alike.",
        ]
    )
    trials = project.json()["campaigns"][0]["trials"]
    assert [trial["batch"] for trial in trials].count(64) == together
    alone_for = [trial["alone"] for trial in trials if trial["batch"] == 1]
    assert all("ends otherwise under a mask" in reason for reason in alone_for)


def test_a_test_that_looks_at_scores_decides_in_a_batch_as_it_does_alone(
    project: Project,
) -> None:
    found = []
    for batch in ("1", "64"):
        result = run(project, SCORES, "-o", f"ft2_batch={batch}", "--ft2-protection=none")
        campaigns = project.json()["campaigns"]
        found.append([[trial["outcome"] for trial in each["trials"]] for each in campaigns])
        assert [each["verdict"] for each in campaigns] == ["pass", "pass"]
    assert found[0] == found[1]
    assert [set(each) for each in found[0]] == [{"masked", "sdc"}] * 2
    near, exact = ([trial["batch"] for trial in each["trials"]] for each in campaigns)
    assert near.count(64) == found[0][0].count("masked")
    assert exact.count(64) == found[0][1].count("masked")
    result.stdout.fnmatch_lines(["*ran one at a time: it failed, and was told numbers that a *"])


def without_rounding(project: Project) -> list[tuple[object, ...]]:
    """What a trial's record says, but for the values, which a batch may round otherwise."""
    return [(*trial[:3], trial[5], *trial[6:]) for trial in outcomes(project)]


@pytest.mark.parametrize("case", list(ALONE))
def test_what_no_batch_can_compute_runs_alone_and_is_said(project: Project, case: str) -> None:
    expression, reason = ALONE[case]
    result = run(project, BODY.replace("EXPRESSION", expression), *BATCHES)
    result.stdout.fnmatch_lines([f"  40 trials ran one at a time: *{reason}*(40)."])
    trials = project.json()["campaigns"][0]["trials"]
    assert {trial["batch"] for trial in trials} == {1}


def test_a_test_that_asks_for_something_else_in_a_trial_runs_alone(project: Project) -> None:
    body = f"""
    import pytest
    from conftest import PROMPT, generate

    runs = []

    @pytest.mark.sdc_budget(100)
    def test_answer(model):
        runs.append(1)
        said = generate(model, max_new_tokens=6 if len(runs) < 24 else 5)
        assert said == {RIGHT}[: len(said)]
    """
    result = run(project, body, *BATCHES)
    result.stdout.fnmatch_lines(["  * trials ran one at a time: its test did something else*"])


def test_weights_that_change_between_runs_make_trials_run_alone(project: Project) -> None:
    body = f"""
    import pytest
    import torch
    from conftest import generate

    @pytest.mark.sdc_budget(100)
    def test_answer(model):
        with torch.no_grad():
            model.lm_head.weight.mul_(1.0)
        assert generate(model) == {RIGHT}
    """
    result = run(project, body, *BATCHES)
    result.stdout.fnmatch_lines(
        ["  40 trials ran one at a time: the model, or its weights, are others in each run (40)."]
    )


def test_batches_can_be_switched_off(project: Project) -> None:
    result = run(project, ANSWERS, "--ft2-batch=1")
    result.stdout.no_fnmatch_line("*computed in batches*")
    result.stdout.no_fnmatch_line("*ran one at a time*")


def test_the_random_state_behind_a_batched_answer_is_as_behind_one_alone(
    project: Project,
) -> None:
    body = """
    import pytest
    import torch
    from conftest import generate

    @pytest.mark.sdc_budget(100)
    def test_answer(model):
        torch.rand(1)
        answer = generate(model)
        with open("notes.txt", "a") as file:
            print(torch.rand(1).item(), file=file)
        assert answer[4] == 53
    """
    run(project, body, "-o", "ft2_batch=1")
    run(project, body, *BATCHES)
    notes = (project.path / "notes.txt").read_text().split()
    assert len(notes) > 80
    assert len(set(notes)) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_outcomes_do_not_depend_on_the_chunk(
    project: Project, dtype: str
) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace(".eval()", f".to(torch.{dtype}).eval()"))
    body = """
    import pytest
    from conftest import generate

    KNOWN = []

    @pytest.mark.sdc_budget(100)
    def test_answer(model):
        KNOWN.append(generate(model))
        assert KNOWN[-1] == KNOWN[0]
    """
    found = []
    for chunk in ("7", "40"):
        result = run(project, body, f"--ft2-chunk={chunk}", "--ft2-batch=16", "-o", "ft2_encoding=")
        result.stdout.fnmatch_lines(["  40 trials were computed in batches of up to 16 rows."])
        found.append(outcomes(project))
    assert found[0] == found[1]


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_fixture_that_fails_in_a_batched_trial_makes_the_verdict_incomplete(
    project: Project, where: str
) -> None:
    fail = """
        RUNS.append(1)
        if len(RUNS) == 9:
            raise ConnectionError("the service is away")
    """
    body = f"""
    import pytest
    from conftest import generate

    RUNS = []

    @pytest.fixture
    def service():
        {"yield" if where == "behind" else ""}{fail}
        {"yield" if where == "before" else ""}

    @pytest.mark.sdc_budget(100)
    def test_answer(model, service):
        assert generate(model) == {RIGHT}
    """
    run(project, body, *BATCHES)
    (campaign,) = project.json()["campaigns"]
    assert campaign["verdict"] == "incomplete"
    assert "the service is away" in campaign["reason"]


def test_a_trial_whose_test_never_asks_runs_again_alone(project: Project) -> None:
    body = f"""
    import pytest
    from conftest import generate

    RUNS = []

    @pytest.mark.sdc_budget(100)
    def test_answer(model):
        RUNS.append(1)
        if len(RUNS) != 9:
            assert generate(model) == {RIGHT}
    """
    run(project, body, *BATCHES)
    (campaign,) = project.json()["campaigns"]
    assert campaign["planned"] == 40
    assert {trial["batch"] for trial in campaign["trials"]} == {1, 64}


TWO_GATES = f"""
import pytest
from conftest import generate
from ft2.campaign.batch_engine import BatchEngine

@pytest.fixture(scope="module")
def model(model):
    yield model
    with open("decoded.txt", "a") as file:
        print("torn down", file=file)

@pytest.fixture(scope="session", autouse=True)
def decoded():
    prepare = BatchEngine.prepare

    def watched(engine):
        with open("decoded.txt", "a") as file:
            print("decoded", file=file)
        return prepare(engine)

    BatchEngine.prepare = watched
    yield
    BatchEngine.prepare = prepare

@pytest.mark.sdc_budget(100)
def test_one(model):
    assert generate(model) == {RIGHT}

@pytest.mark.sdc_budget(100)
def test_two(model):
    assert generate(model, max_new_tokens=4) == {RIGHT}[:8]
"""

# Chunks of two gates, in turns.
IN_TURNS = """
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (item.name.endswith("gate]"), item.name.partition("[")[2]))
"""


def test_gates_that_take_turns_decode_their_golden_runs_once(project: Project) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + IN_TURNS)
    result = run(project, TWO_GATES, *BATCHES, "--ft2-chunk=10", "-p", "no:randomly")
    assert [each["verdict"] for each in project.json()["campaigns"]] == ["pass", "pass"]
    result.stdout.fnmatch_lines(["  40 trials were computed in batches*"] * 2)
    noted = (project.path / "decoded.txt").read_text().splitlines()
    assert noted == ["decoded"] * 2 + ["torn down"]


# The test reads what the last forward left in the model.
LEFT_BEHIND = """
import pytest
import torch
from conftest import generate

KNOWN = []

@pytest.fixture(scope="session")
def model(model):
    head = model.lm_head

    class Remembering(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        @property
        def weight(self):
            return self.head.weight

        def forward(self, hidden):
            logits = self.head(hidden)
            self.last = logits.detach()[0, -1]
            return logits

    model.lm_head = Remembering()
    return model.eval()

@pytest.mark.sdc_budget(1)
def test_answer(model):
    generate(model)
    KNOWN.append(model.lm_head.last.argmax().item())
    assert KNOWN[-1] == KNOWN[0]
"""


def test_what_a_forward_leaves_behind_is_that_of_the_trials_own_forward(project: Project) -> None:
    found = []
    for batch in ("1", "64"):
        project.pytester.makepyfile(test_left=LEFT_BEHIND)
        faults = ("--ft2-faults=60", "--ft2-protection=none", "--ft2-json=left.json")
        project.run("-o", f"ft2_batch={batch}", *faults)
        (campaign,) = json.loads((project.path / "left.json").read_text())["campaigns"]
        assert campaign["verdict"] == "fail"
        found.append([trial["outcome"] for trial in campaign["trials"]])
    assert found[0] == found[1]
    assert "sdc" in found[0]
