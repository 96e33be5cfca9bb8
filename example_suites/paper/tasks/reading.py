"""Questions about a short passage: who stands in which relation to what."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tasks.question import Question

__all__ = ["Language", "Relation", "reading_question"]

_FEWEST_FACTS, _MOST_FACTS = 4, 8
_MOST_PEOPLE = 3


@dataclass(frozen=True)
class Relation:
    """What can be said of a person.

    Attributes
    ----------
    statement:
        The sentence that says it, with ``{name}`` and ``{value}``.
    questions:
        Ways to ask for the value, with ``{name}``.
    values:
        What the value can be. An answer that contains it is right.
    """

    statement: str
    questions: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Language:
    """A small world in one language.

    Attributes
    ----------
    names:
        The people.
    relations:
        What can be said of them.
    prompt:
        The prompt, with ``{passage}`` and ``{question}``.
    lead:
        What a reply begins with, before the sentence that answers.
    space:
        What stands between two sentences.
    """

    names: tuple[str, ...]
    relations: tuple[Relation, ...]
    prompt: str
    lead: str
    space: str = " "


def reading_question(language: Language, rng: random.Random) -> Question:
    """Draw a passage of 4 to 8 facts on 1 to 3 people, and a question for one of them.

    No kind of fact and no value occurs twice in a passage, so what is asked for tells the fact
    apart, and who it is about need not. The reply ends with the sentence of the passage that
    answers.
    """
    people = rng.sample(language.names, rng.randint(1, _MOST_PEOPLE))
    relations = rng.sample(language.relations, rng.randint(_FEWEST_FACTS, _MOST_FACTS))
    taken = set(people)
    facts = []
    for relation in relations:
        name, value = rng.choice(people), rng.choice(relation.values)
        while value in taken:
            value = rng.choice(relation.values)
        taken.add(value)
        facts.append((name, relation, value, relation.statement.format(name=name, value=value)))
    name, relation, value, statement = rng.choice(facts)
    prompt = language.prompt.format(
        passage=language.space.join(fact[3] for fact in facts),
        question=rng.choice(relation.questions).format(name=name),
    )
    return Question(prompt, f"{language.lead}{language.space}{statement}", (value,))
