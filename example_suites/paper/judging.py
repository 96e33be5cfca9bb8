"""Whether a text holds the reference answer.

FT2 (HPDC '25), section 2.3: a text is wrong "if the answer does not contain or partially contains
the reference answer"; another wording that has it is right. Texts are compared as the evaluation of
SQuAD does it: lower case, without punctuation and articles. Numbers are compared as numbers.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal

__all__ = ["JUDGES", "Judge", "as_number", "contains_answer", "contains_number"]

Judge = Callable[[str, Sequence[str]], bool]

_ARTICLES = frozenset(["a", "an", "the"])
# Behind a number a minus is an operator. Commas stand between groups of three digits.
_NUMBER = re.compile(r"(?:(?<![\d.)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
# Scripts without spaces between words: their characters are compared one by one, as the evaluation
# of MLQA and XQuAD does.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI")


def contains_answer(said: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in what was said, as whole words, as SQuAD compares."""
    words = _words(said)
    for answer in answers:
        wanted = _words(answer)
        # Of an answer such as "The" nothing is left.
        if not wanted and answer.strip() and answer.strip() in said:
            return True
        places = range(len(words) - len(wanted) + 1) if wanted else ()
        if any(words[at : at + len(wanted)] == wanted for at in places):
            return True
    return False


def contains_number(said: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers is among the numbers that were said."""
    numbers = {Decimal(found.replace(",", "")) for found in _NUMBER.findall(said)}
    return any(as_number(answer) in numbers for answer in answers)


def as_number(text: str) -> Decimal | None:
    """Return the number that a text is, without a dollar or per cent sign; None if it is none."""
    bare = text.strip().strip("$%").strip()
    return Decimal(bare.replace(",", "")) if _NUMBER.fullmatch(bare) else None


def _words(text: str) -> list[str]:
    kept = []
    for character in text.lower():
        if character in string.punctuation or unicodedata.category(character).startswith("P"):
            continue
        unspaced = ord(character) > 127 and unicodedata.name(character, "").startswith(_UNSPACED)
        kept.append(f" {character} " if unspaced else character)
    return [word for word in "".join(kept).split() if word not in _ARTICLES]


JUDGES: dict[str, Judge] = {
    "squad": contains_answer,
    "xtreme": contains_answer,
    "gsm8k": contains_number,
}
