"""Questions that the quickstart's trained Llama answers, in the format of the miniatures' own."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from precision import Precision
from readers import Question
from subject import Subject, make_subject

MODEL = Path(__file__).resolve().parents[2] / "example_suites" / "quickstart" / "models" / "llama"
# Its context is short, and its answers are.
NEW_TOKENS = 12


def sums() -> list[Question]:
    """All sums of two digits."""
    return [
        Question(f"{a}+{b}", f"What is {a} plus {b}?", (str(a + b),))
        for a in range(10)
        for b in range(10)
    ]


def capitals() -> list[Question]:
    """A few capitals, and a question that the model answers wrongly."""
    known = {
        "Argentina": "Buenos Aires",
        "Austria": "Vienna",
        "Canada": "Ottawa",
        "China": "Beijing",
        "Cuba": "Havana",
        "Egypt": "Cairo",
        "France": "Paris",
        "Japan": "Tokyo",
        "Peru": "Lima",
    }
    asked = [
        Question(name, f"What is the capital of {name}?", (capital,))
        for name, capital in known.items()
    ]
    return [*asked, Question("wrong", "What is the capital of Peru?", ("Paris",))]


def write(path: Path, questions: list[Question]) -> Path:
    """Write questions as the miniatures' files have them."""
    lines = [
        json.dumps({"id": each.id, "prompt": each.prompt, "answers": each.answers})
        for each in questions
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@cache
def loaded(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype).eval()
    return model, AutoTokenizer.from_pretrained(MODEL)


def make(task: str = "gsm8k", precision: str = "fp32:fp16", **options: Any) -> Subject:
    """Make a subject of the quickstart's Llama."""
    chosen = Precision.parse(precision)
    questions = sums() if task == "gsm8k" else capitals()
    options = {"wanted": 5, "profiled": 4, "new_tokens": NEW_TOKENS, **options}
    return make_subject("llama", task, chosen, *loaded(chosen.dtype), questions, **options)
