"""The suite's judges: texts as SQuAD compares them, numbers as numbers."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging import as_number, contains_answer, contains_number


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        ("It was in the 10th and 11th centuries.", ["10th and 11th centuries"]),
        ("DENMARK", ["France", "Denmark"]),
        ("He met a king, of  Norway.", ["the King of Norway"]),
        ("in the U.S.", ["US"]),
        ("答案是308分。", ["308分"]),
        ("我住在柏林", ["柏林"]),
        ("Die Stadt heißt Köln.", ["Köln"]),
        ("«Le Havre»", ["Le Havre"]),
        ("He said The.", ["The"]),
    ],
)
def test_an_answer_counts_in_any_case_punctuation_and_article(
    said: str, answers: list[str]
) -> None:
    assert contains_answer(said, answers)


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        ("", ["Paris"]),
        ("Parisians", ["Paris"]),
        ("10th centuries", ["10th and 11th centuries"]),
        ("the 11th and 10th", ["10th"] * 0),
        ("He said nothing.", ["The"]),
        ("我住在北京", ["柏林"]),
    ],
)
def test_a_part_of_an_answer_or_of_a_word_does_not_count(said: str, answers: list[str]) -> None:
    assert not contains_answer(said, answers)


@given(st.text(), st.text(min_size=1), st.text())
def test_a_text_that_holds_an_answer_between_spaces_contains_it(
    before: str, answer: str, after: str
) -> None:
    if answer.strip():
        assert contains_answer(f"{before} {answer} {after}", [answer])


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("The answer is 18.", "18"),
        ("$1,234.50 in all", "1234.5"),
        ("16-3-4=9 eggs", "9"),
        ("16-3-4=9 eggs", "3"),
        ("it is -5 degrees", "-5"),
        ("70,000", "70000"),
        ("18.00", "18"),
        ("18.", "18"),
        ("3,4,5", "4"),
    ],
)
def test_a_number_counts_however_it_is_written(said: str, answer: str) -> None:
    assert contains_number(said, [answer])


@pytest.mark.parametrize(
    ("said", "answer"),
    [("180", "18"), ("18.5", "18"), ("1,800", "800"), ("eighteen", "18"), ("", "18"), ("5", "-5")],
)
def test_another_number_does_not_count(said: str, answer: str) -> None:
    assert not contains_number(said, [answer])


@given(st.integers(-(10**12), 10**12))
def test_grouped_and_plain_digits_are_the_same_number(number: int) -> None:
    assert as_number(f"{number:,}") == as_number(str(number)) == Decimal(number)
    assert contains_number(f"That makes {number:,} of them.", [str(number)])


@pytest.mark.parametrize("text", ["", "x", "1 2", "12,34", "nan"])
def test_what_is_no_number_is_none(text: str) -> None:
    assert as_number(text) is None
