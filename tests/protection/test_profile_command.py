"""``python -m ft2 profile``: from a model and a file of prompts to a file of bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ft2
from ft2.__main__ import main

_MODEL = Path(__file__).parents[2] / "example_suites" / "quickstart" / "models" / "llama"
_QUESTIONS = ["What is the capital of Peru?", "What is 1 plus 2?"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([*_QUESTIONS, "", "[5, 6, 7]"]))
    return path


def test_a_profile_is_made_of_texts_and_token_ids_and_saved(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "ranger.json"
    arguments = ["--policy", "ranger", "-o", str(output), "--max-new-tokens", "3"]
    assert main(["profile", str(_MODEL), str(prompts), *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: bounds of 2 layers for ranger, from 3 ")
    model = AutoModelForCausalLM.from_pretrained(_MODEL, dtype="auto").eval()
    given: list[Any] = [*_QUESTIONS, [5, 6, 7]]
    tokenizer = AutoTokenizer.from_pretrained(_MODEL)
    expected = ft2.profile(
        model, given, "ranger", tokenizer=tokenizer, max_new_tokens=3, progress=False
    )
    assert ft2.Profile.load(output) == expected
    with ft2.protect(model, "ranger", bounds=output) as protection, torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    assert protection.counts == [0]


@pytest.mark.parametrize(
    ("model", "policy", "sentence"),
    [
        (str(_MODEL), "ft2", "ft2: ft2 has no bounds to profile: use one of ranger, "),
        (str(_MODEL), "armour", "ft2: unknown protection 'armour': use one of "),
        ("no/such/folder/here", "ranger", "ft2: no/such/folder/here cannot be loaded: "),
    ],
)
def test_what_cannot_be_profiled_is_refused_in_one_sentence(
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    policy: str,
    sentence: str,
) -> None:
    output = tmp_path / "bounds.json"
    assert main(["profile", model, str(prompts), "--policy", policy, "-o", str(output)]) == 2
    assert capsys.readouterr().err.startswith(sentence)
    assert not output.exists()


def test_a_file_of_prompts_that_is_not_there_or_empty_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--policy", "ranger", "-o", str(tmp_path / "bounds.json")]
    assert main(["profile", str(_MODEL), str(tmp_path / "missing.txt"), *arguments]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "empty.txt").touch()
    assert main(["profile", str(_MODEL), str(tmp_path / "empty.txt"), *arguments]) == 2
    assert "there are no prompts" in capsys.readouterr().err
