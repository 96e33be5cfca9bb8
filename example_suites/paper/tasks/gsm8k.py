"""``gsm8k``: arithmetic word problems, answered by steps and a final number (stands for GSM8K)."""

from __future__ import annotations

import random
from collections.abc import Callable

from tasks.listing import listed
from tasks.question import Question

__all__ = ["word_problem"]

_NAMES = listed(
    "Adam, Alice, Anna, Daniel, David, Emma, Frank, Hannah, Jack, Jane, Laura, Leo, Maria, "
    "Max, Nora, Oscar, Peter, Rosa, Simon, Tina"
)
_ITEMS = listed(
    "apples, balls, books, buttons, cards, coins, cookies, eggs, marbles, nuts, pears, "
    "pencils, shells, stamps"
)
_BOXES = listed("bags, boxes, packs")

_LARGEST = 99

# The story, the question and the steps; the last step gives the number asked for.
_Problem = tuple[str, str, list[str]]


def _bought_and_given(rng: random.Random) -> _Problem:
    name, friend = rng.sample(_NAMES, 2)
    items = rng.choice(_ITEMS)
    first, more = _summands(rng)
    total = first + more
    given = rng.randint(1, total - 1)
    return (
        f"{name} has {first} {items} and buys {more} more. "
        f"Then {name} gives {given} {items} to {friend}.",
        f"How many {items} does {name} have now?",
        [
            f"{name} has {first} + {more} = {total} {items}.",
            f"Then {name} has {total} - {given} = {total - given} {items}.",
        ],
    )


def _boxes_less_some(rng: random.Random) -> _Problem:
    name, items, boxes = rng.choice(_NAMES), rng.choice(_ITEMS), rng.choice(_BOXES)
    count, each = _factors(rng)
    total = count * each
    lost = rng.randint(1, total - 1)
    return (
        f"{name} has {count} {boxes} with {each} {items} each. {name} loses {lost} {items}.",
        f"How many {items} are left?",
        [
            f"{name} has {count} * {each} = {total} {items}.",
            f"Then {total} - {lost} = {total - lost} {items} are left.",
        ],
    )


def _one_has_more(rng: random.Random) -> _Problem:
    name, friend = rng.sample(_NAMES, 2)
    items = rng.choice(_ITEMS)
    first = rng.randint(1, _LARGEST // 2 - 1)
    more = rng.randint(1, _LARGEST - 2 * first)
    second = first + more
    return (
        f"{name} has {first} {items}. {friend} has {more} {items} more than {name}.",
        f"How many {items} do {name} and {friend} have together?",
        [
            f"{friend} has {first} + {more} = {second} {items}.",
            f"Together they have {first} + {second} = {first + second} {items}.",
        ],
    )


def _one_has_fewer(rng: random.Random) -> _Problem:
    name, friend = rng.sample(_NAMES, 2)
    items = rng.choice(_ITEMS)
    first = rng.randint(2, _LARGEST * 2 // 3)
    fewer = rng.randint(max(1, 2 * first - _LARGEST), first - 1)
    second = first - fewer
    return (
        f"{name} has {first} {items}. {friend} has {fewer} {items} fewer than {name}.",
        f"How many {items} do {name} and {friend} have together?",
        [
            f"{friend} has {first} - {fewer} = {second} {items}.",
            f"Together they have {first} + {second} = {first + second} {items}.",
        ],
    )


def _shopping(rng: random.Random) -> _Problem:
    name, items = rng.choice(_NAMES), rng.choice(_ITEMS)
    count, price = _factors(rng)
    cost = count * price
    money = rng.randint(cost + 1, _LARGEST)
    return (
        f"{name} has {money} dollars and buys {count} {items} for {price} dollars each.",
        f"How many dollars does {name} have left?",
        [
            f"The {items} cost {count} * {price} = {cost} dollars.",
            f"Then {name} has {money} - {cost} = {money - cost} dollars left.",
        ],
    )


def _three_days(rng: random.Random) -> _Problem:
    name, items = rng.choice(_NAMES), rng.choice(_ITEMS)
    first, second = _summands(rng, _LARGEST - 1)
    total = first + second
    third = rng.randint(1, _LARGEST - total)
    return (
        f"{name} finds {first} {items} on Monday, {second} {items} on Tuesday "
        f"and {third} {items} on Friday.",
        f"How many {items} does {name} find?",
        [
            f"{name} finds {first} + {second} = {total} {items} by Tuesday.",
            f"With Friday that makes {total} + {third} = {total + third} {items}.",
        ],
    )


def _two_kinds_of_boxes(rng: random.Random) -> _Problem:
    name, items = rng.choice(_NAMES), rng.choice(_ITEMS)
    large, small = rng.sample(_BOXES, 2)
    while True:
        (count, each), (others, fewer) = _factors(rng), _factors(rng)
        first, second = count * each, others * fewer
        if first + second <= _LARGEST:
            break
    return (
        f"{name} buys {count} {large} with {each} {items} each "
        f"and {others} {small} with {fewer} {items} each.",
        f"How many {items} does {name} buy?",
        [
            f"The {large} hold {count} * {each} = {first} {items}.",
            f"The {small} hold {others} * {fewer} = {second} {items}.",
            f"Together that makes {first} + {second} = {first + second} {items}.",
        ],
    )


_PROBLEMS: tuple[Callable[[random.Random], _Problem], ...] = (
    _bought_and_given,
    _boxes_less_some,
    _one_has_more,
    _one_has_fewer,
    _shopping,
    _three_days,
    _two_kinds_of_boxes,
)


def _summands(rng: random.Random, largest: int = _LARGEST) -> tuple[int, int]:
    total = rng.randint(3, largest)
    first = rng.randint(1, total - 1)
    return first, total - first


def _factors(rng: random.Random) -> tuple[int, int]:
    return rng.randint(2, 9), rng.randint(2, 9)


def word_problem(rng: random.Random) -> Question:
    """Draw a problem of two or three steps over whole numbers from 1 to 99."""
    story, question, steps = rng.choice(_PROBLEMS)(rng)
    answer = steps[-1].split(" = ")[1].split()[0]
    return Question(
        f"Problem: {story}\nQuestion: {question}\nAnswer:",
        f" {' '.join(steps)} The answer is {answer}.",
        (answer,),
    )
