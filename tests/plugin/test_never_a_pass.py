"""A gate that lies is the worst bug: what must never pass, and the sentence that says why."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Project
from tests.plugin.seen import FAULTS, Gated, run_gated

FAILING = "The golden run test_it.py::test_answer fails without any fault"


def assert_incomplete(run: Gated, sentence: str) -> None:
    assert run.verdict == "incomplete"
    assert sentence in run.reason
    assert run.result.ret == pytest.ExitCode.TESTS_FAILED
    # The terminal wraps nothing: the sentence stands there whole.
    assert sentence in run.result.stdout.str()


def test_zero_trials_in_a_marker(project: Project) -> None:
    project.pytester.makepyfile(
        """
        import pytest

        @pytest.mark.sdc_budget(1, faults=0)
        def test_answer(model):
            pass
        """
    )
    result = project.run("--ft2-faults=20")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        [
            "*test_answer: sdc_budget: faults should be None or a whole number from 1 to 10000000, "
            "not 0."
        ]
    )


def test_zero_trials_on_the_command_line(project: Project) -> None:
    project.pytester.makepyfile(
        """
        import pytest

        @pytest.mark.sdc_budget(1)
        def test_answer(model):
            pass
        """
    )
    result = project.run("--ft2-faults=0", "--ft2-json=out.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ft2: 1 gated test ran once, without faults*"])
    assert not (project.path / "out.json").exists()


def test_a_fault_that_did_not_land(project: Project) -> None:
    run = run_gated(
        project,
        """
RUNS = []

@GATE
def test_answer(model):
    RUNS.append(1)
    tokens = 6 if len(RUNS) <= 3 else 2
    assert generate(model, max_new_tokens=tokens) == RIGHT[: 4 + tokens]
""",
    )
    assert_incomplete(
        run,
        "the fault did not land, its element was never computed: with the protection the test "
        "calls the model differently, or the model does not see what is attached to it.",
    )
    assert None in run.outcomes
    assert all(trial["outcome"] is None for trial in run.campaign["trials"] if not trial["landed"])


def test_a_golden_run_that_fails(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model):
    assert generate(model) == "another answer"
""",
    )
    assert_incomplete(run, f"{FAILING} (assert ")
    assert 'make it pass, or use golden="exclude"' in run.reason
    assert run.outcomes == []


def test_a_golden_run_whose_fixture_fails(project: Project) -> None:
    run = run_gated(
        project,
        """
@pytest.fixture
def service():
    raise ConnectionError("the service is away")

@pytest.mark.sdc_budget(100, golden="exclude")
@pytest.mark.parametrize("number", [0, 1, 2])
def test_answer(model, number, service):
    assert generate(model) == RIGHT
""",
    )
    assert_incomplete(
        run,
        "The fixtures of the golden run test_it.py::test_answer[0] fail without any fault "
        "(ConnectionError: the service is away)",
    )


def test_a_golden_run_that_does_not_repeat(project: Project) -> None:
    run = run_gated(
        project,
        """
RUNS = []

@GATE
def test_answer(model):
    RUNS.append(1)
    answer = generate(model, max_new_tokens=1 + len(RUNS))
    assert answer[:5] == RIGHT[:5]
""",
    )
    assert_incomplete(
        run,
        "The golden run test_it.py::test_answer does not repeat: two fault-free runs from the same "
        "random state called the model differently or got different answers.",
    )
    assert run.outcomes == []


def test_a_golden_run_that_passes_once(project: Project) -> None:
    run = run_gated(
        project,
        """
RUNS = []

@GATE
def test_answer(model):
    RUNS.append(1)
    assert generate(model) == RIGHT
    assert len(RUNS) == 1
""",
    )
    assert_incomplete(run, f"{FAILING} (assert ")


def test_an_assertion_that_ignores_the_model(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model):
    assert generate(model)
""",
    )
    assert_incomplete(
        run,
        "This assertion holds when the model talks noise, so it cannot see a wrong answer: assert "
        "on what the model says.",
    )
    assert run.outcomes == ["masked"] * FAULTS


def test_a_parameter_set_whose_assertion_ignores_the_model(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
@pytest.mark.parametrize("checked", [True, False, True])
def test_answer(model, checked):
    note(checked)
    answer = generate(model)
    assert answer == RIGHT or not checked
""",
    )
    assert_incomplete(
        run,
        "This assertion holds for 1 of 3 parameter sets (False) when the model talks noise, so it "
        "cannot see a wrong answer: assert on what the model says.",
    )
    # A set that asserts costs one run with noise, beside its item, its golden run and its trials;
    # behind them all sets are golden again, and the one of the last trial that failed talks noise.
    trials = [trial["params"] for trial in run.campaign["trials"]]
    assert run.notes.count(True) == 2 * 3 + trials.count("True0") + trials.count("True1") + 3


def test_the_assertions_of_all_parameter_sets_are_tried_wherever_their_trials_run(
    project: Project,
) -> None:
    run = run_gated(
        project,
        """
@GATE
@pytest.mark.parametrize("number", range(4))
def test_answer(model, number):
    answer = generate(model)
    assert answer == RIGHT or number == 3
""",
        "--ft2-chunk=2",
        "-n2",
        apart=True,
    )
    assert_incomplete(run, "This assertion holds for 1 of 4 parameter sets (3) when the model")


def test_a_test_that_never_asserts_on_noise(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model):
    if generate(model) != RIGHT:
        pytest.skip("wrong answers are none of our business")
""",
    )
    assert_incomplete(
        run,
        "Whether the assertion of test_it.py::test_answer can fail was not found out: with noise "
        "for logits the test does not get as far (",
    )


def test_a_body_that_never_calls_the_model(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer(model):
    assert model.config.vocab_size == 61
""",
    )
    assert_incomplete(
        run,
        "test_it.py::test_answer never calls the model that the fixture 'model' returned, so no "
        "fault can change its answer: call that object, not a copy of it.",
    )


def test_a_test_that_does_not_use_the_model_fixture(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
def test_answer():
    assert 1 + 1 == 2
""",
    )
    assert_incomplete(
        run,
        "test_it.py::test_answer does not use the fixture 'model', so no fault can reach its "
        "model: use it in the test, or name the fixture that returns the model with the ini option "
        "ft2_model_fixture.",
    )


def test_a_body_that_calls_a_copy_of_the_model(project: Project) -> None:
    run = run_gated(
        project,
        """
import copy

@GATE
def test_answer(model):
    assert generate(copy.deepcopy(model)) == RIGHT
""",
    )
    assert_incomplete(run, "call that object, not a copy of it.")


CAPTURED = """
import torch
from transformers import AutoModelForCausalLM

@pytest.fixture(scope="session")
def model():
    model = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    ids = torch.tensor([RIGHT[:7]])
    graph = torch.export.export(
        model, (), {"input_ids": ids, "use_cache": False, "return_dict": False}, strict=False
    ).module()

    class Captured(type(model)):
        def forward(self, input_ids, **options):
            if input_ids.shape != ids.shape:
                return super().forward(input_ids, **options)
            return graph(input_ids=input_ids, use_cache=False, return_dict=False)

    model.__class__ = Captured
    return model

@GATE
def test_answer(model):
    assert model(torch.tensor([RIGHT[:7]]))[0][0, -1].argmax() == RIGHT[7]
"""


def test_a_model_captured_before_so_that_no_layer_is_seen(project: Project) -> None:
    run = run_gated(project, CAPTURED.replace("FOLDER", repr(str(project.model_folder))))
    assert_incomplete(
        run,
        "test_it.py::test_answer calls the model, but no projection of it was seen to run: it was "
        "compiled or captured before ft2 was attached; compile it in the fixture, or not at all.",
    )


def test_a_model_under_torch_compile_is_seen(project: Project) -> None:
    run = run_gated(
        project,
        f"""
import torch
from transformers import AutoModelForCausalLM

@pytest.fixture(scope="session")
def model():
    model = AutoModelForCausalLM.from_pretrained({str(project.model_folder)!r}).eval()
    model = torch.compile(model, backend="eager")
    model(torch.tensor([[1, 5]]))
    return model

@GATE
def test_answer(model):
    assert model(torch.tensor([[1, 5, 9, 11]])).logits[0, -1].argmax() == RIGHT[4]
""",
        faults=8,
        apart=True,
    )
    assert run.verdict == "pass"
    assert all(trial["landed"] for trial in run.campaign["trials"])


LOOP = """
import torch

def answer(model):
    ids = torch.tensor([RIGHT[:4]])
    for _ in range(3):
        logits = model(ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids[0].tolist()
"""


def test_a_protection_that_never_left_the_first_token(project: Project) -> None:
    run = run_gated(
        project,
        LOOP
        + """
@GATE
def test_answer(model):
    assert answer(model) == RIGHT[:7]
""",
        "--ft2-protection=ft2",
    )
    assert_incomplete(
        run,
        "Protection ft2 never left the first token, so it protected nothing there: pass the cache "
        "from forward to forward, or write the decode loop inside `with ft2.request(model):` (what "
        "generates one token only has nothing to protect: gate it unprotected).",
    )


def test_a_parameter_set_that_generates_one_token_only(project: Project) -> None:
    run = run_gated(
        project,
        """
@GATE
@pytest.mark.parametrize("tokens", [6, 1])
def test_answer(model, tokens):
    assert generate(model, max_new_tokens=tokens) == RIGHT[: 4 + tokens]
""",
        "--ft2-protection=ft2",
    )
    assert_incomplete(
        run,
        "Protection ft2 never left the first token for 1 of 2 parameter sets (1), so it protected "
        "nothing there: ",
    )


def test_a_loop_inside_a_request_leaves_the_first_token(project: Project) -> None:
    run = run_gated(
        project,
        LOOP
        + """
import ft2

@GATE
def test_answer(model):
    with ft2.request(model):
        assert answer(model) == RIGHT[:7]
""",
        "--ft2-protection=ft2",
    )
    assert run.verdict == "pass"


SILENT_START = """
import torch
from transformers import AutoModelForCausalLM

@pytest.fixture(scope="session")
def model():
    model = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    # The first token is all zeros, so that every bound learned on it is zero.
    embeddings = model.get_input_embeddings().weight.data
    embeddings[1], embeddings[0] = 0, embeddings[5]
    return model

@GATE
def test_answer(model):
    answer = generate(model, torch.tensor([[1]]))
    note(answer)
    assert answer == EXPECTED
"""


def test_a_protection_that_alone_makes_the_golden_run_fail(project: Project) -> None:
    body = SILENT_START.replace("FOLDER", repr(str(project.model_folder)))
    answer = run_gated(project, body.replace("EXPECTED", "None"), faults=1).notes[0]
    (project.path / "notes.txt").unlink()
    run = run_gated(project, body.replace("EXPECTED", repr(answer)), "--ft2-protection=ft2")
    assert_incomplete(
        run,
        "Protection ft2 alone, without a fault, makes test_it.py::test_answer fail (assert ",
    )
    assert "the model cannot be used with it" in run.reason
    assert run.campaign["golden"][0]["changed_by_protection"]
    assert run.campaign["golden"][0]["corrected_values"] > 0


def test_detected_errors_above_their_budget(project: Project) -> None:
    run = run_gated(
        project,
        """
from transformers import LogitsProcessor, LogitsProcessorList

class Guard(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if input_ids[0].tolist() != RIGHT[: input_ids.shape[1]]:
            raise ArithmeticError("this cannot be")
        return scores

@pytest.mark.sdc_budget(100, due_budget=1)
def test_answer(model):
    assert generate(model, logits_processor=LogitsProcessorList([Guard()])) == RIGHT
""",
    )
    due = run.outcomes.count("due")
    sentence = (
        f"{due} of {FAULTS} trials ended in a detected error, {5 * due} %, over the due_budget of "
        "1 %: find out what raises, or raise due_budget."
    )
    assert due > 0
    assert run.verdict == "fail"
    assert sentence in run.reason
    assert sentence in run.result.stdout.str()
    assert run.result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_device_that_a_trial_made_unusable(project: Project) -> None:
    run = run_gated(
        project,
        """
import torch
from transformers import LogitsProcessor, LogitsProcessorList

class Device(LogitsProcessor):
    def __call__(self, input_ids, scores):
        note("used")
        if input_ids[0].tolist() != RIGHT[: input_ids.shape[1]]:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered\\nmore")
        return scores

@GATE
def test_answer(model):
    assert generate(model, logits_processor=LogitsProcessorList([Device()])) == RIGHT
""",
        "--ft2-chunk=15",
    )
    assert_incomplete(run, "The device cannot be trusted since trial ")
    assert "(CUDA error: device-side assert triggered), so the trials behind it" in run.reason
    assert "run them in other processes, with -n and a smaller --ft2-chunk" in run.reason
    assert run.outcomes.count("due") == 1
    assert run.outcomes[-1] == "due"
    assert len(run.outcomes) < 15
    # Both chunks say so, and the one behind ran nothing.
    assert run.result.parseoutcomes()["failed"] == 3


def test_a_device_that_is_lost_before_it_tells_what_the_fault_did(project: Project) -> None:
    run = run_gated(
        project,
        """
import torch
from ft2.faults import Injection

LOST = torch.AcceleratorError("CUDA error: device-side assert triggered")
DEVICE = []

def landed(injection, really=Injection.landed.fget):
    if DEVICE:
        raise LOST
    return really(injection)

Injection.landed = property(landed)

@GATE
def test_answer(model):
    answer = generate(model)
    if answer != RIGHT:
        DEVICE.append("lost")
        try:
            raise LOST
        except RuntimeError as error:
            raise ValueError("the answer could not be read") from error
""",
        apart=True,
    )
    assert_incomplete(run, "The device cannot be trusted since trial ")
    assert "the device was lost, and with it the proof that the fault landed (CUDA" in run.reason
    assert run.outcomes[-1] is None
    assert run.outcomes.count(None) == 1
    assert len(run.outcomes) < FAULTS
    run.result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_memory_that_runs_out_while_noise_is_tried(project: Project) -> None:
    run = run_gated(
        project,
        """
RUNS = []

@GATE
def test_answer(model):
    RUNS.append(1)
    answer = generate(model)
    if len(RUNS) == 3:
        raise MemoryError("no more")
    assert answer
""",
    )
    assert_incomplete(
        run,
        "Whether the assertion of test_it.py::test_answer can fail was not found out: with noise "
        "for logits the test does not get as far (",
    )


BREAKING = {
    "test_answer fails (": """
        model.lm_head.weight.data.zero_()
""",
    "gets other answers from the model than before": """
        BUDGET[0] = 5
""",
}


@pytest.mark.parametrize("sentence", list(BREAKING))
def test_a_chunk_that_leaves_the_model_wrong(project: Project, sentence: str) -> None:
    run = run_gated(
        project,
        f"""
BUDGET = [6]
RUNS = []

@GATE
def test_answer(model):
    RUNS.append(1)
    answer = generate(model, max_new_tokens=BUDGET[0])
    if len(RUNS) == 10:
{BREAKING[sentence]}
    assert answer == RIGHT[: len(answer)]
""",
    )
    assert_incomplete(run, "After the trials the fault-free test test_it.py::test_answer ")
    assert sentence in run.reason
    assert (
        "something a run did stays behind; use function-scoped fixtures for what the test "
        "changes." in run.reason
    )


def test_an_assertion_that_a_failing_run_silences(project: Project) -> None:
    run = run_gated(
        project,
        """
SAID = []

@GATE
def test_answer(model):
    if generate(model) != RIGHT and not SAID:
        SAID.append("wrong")
        pytest.fail("wrong")
""",
    )
    assert_incomplete(
        run,
        "After the trials the assertion of test_it.py::test_answer holds when the model talks "
        "noise, though it failed before: something a run did stays behind; use function-scoped "
        "fixtures for what the test changes.",
    )
    assert run.outcomes == ["masked"] * FAULTS


def test_what_stays_behind_for_some_parameter_sets_is_looked_for(project: Project) -> None:
    run = run_gated(
        project,
        """
SAID = [set(), set(), set()]

@GATE
@pytest.mark.parametrize("number", range(4))
def test_answer(model, number):
    note(number)
    answer = generate(model)
    if number == 3:
        assert answer[:6] == RIGHT[:6]
    else:
        SAID[number].add(tuple(answer))
        assert SAID[number] == {tuple(RIGHT)}
""",
        "--ft2-chunk=8",
        faults=24,
    )
    assert_incomplete(run, "After the trials the fault-free test test_it.py::test_answer[")
    # The items, golden runs and noise of four sets; in each chunk 8 trials and a golden run.
    assert len(run.notes) == 4 * 3 + 3 * (8 + 1) + 1 + 3
    # At the end noise for the set of the chunk's last failing trial, and golden runs of the others.
    assert len(set(run.notes[-4:])) == 4
    assert run.notes[-4] == run.notes[-5]


UNKNOWN = """
import torch

class Head(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, ids):
        return self.linear(ids)

@pytest.fixture(scope="SCOPE")
def model():
    return Head()

@GATE
def test_answer(model):
    assert model(torch.zeros(1, 4)).argmax() >= 0
"""


@pytest.mark.parametrize("scope", ["session", "function"])
def test_a_model_that_ft2_does_not_know(project: Project, scope: str) -> None:
    run = run_gated(project, UNKNOWN.replace("SCOPE", scope))
    assert_incomplete(
        run,
        "No fault can reach the model of test_it.py::test_answer: ft2 could not run this Head on "
        "token ids to see its layers: ",
    )
    run.result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_a_model_fixture_that_returns_no_module(project: Project) -> None:
    run = run_gated(
        project,
        """
from types import SimpleNamespace

@pytest.fixture(scope="session", name="model")
def wrapper(request):
    import torch
    return SimpleNamespace(model=torch.nn.Linear(2, 2))

@GATE
def test_answer(model):
    assert model
""",
    )
    assert_incomplete(
        run,
        "No fault can reach the model of test_it.py::test_answer: ft2 needs the model itself, a "
        "torch.nn.Module, and was given types.SimpleNamespace; pass its .model.",
    )


def test_an_encoding_that_does_not_fit_the_models_dtype(project: Project) -> None:
    run = run_gated(
        project,
        f"""
import torch
from transformers import AutoModelForCausalLM

@pytest.fixture(scope="session")
def model():
    return AutoModelForCausalLM.from_pretrained(
        {str(project.model_folder)!r}, dtype=torch.bfloat16
    ).eval()

@GATE
def test_answer(model):
    assert generate(model)[:5] == RIGHT[:5]
""",
        "--ft2-encoding=fp32",
    )
    assert_incomplete(run, "::test_answer: encoding fp32 cannot be tested on model.layers.")
    assert "which computes in bf16: bf16 does not hold all numbers of fp32" in run.reason
    assert run.outcomes == []


def test_workers_whose_environments_differ(project: Project) -> None:
    run = run_gated(
        project,
        """
import os
import torch

@pytest.fixture(scope="session", autouse=True)
def threads(model):
    torch.set_num_threads(1 + int(os.environ["PYTEST_XDIST_WORKER"][2:]))

@GATE
def test_answer(model):
    assert generate(model) == RIGHT
""",
        "-n2",
        "--ft2-chunk=4",
        apart=True,
    )
    assert_incomplete(
        run,
        "Not all golden runs of test_it.py::test_answer ran in the same environment (threads: 1, "
        "2), and outcomes can depend on it: run all trials alike.",
    )


def test_a_model_without_a_layer_whose_output_are_the_logits(project: Project) -> None:
    run = run_gated(
        project,
        f"""
import torch
from transformers import AutoModel

@pytest.fixture(scope="session")
def model():
    return AutoModel.from_pretrained({str(project.model_folder)!r}).eval()

@GATE
def test_answer(model):
    hidden = model(torch.tensor([RIGHT])).last_hidden_state
    assert torch.isfinite(hidden).all()
""",
    )
    assert_incomplete(
        run,
        "Whether the assertion of test_it.py::test_answer can fail was not found out: with noise "
        "for logits the test does not get as far (Failed: ft2: LlamaModel has no output embeddings",
    )
