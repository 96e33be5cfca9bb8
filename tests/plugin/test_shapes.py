"""Shapes that tests have: classes, parameters, scopes of the model, pipelines, loops by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plugin.conftest import RIGHT, Project
from tests.plugin.gated import RIGHT_OR_NOT, outcomes, run_with, verdicts

FAULTS = ("--ft2-faults=20", "--ft2-json=out.json")


def campaigns(project: Project) -> dict[str, Any]:
    """Return what ``out.json`` says of each campaign, by its name."""
    return {each["nodeid"]: each for each in project.json()["campaigns"]}


def test_a_class_gets_a_new_self_in_each_trial(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=f"""
import pytest
from conftest import generate

class TestAnswers:
    calls = 0

    def setup_method(self):
        self.seen = []

    @pytest.mark.sdc_budget(100)
    def test_answer(self, model):
        assert not self.seen
        assert not hasattr(self, "asked")
        self.asked = True
        type(self).calls += 1
        self.seen.append(generate(model))
        assert self.seen == [{RIGHT}]

    def test_after(self):
        assert type(self).calls > 20
"""
    )
    result = project.run(*FAULTS)
    result.assert_outcomes(passed=4)
    campaign = campaigns(project)["test_it.py::TestAnswers::test_answer"]
    assert campaign["verdict"] == "pass"
    assert 0 < campaign["sdc"] < 20


TWO_MODELS = """

@pytest.fixture(scope="session", params=[False, True], ids=["plain", "other"])
def model(request, _plain):
    import copy
    if not request.param:
        return _plain
    other = copy.deepcopy(_plain)
    other.lm_head.weight.data.mul_(-1)
    return other
"""


@pytest.fixture
def two_models(project: Project) -> Project:
    """A project whose model fixture has two values, which answer differently."""
    conftest = project.path / "conftest.py"
    text = conftest.read_text().replace("def model():", "def _plain():")
    conftest.write_text(text + TWO_MODELS)
    return project


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_two_models_are_two_gates_and_never_averaged(two_models: Project, workers: str) -> None:
    two_models.pytester.makepyfile(
        test_it=f"""
import pytest
from conftest import generate

@pytest.mark.sdc_budget(20)
@pytest.mark.parametrize("tokens", [5, 6])
def test_answer(model, tokens, request):
    answer = generate(model, max_new_tokens=tokens)
    if "plain" in request.node.name:
        assert answer == {RIGHT}[:4 + tokens]
    else:
        assert answer[4] == 21
"""
    )
    result = run_with(two_models, workers, *FAULTS)
    found = campaigns(two_models)
    assert list(found) == ["test_it.py::test_answer[plain]", "test_it.py::test_answer[other]"]
    plain, other = found.values()
    assert plain["planned"] == other["planned"] == 20
    assert plain["verdict"] == "fail"
    assert other["verdict"] == "pass"
    assert plain["sdc"] > other["sdc"]
    assert {golden["params"] for golden in plain["golden"]} == {"plain-5", "plain-6"}
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=7, failed=1)


def test_models_chosen_by_indirect_parameters_are_gates_of_their_own(project: Project) -> None:
    conftest = project.path / "conftest.py"
    text = conftest.read_text()
    text = text.replace('@pytest.fixture(scope="session")', "@pytest.fixture")
    seeded = "def model(request):\n    import torch\n    torch.manual_seed(request.param)"
    text = text.replace("def model():", seeded)
    conftest.write_text(text)
    project.pytester.makepyfile(
        test_it=f"""
import pytest
from conftest import generate

@pytest.mark.sdc_budget(100)
@pytest.mark.parametrize("model", [1, 2], indirect=True)
def test_answer(model):
    assert generate(model) == {RIGHT}
"""
    )
    result = project.run(*FAULTS)
    result.assert_outcomes(passed=6)
    assert verdicts(project) == {
        "test_it.py::test_answer[1]": "pass",
        "test_it.py::test_answer[2]": "pass",
    }


CHOSEN_INSIDE = """
import pytest
from conftest import generate

answers = {}

@pytest.mark.sdc_budget(100)
@pytest.mark.parametrize("which", ["plain", "other"])
def test_answer(model, which):
    answer = generate(model)
    assert answer == answers.setdefault(which, answer)
"""


def test_models_that_the_fixture_chooses_behind_pytests_back_are_never_averaged(
    two_models: Project,
) -> None:
    conftest = two_models.path / "conftest.py"
    text = conftest.read_text()
    text = text.replace(
        '(scope="session", params=[False, True], ids=["plain", "other"])', ""
    ).replace("request.param", "request.node.callspec.params['which'] == 'other'")
    conftest.write_text(text)
    two_models.pytester.makepyfile(test_it=CHOSEN_INSIDE)
    result = two_models.run(*FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(two_models) == {"test_it.py::test_answer": "incomplete"}
    result.stdout.fnmatch_lines(
        [
            "incomplete: The parameter sets of test_it.py::test_answer ran on 2 different models "
            "(sets other, plain, say), and two models are never averaged: *"
        ]
    )


MANY_SETS = """
import pytest
import torch
from conftest import generate

answers = {}

@pytest.mark.sdc_budget(100)
@pytest.mark.parametrize("n", range(200))
def test_answer(model, n):
    prompt = torch.tensor([[1, 3 + n % 50, 5 + n // 50]])
    answer = generate(model, prompt, max_new_tokens=2)
    assert answer == answers.setdefault(n, answer)
"""


def test_two_hundred_parameter_sets_share_five_hundred_faults(project: Project) -> None:
    project.pytester.makepyfile(test_it=MANY_SETS)
    result = project.run("--ft2-faults=500", "--ft2-protection=none", "--ft2-json=out.json")
    result.assert_outcomes(passed=211)
    (campaign,) = project.json()["campaigns"]
    assert campaign["verdict"] == "pass"
    assert len(campaign["golden"]) == 200
    assert [trial["params"] for trial in campaign["trials"]] == [str(i % 200) for i in range(500)]


def test_parameter_sets_can_be_gates_of_their_own(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=f"""
import pytest
from conftest import generate

@pytest.mark.sdc_budget(10, per="params")
@pytest.mark.parametrize("tokens", [1, 6])
def test_answer(model, tokens):
    assert generate(model, max_new_tokens=tokens) == {RIGHT}[:4 + tokens]
"""
    )
    project.run(*FAULTS)
    found = campaigns(project)
    assert list(found) == ["test_it.py::test_answer[1]", "test_it.py::test_answer[6]"]
    assert [campaign["planned"] for campaign in found.values()] == [20, 20]
    assert {golden["steps"] for golden in found["test_it.py::test_answer[1]"]["golden"]} == {1}


EXCLUDE = """
import pytest
from conftest import generate

@pytest.mark.sdc_budget(100, golden=GOLDEN)
@pytest.mark.parametrize("last", LAST)
def test_answer(model, last):
    assert generate(model)[-1] == last
"""


@pytest.mark.parametrize("chunk", [3, 50])
def test_a_set_that_the_model_answers_wrongly_can_be_left_out(project: Project, chunk: int) -> None:
    source = EXCLUDE.replace("GOLDEN", "'exclude'")
    last = f"[{RIGHT[-1]}, 0, {RIGHT[-1]}], ids=['a', 'b', 'c']"
    project.pytester.makepyfile(test_it=source.replace("LAST", last))
    result = project.run(f"--ft2-chunk={chunk}", *FAULTS)
    (campaign,) = project.json()["campaigns"]
    assert campaign["verdict"] == "pass"
    assert campaign["excluded"] == ["b"]
    assert campaign["masked"] + campaign["sdc"] + campaign["due"] == 20
    assert [trial["params"] for trial in campaign["trials"]] == ["a", "c"] * 10
    result.stdout.fnmatch_lines(["  Left out, answered wrongly without a fault: b."])
    # The user's own item still fails: it is a plain test.
    assert result.parseoutcomes()["failed"] == 1


def test_a_gate_that_would_leave_out_more_than_half_is_incomplete(project: Project) -> None:
    source = EXCLUDE.replace("GOLDEN", "'exclude'").replace("LAST", f"[{RIGHT[-1]}, 0, 3]")
    project.pytester.makepyfile(test_it=source)
    result = project.run(*FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (campaign,) = project.json()["campaigns"]
    assert campaign["verdict"] == "incomplete"
    result.stdout.fnmatch_lines(
        [
            "incomplete: Only 1 of 3 parameter sets are answered rightly without a fault; at least "
            "half must be.*"
        ]
    )


def test_a_set_that_the_model_answers_wrongly_makes_the_gate_incomplete_otherwise(
    project: Project,
) -> None:
    source = EXCLUDE.replace("GOLDEN", "'require'").replace("LAST", f"[{RIGHT[-1]}, 0]")
    project.pytester.makepyfile(test_it=source)
    result = project.run(*FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(project) == {"test_it.py::test_answer": "incomplete"}
    result.stdout.fnmatch_lines(
        ["incomplete: The golden run test_it.py::test_answer?0? fails without any fault *"]
    )


def test_the_scope_of_the_model_fixture_does_not_matter(project: Project) -> None:
    project.pytester.makepyfile(test_it=RIGHT_OR_NOT.replace("BUDGET", "100"))
    conftest = project.path / "conftest.py"
    text = conftest.read_text()
    found = []
    for scope in ("session", "module", "function"):
        conftest.write_text(text.replace('scope="session"', f'scope="{scope}"'))
        result = project.run(*FAULTS)
        result.assert_outcomes(passed=3)
        found.append(outcomes(project))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 20


ASKED_IN_THE_BODY = """
import pytest
from conftest import generate

@pytest.fixture(scope="session")
def right(model):
    return generate(model)

@pytest.fixture(scope="module")
def right_too(request):
    return generate(request.getfixturevalue("model"))

@pytest.mark.sdc_budget(100)
def test_answer(request):
    right = request.getfixturevalue("right_too")
    answer = generate(request.getfixturevalue("model"))
    assert [answer, answer] == [right, request.getfixturevalue("right")]
"""


def test_a_body_that_asks_for_wide_fixtures_computes_what_it_does_when_they_exist(
    project: Project,
) -> None:
    project.pytester.makepyfile(test_it=ASKED_IN_THE_BODY)
    found = []
    for selected in ("faults or gate", "answer"):
        # The first to run is a chunk, and then the user's own test.
        assert project.run(*FAULTS, "-k", selected).ret == pytest.ExitCode.OK
        (campaign,) = project.json()["campaigns"]
        assert campaign["golden"][0]["calls"] == 1
        assert campaign["sdc"] > 0
        found.append(outcomes(project))
    assert found[0] == found[1]


OVERRIDDEN = f"""
import pytest
from conftest import generate

@pytest.fixture
def other():
    return 1

@pytest.mark.sdc_budget(100)
def test_held(model, other):
    assert model

class TestInside:
    @pytest.fixture
    def model(self, model):
        return model.model

    @pytest.mark.sdc_budget(100)
    def test_answer(self, model):
        assert generate(model) == {RIGHT}
"""


def test_the_model_is_what_the_last_fixture_of_its_name_returns(project: Project) -> None:
    conftest = project.path / "conftest.py"
    text = conftest.read_text().replace("    return Auto", "    model = Auto")
    held = "\n    from types import SimpleNamespace\n    return SimpleNamespace(model=model)\n"
    conftest.write_text(text + held)
    project.pytester.makepyfile(test_it=OVERRIDDEN)
    result = project.run(*FAULTS)
    assert verdicts(project) == {
        "test_it.py::test_held": "incomplete",
        "test_it.py::TestInside::test_answer": "pass",
    }
    sentence = "needs the model itself, a torch.nn.Module, and was given types.SimpleNamespace"
    result.stdout.fnmatch_lines([f"ft2: ft2 {sentence}*", "ERROR *::test_held - Failed: ft2: *"])
    result.stdout.no_fnmatch_line("*AssertionError*")
    result.stdout.no_fnmatch_line("*During handling of the above exception*")


WRAPPED = f"""
import pytest
import torch
from conftest import generate

class Wrapper(torch.nn.Module):
    def __init__(self, llm):
        super().__init__()
        self.llm = llm

    def forward(self, *args, **kwargs):
        return self.llm(*args, **kwargs)

    def generate(self, *args, **kwargs):
        return self.llm.generate(*args, **kwargs)

@pytest.fixture(scope="session")
def model(model):
    return Wrapper(model)

@pytest.mark.sdc_budget(100)
def test_answer(model):
    assert generate(model) == {RIGHT}
"""


def test_a_module_around_the_model_is_gated_like_the_model(project: Project) -> None:
    found = []
    for source in (RIGHT_OR_NOT.replace("BUDGET", "100"), WRAPPED):
        project.pytester.makepyfile(test_it=source)
        assert project.run(*FAULTS).ret == pytest.ExitCode.OK
        found.append(outcomes(project))
    assert found[0] == found[1]


PIPELINE = """
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, pipeline

@pytest.fixture(scope="session")
def tokenizer():
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 61)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")

@pytest.fixture(scope="session")
def ask(model, tokenizer):
    return pipeline("text-generation", model=model, tokenizer=tokenizer)

@pytest.mark.sdc_budget(100)
def test_answer(ask):
    said = ask("w5 w9 w11", max_new_tokens=4, do_sample=False, return_full_text=False)
    assert said[0]["generated_text"].split() == EXPECTED
"""


def test_a_pipeline_around_the_model_is_gated_like_the_model(project: Project) -> None:
    source = PIPELINE.replace("== EXPECTED", "== ['w0']")
    project.pytester.makepyfile(test_it=source)
    first = project.run("-p", "no:ft2", "-o", "addopts=", "-W", "ignore")
    said = next(line for line in first.outlines if "AssertionError: assert [" in line)
    expected = said.partition("assert ")[2].partition(" == ")[0]
    project.pytester.makepyfile(test_it=PIPELINE.replace("EXPECTED", expected))
    result = project.run(*FAULTS)
    result.assert_outcomes(passed=3)
    (campaign,) = project.json()["campaigns"]
    assert campaign["verdict"] == "pass"
    assert campaign["sdc"] > 0
    assert campaign["golden"][0]["steps"] == 4


LOOP = f"""
from contextlib import nullcontext
import pytest
import torch
import ft2
from conftest import PROMPT

class Chat:
    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def say(self, cached, as_one_request):
        ids = PROMPT
        cache = None
        request = ft2.request(self.model) if as_one_request else nullcontext()
        with request:
            for _ in range(6):
                if cached:
                    new = ids if cache is None else ids[:, -1:]
                    out = self.model(new, past_key_values=cache, use_cache=True)
                    cache = out.past_key_values
                else:
                    out = self.model(ids, use_cache=False)
                ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], 1)
        return ids[0].tolist()

@pytest.fixture
def chat(model):
    return Chat(model)

@pytest.mark.sdc_budget(100)
def test_answer(chat):
    assert chat.say(CACHED, AS_ONE_REQUEST) == {RIGHT}
"""


@pytest.mark.parametrize(("cached", "as_one_request"), [(True, False), (True, True), (False, True)])
def test_a_decode_loop_by_hand_is_gated_like_generate(
    project: Project, cached: bool, as_one_request: bool
) -> None:
    source = LOOP.replace("AS_ONE_REQUEST", str(as_one_request)).replace("CACHED", str(cached))
    project.pytester.makepyfile(test_it=source)
    result = project.run(*FAULTS)
    result.assert_outcomes(passed=3)
    (campaign,) = project.json()["campaigns"]
    assert campaign["verdict"] == "pass"
    golden = campaign["golden"][0]
    assert (golden["calls"], golden["steps"]) == (1, 6)
    assert {trial["phase"] for trial in campaign["trials"]} == {"first", "later"}


def test_a_loop_without_a_cache_is_incomplete_and_names_what_tells_requests_apart(
    project: Project,
) -> None:
    source = LOOP.replace("AS_ONE_REQUEST", "False").replace("CACHED", "False")
    project.pytester.makepyfile(test_it=source)
    result = project.run(*FAULTS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(project) == {"test_it.py::test_answer": "incomplete"}
    result.stdout.fnmatch_lines(
        [
            "incomplete: Protection ft2 never left the first token, so it protected nothing there: "
            "pass the cache from forward to forward, or write the decode loop inside `with "
            "ft2.request(model):` *"
        ]
    )
    unprotected = project.run("--ft2-protection=none", *FAULTS)
    assert unprotected.ret == pytest.ExitCode.OK
