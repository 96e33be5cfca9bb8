"""The plugin's fixtures: a default model, protected and unprotected models, faults by hand."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

from tests.plugin.conftest import RIGHT, Project
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer as transformers saves them; word n is token n."""
    folder = tmp_path_factory.mktemp("model and tokenizer")
    tiny_model("llama").save_pretrained(folder)
    words = {f"w{number}": number for number in range(61)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def plain_project(project: Project) -> Project:
    """A project that leaves the model to ``--ft2-model``."""
    project.pytester.makeini("[pytest]\nft2_fault_model = exp\n")
    return project


ANSWER = f"""
import pytest
import torch

torch.set_num_threads(1)

@pytest.mark.sdc_budget(100)
def test_answer(ft2_model, ft2_tokenizer):
    ids = ft2_tokenizer("w1 w5 w9 w11", return_tensors="pt", return_token_type_ids=False)
    said = ft2_model.generate(**ids, max_new_tokens=6, do_sample=False)[0]
    assert ft2_tokenizer.decode(said) == "{" ".join(f"w{token}" for token in RIGHT)}"
"""


def test_the_default_model_and_tokenizer_are_those_of_the_option(
    plain_project: Project, folder: Path
) -> None:
    plain_project.pytester.makepyfile(test_it=ANSWER)
    result = plain_project.run("--ft2-faults=10", f"--ft2-model={folder}", "--ft2-json=out.json")
    result.assert_outcomes(passed=3)
    assert plain_project.json()["campaigns"][0]["verdict"] == "pass"


def test_the_default_model_comes_from_the_ini_file_too(
    plain_project: Project, folder: Path
) -> None:
    plain_project.pytester.makeini(f"[pytest]\nft2_model = {folder}\n")
    plain_project.pytester.makepyfile(test_it=ANSWER)
    plain_project.run().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16")]
)
def test_the_default_model_has_the_dtype_and_device_of_the_options(
    plain_project: Project, folder: Path, dtype: str, expected: str
) -> None:
    plain_project.pytester.makepyfile(
        f"""
        import torch

        def test_model(ft2_model):
            assert ft2_model.dtype == torch.{expected}
            assert ft2_model.device.type == "cpu"
            assert not ft2_model.training
        """
    )
    result = plain_project.run(f"--ft2-model={folder}", f"--ft2-dtype={dtype}", "--ft2-device=cpu")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_environment_in_the_json_file_is_that_of_the_model(
    project: Project, dtype: str
) -> None:
    project.pytester.makepyfile(
        test_it="""
        import pytest
        from conftest import generate

        SAID = []

        @pytest.mark.sdc_budget(100)
        def test_answer(model):
            SAID.append(generate(model))
            assert SAID[-1] == SAID[0]
        """
    )
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace(".eval()", f".eval().to(torch.{dtype})"))
    project.run("--ft2-faults=2", "--ft2-json=out.json")
    environment = project.json()["environment"]
    assert environment["device"] == platform.machine()
    assert environment["dtype"] == dtype
    assert environment["threads"] == 1
    assert environment["torch"] == str(torch.__version__)


def test_without_a_model_a_sentence_says_how_to_name_one(plain_project: Project) -> None:
    plain_project.pytester.makepyfile(test_it=ANSWER)
    result = plain_project.run("--ft2-faults=10")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*there is no model: give --ft2-model=PATH_OR_ID, or name the fixture that returns "
            "yours with the ini option ft2_model_fixture"
        ]
    )


POLICY = """
import pytest
import torch
from conftest import generate

FIRST = "model.layers.0.self_attn.v_proj"

def is_protected(model):
    return type(model.get_submodule(FIRST)) is not torch.nn.Linear
"""


def test_protected_and_unprotected_models_are_the_model_for_one_test(project: Project) -> None:
    project.pytester.makepyfile(
        POLICY
        + """
def test_protected(model, protected_model):
    assert protected_model is model
    assert is_protected(model)

def test_between(model):
    assert not is_protected(model)

def test_unprotected(model, unprotected_model):
    assert unprotected_model is model
    assert not is_protected(model)
"""
    )
    project.run().assert_outcomes(passed=3)
    project.run("--ft2-protection=none").assert_outcomes(passed=2, failed=1)


def test_a_marker_says_how_the_protected_model_is_protected_without_faults_too(
    project: Project,
) -> None:
    project.pytester.makepyfile(
        POLICY
        + """
@pytest.mark.sdc_budget(1, protection="ft2")
def test_protected(protected_model):
    assert is_protected(protected_model)
"""
    )
    project.run("--ft2-protection=none").assert_outcomes(passed=1)


def test_fixtures_follow_the_parameters_of_a_session_model(project: Project) -> None:
    project.pytester.makeconftest(
        (project.path / "conftest.py")
        .read_text()
        .replace(
            '@pytest.fixture(scope="session")\ndef model():',
            '@pytest.fixture(scope="session", params=["a", "b"])\ndef model(request):',
        )
    )
    project.pytester.makepyfile(
        test_it=POLICY
        + f"""
@pytest.mark.sdc_budget(100)
def test_protected(protected_model):
    assert generate(protected_model) == {RIGHT}

def test_by_hand(model, unprotected_model, fault_injector):
    assert unprotected_model is model
    generate(model)
    assert fault_injector.sample(1)
"""
    )
    result = project.run("--ft2-faults=5", "--ft2-json=out.json")
    result.assert_outcomes(passed=8)
    campaigns = project.json()["campaigns"]
    assert [each["nodeid"] for each in campaigns] == [
        "test_it.py::test_protected[a]",
        "test_it.py::test_protected[b]",
    ]
    assert {each["protection"] for each in campaigns} == {"ft2"}


def test_a_gated_test_of_an_unprotected_model_has_unprotected_trials(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=POLICY
        + f"""
@pytest.mark.sdc_budget(100)
def test_answer(unprotected_model):
    assert not is_protected(unprotected_model) or hasattr(unprotected_model, "generate")
    assert generate(unprotected_model) == {RIGHT}
"""
    )
    result = project.run("--ft2-faults=20", "--ft2-protection=ft2", "--ft2-json=out.json")
    result.assert_outcomes(passed=3)
    campaign = project.json()["campaigns"][0]
    assert campaign["protection"] == "none"
    assert {trial["corrected"] for trial in campaign["trials"]} == {0}


BY_HAND = """
import pytest
import platform
from pathlib import Path
from conftest import generate

def test_by_hand(model, fault_injector):
    right = generate(model)
    faults = fault_injector.sample(6) + fault_injector.sample(2)
    assert len(set(map(str, faults))) == 8
    wrong = 0
    for fault in faults:
        with fault_injector.inject(fault) as injection:
            wrong += generate(model) != right
        assert injection.landed
        assert injection.before != injection.after
    assert generate(model) == right
    Path("faults.txt").write_text("\\n".join(map(str, faults)))
"""


def test_faults_placed_by_hand_land_and_repeat_with_the_seed(project: Project) -> None:
    project.pytester.makepyfile(test_it=BY_HAND)
    drawn = []
    for seed in (0, 0, 1):
        project.run(f"--ft2-seed={seed}").assert_outcomes(passed=1)
        drawn.append((project.path / "faults.txt").read_text())
    assert drawn[0] == drawn[1] != drawn[2]
    assert "encoding=fp16" in drawn[0]


def test_faults_can_be_placed_in_a_protected_model(project: Project) -> None:
    project.pytester.makepyfile(
        test_it=BY_HAND.replace("(model, fault", "(protected_model, model, fault")
    )
    project.run().assert_outcomes(passed=1)


def test_drawing_before_the_model_was_called_says_what_to_do(project: Project) -> None:
    project.pytester.makepyfile(
        """
        def test_by_hand(fault_injector):
            fault_injector.sample(1)
        """
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*ValueError: fault_injector.sample() draws from what the model computed: call the "
            "model once, without a fault, before"
        ]
    )


def test_drawing_no_fault_is_refused(project: Project) -> None:
    project.pytester.makepyfile(
        """
        import pytest

        def test_by_hand(fault_injector):
            with pytest.raises(ValueError, match="at least one fault, not 0"):
                fault_injector.sample(0)
        """
    )
    project.run().assert_outcomes(passed=1)


def test_the_fixtures_are_listed_with_their_descriptions(project: Project) -> None:
    result = project.run("--fixtures")
    for name in (
        "ft2_model",
        "ft2_tokenizer",
        "protected_model",
        "unprotected_model",
        "fault_injector",
        "sdc_reduction",
    ):
        result.stdout.fnmatch_lines([f"{name}*"])
    result.stdout.no_fnmatch_line("*no docstring available*ft2*")
