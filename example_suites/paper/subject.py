"""One model and one task: the questions it answers rightly, and those that bounds come from."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import ft2
from ft2.campaign import Recorder
from ft2.campaign.batch_engine import BatchEngine, CannotBatchError
from ft2.campaign.batch_size import fitting_rows
from ft2.campaign.prompt import Prompt
from ft2.faults import Space
from ft2.layers import projections
from ft2.layers.identity import identify
from ft2.protection import Profile
from judging import JUDGES
from precision import Precision
from readers import Question

__all__ = [
    "NEW_TOKENS",
    "Asked",
    "Subject",
    "TooFewQuestionsError",
    "answer",
    "answered",
    "digest_of",
    "make_subject",
]

# FT2 (HPDC '25), section 5.1.
NEW_TOKENS = {"squad": 60, "xtreme": 60, "gsm8k": 180}
_TOGETHER = 64


class TooFewQuestionsError(ValueError):
    """The model answers too few of the questions rightly."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A question, and what the model says to it without a fault and unprotected.

    Attributes
    ----------
    question:
        With its reference answers.
    prompt:
        Its tokens, and how the answer ends.
    said:
        The new tokens.
    """

    question: Question
    prompt: Prompt
    said: tuple[int, ...]


@dataclass(eq=False)
class Subject:
    """A model, a task, and the task's questions.

    Attributes
    ----------
    name, task, precision:
        What is measured.
    model, tokenizer:
        As loaded.
    asked:
        The questions into whose answers faults strike; all are answered rightly without one.
    others:
        Questions that offline bounds are profiled on; none of them is among `asked`.
    new_tokens:
        How long an answer is at most.
    tried, right, too_long:
        How many questions were tried, how many of these answered rightly, and how many were left
        out because the model's context cannot hold them and the answer.
    """

    name: str
    task: str
    precision: Precision
    model: Any
    tokenizer: Any
    asked: list[Asked]
    others: list[Asked]
    new_tokens: int
    tried: int
    right: int
    too_long: int
    _profiles: dict[str, Profile] = field(default_factory=dict)
    _spaces: dict[int, Space] = field(default_factory=dict)

    def text(self, said: Sequence[int]) -> str:
        """Return new tokens as text."""
        return str(self.tokenizer.decode(list(said), skip_special_tokens=True))

    def is_right(self, number: int, said: Sequence[int]) -> bool:
        """Whether what was said to a question of `asked` holds its reference answer."""
        return JUDGES[self.task](self.text(said), self.asked[number].question.answers)

    def space(self, number: int) -> Space:
        """Return all sites of the unprotected answer to a question."""
        if number not in self._spaces:
            asked = self.asked[number]
            self._spaces[number] = _space(self.model, asked.prompt, len(asked.said))
        return self._spaces[number]

    def profile(self, policy: str) -> Profile:
        """Return a policy's bounds, profiled on `others`."""
        if policy not in self._profiles:
            self._profiles[policy] = self.profile_on(policy, self.others)
        return self._profiles[policy]

    def profile_on(self, policy: str, questions: Sequence[Asked]) -> Profile:
        """Return a policy's bounds, profiled on some questions and the model's answers to them."""
        # One forward over prompt and answer computes what decoding the answer computed.
        read = [[*each.prompt.tokens, *each.said] for each in questions]
        return ft2.profile(self.model, read, policy, max_new_tokens=0, progress=False)

    @property
    def confusable(self) -> float:
        """How often another question's answer would count as right, in per cent of all pairs.

        What the judge lets through by chance; a wrong answer is often one to another question.
        """
        texts = [self.text(each.said) for each in self.asked]
        judge = JUDGES[self.task]
        pairs = [
            judge(text, asked.question.answers)
            for number, asked in enumerate(self.asked)
            for other, text in enumerate(texts)
            if other != number
        ]
        return 100 * sum(pairs) / len(pairs) if pairs else 0.0

    @property
    def digest(self) -> str:
        """A hash of what trials depend on beside the protection: weights, questions, answers."""
        facts = [
            identify(self.model).fingerprint,
            str(self.precision),
            [
                [each.question.prompt, each.question.answers, each.prompt.tokens, each.said]
                for each in self.asked
            ],
        ]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()

    @property
    def profile_digest(self) -> str:
        """A hash of what profiled bounds depend on beside the model."""
        return digest_of(self.others)


def make_subject(
    name: str,
    task: str,
    precision: Precision,
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    wanted: int = 50,
    profiled: int = 100,
    seed: int = 0,
    new_tokens: int | None = None,
    full_length: bool = False,
) -> Subject:
    """Choose questions as the paper does: at random, of those that are answered rightly.

    Parameters
    ----------
    name, task, precision:
        As :class:`Subject` has them.
    model, tokenizer:
        A causal language model in eval mode, in that precision, on its device.
    questions:
        All there are.
    wanted:
        How many are judged (FT2, HPDC '25, section 5.1: 50).
    profiled:
        On how many others, right or wrong, bounds are profiled.
    seed:
        Determines the order in which questions are tried.
    new_tokens:
        How long an answer is at most; None: as in the paper, 60 or 180.
    full_length:
        Whether an answer goes on past its end token, up to that length.

    Raises
    ------
    TooFewQuestionsError
        If fewer than `wanted` are answered rightly, or none is left to profile.
    """
    shuffled = list(questions)
    random.Random(f"{seed}\n{task}").shuffle(shuffled)
    judge = JUDGES[task]
    new = new_tokens or NEW_TOKENS[task]
    asked: list[Asked] = []
    others: list[Asked] = []
    tried = right = too_long = 0
    fitting: list[tuple[Question, Prompt]] = []
    for question in shuffled:
        prompt = _prompt(model, tokenizer, question, new, full_length)
        if prompt is None:
            too_long += 1
        else:
            fitting.append((question, prompt))
    for answered in _answered(model, fitting):
        if len(asked) == wanted and len(others) >= profiled:
            break
        tried += 1
        text = str(tokenizer.decode(list(answered.said), skip_special_tokens=True))
        is_right = judge(text, answered.question.answers)
        right += is_right
        if is_right and len(asked) < wanted:
            asked.append(answered)
        else:
            others.append(answered)
    if len(asked) < wanted:
        long = f" ({too_long} more do not fit into it with {new} new tokens)" if too_long else ""
        raise TooFewQuestionsError(
            f"{name} answers {len(asked)} of {tried} questions of {task} rightly in {precision}"
            f"{long}, and {wanted} are wanted: give more questions, or ask for fewer with "
            "--questions"
        )
    if not others:
        raise TooFewQuestionsError(
            f"all {tried} questions of {task} are judged, and offline bounds are profiled on "
            "others: give more questions, or judge fewer with --questions"
        )
    return Subject(
        name,
        task,
        precision,
        model,
        tokenizer,
        asked,
        others[:profiled],
        new,
        tried,
        right,
        too_long,
    )


def answered(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    task: str,
    count: int,
    new_tokens: int | None = None,
) -> list[Asked]:
    """Answer the first questions of a task that fit into the model's context."""
    new = NEW_TOKENS[task] if new_tokens is None else new_tokens
    prompts = ((each, _prompt(model, tokenizer, each, new, False)) for each in questions)
    fitting = [(each, prompt) for each, prompt in prompts if prompt is not None]
    return list(_answered(model, fitting[:count]))


def digest_of(questions: Sequence[Asked]) -> str:
    """Return a hash of all tokens of some questions and the model's answers."""
    read = [[*each.prompt.tokens, *each.said] for each in questions]
    return hashlib.blake2b(json.dumps(read).encode(), digest_size=16).hexdigest()


def _prompt(
    model: Any, tokenizer: Any, question: Question, new: int, full_length: bool
) -> Prompt | None:
    """Return what the model is asked, None where its context cannot hold that and the answer."""
    ids = tuple(tokenizer(question.prompt)["input_ids"])
    room = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if room is not None and len(ids) + new > room:
        return None
    ends = _ends(model)
    return Prompt(ids, new, new if full_length and ends else 0, ends)


def _ends(model: Any) -> tuple[int, ...]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return ()
    return tuple(ends) if isinstance(ends, list) else (int(ends),)


def _answered(model: Any, fitting: Sequence[tuple[Question, Prompt]]) -> Iterator[Asked]:
    """Answer questions greedily, some at a time."""
    for start in range(0, len(fitting), _TOGETHER):
        chosen = fitting[start : start + _TOGETHER]
        prompts = [prompt for _, prompt in chosen]
        rows = max(fitting_rows(model, prompts), len(prompts))
        try:
            said = [row.said for row in BatchEngine(model, prompts, rows=rows).prepare()]
        except CannotBatchError:
            said = [answer(model, prompt) for prompt in prompts]
        for (question, prompt), new in zip(chosen, said, strict=True):
            yield Asked(question, prompt, tuple(new))


def _space(model: Any, prompt: Prompt, steps: int) -> Space:
    """Return the sites of an answer of some steps."""
    routed = any(projection.expert is not None for projection in projections(model))
    # All later steps of a dense model compute the same; experts depend on the token.
    recorded = steps if routed else min(steps, 2)
    recorder = Recorder(model)
    try:
        answer(model, replace(prompt, most=recorded, least=recorded))
    finally:
        recorder.stop()
    space = recorder.golden().space
    known = len(space.steps)
    later = (replace(space.steps[-1], step=step) for step in range(known, steps))
    return Space((*space.steps, *later))


def answer(model: Any, prompt: Prompt) -> list[int]:
    """Return the new tokens of one prompt, decoded alone and greedily."""
    ids = torch.tensor([prompt.tokens], device=model.get_input_embeddings().weight.device)
    pad = model.generation_config.pad_token_id
    said = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=prompt.most,
        min_new_tokens=prompt.least,
        do_sample=False,
        num_beams=1,
        pad_token_id=0 if pad is None else pad,
    )
    new: list[int] = said[0, ids.shape[1] :].tolist()
    return new
