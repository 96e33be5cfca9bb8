"""Questions that both models must answer rightly."""

from __future__ import annotations

import re

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

CAPITALS = [
    ("Argentina", "Buenos Aires"),
    ("Austria", "Vienna"),
    ("Canada", "Ottawa"),
    ("China", "Beijing"),
    ("Cuba", "Havana"),
    ("Denmark", "Copenhagen"),
    ("Egypt", "Cairo"),
    ("France", "Paris"),
    ("Germany", "Berlin"),
    ("Greece", "Athens"),
    ("Ireland", "Dublin"),
    ("Italy", "Rome"),
    ("Japan", "Tokyo"),
    ("Kenya", "Nairobi"),
    ("Peru", "Lima"),
    ("Sweden", "Stockholm"),
]

SUMS = [
    (0, 6),
    (1, 1),
    (1, 9),
    (2, 3),
    (2, 8),
    (3, 4),
    (4, 4),
    (4, 9),
    (5, 0),
    (5, 7),
    (6, 2),
    (6, 6),
    (7, 8),
    (8, 3),
    (9, 5),
    (9, 9),
]


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """Return the model's answer to the question."""
    prompt = tokenizer(question, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    new_tokens = output[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(new_tokens, skip_special_tokens=True))


@pytest.mark.sdc_budget(0.5)
@pytest.mark.parametrize(("country", "capital"), CAPITALS)
def test_capital(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, country: str, capital: str
) -> None:
    """The model names the capital of the country."""
    text = ask(model, tokenizer, f"What is the capital of {country}?")
    assert capital in text


@pytest.mark.sdc_budget(1.5)
@pytest.mark.parametrize(("a", "b"), SUMS)
def test_sum(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, a: int, b: int) -> None:
    """The last number of the answer is the sum."""
    numbers = re.findall(r"\d+", ask(model, tokenizer, f"What is {a} plus {b}?"))
    assert numbers
    assert int(numbers[-1]) == a + b
