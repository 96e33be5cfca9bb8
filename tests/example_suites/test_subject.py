"""Choosing questions, and what is known of the answers to them."""

from __future__ import annotations

import pytest

import ft2
from ft2.campaign import Recorder
from judging import contains_number
from readers import Question
from subject import TooFewQuestionsError, answer, make_subject
from tests.example_suites.quickstart_questions import NEW_TOKENS, capitals, loaded, make, sums


def test_all_judged_questions_are_answered_rightly_and_none_of_them_is_profiled() -> None:
    subject = make(wanted=20, profiled=30)
    assert len(subject.asked) == 20
    assert len(subject.others) == 30
    assert all(subject.is_right(number, each.said) for number, each in enumerate(subject.asked))
    judged, profiled = (
        {each.question.id for each in group} for group in (subject.asked, subject.others)
    )
    assert not judged & profiled


def test_a_question_that_is_answered_wrongly_is_never_judged() -> None:
    subject = make("squad", wanted=9, profiled=100)
    assert "wrong" not in {each.question.id for each in subject.asked}
    assert [each.question.id for each in subject.others] == ["wrong"]
    assert (subject.tried, subject.right) == (10, 9)


def test_too_few_right_answers_are_refused_with_their_number() -> None:
    with pytest.raises(TooFewQuestionsError, match="llama answers 9 of 10 questions of squad"):
        make("squad", wanted=10)


def test_without_a_question_left_to_profile_the_subject_is_refused() -> None:
    with pytest.raises(TooFewQuestionsError, match="all 1 questions of gsm8k are judged"):
        make_subject(
            "llama",
            "gsm8k",
            make().precision,
            *loaded(),
            sums()[:1],
            wanted=1,
            new_tokens=NEW_TOKENS,
        )


def test_a_question_that_the_context_cannot_hold_is_left_out_and_counted() -> None:
    long = Question("long", "What is the capital of Peru? " * 20, ("Lima",))
    subject = make_subject(
        "llama",
        "squad",
        make().precision,
        *loaded(),
        [long, *capitals()],
        wanted=3,
        new_tokens=NEW_TOKENS,
    )
    assert subject.too_long == 1
    assert "long" not in {each.question.id for each in subject.asked + subject.others}


def test_the_sites_of_an_answer_are_those_that_decoding_it_computes() -> None:
    subject = make()
    for number, asked in enumerate(subject.asked):
        recorder = Recorder(subject.model)
        said = answer(subject.model, asked.prompt)
        recorder.stop()
        assert tuple(said) == asked.said
        assert subject.space(number) == recorder.golden().space


def test_bounds_over_prompts_and_answers_are_those_of_decoding_the_answers() -> None:
    subject = make()
    decoded = ft2.profile(
        subject.model,
        [list(each.prompt.tokens) for each in subject.others],
        "ft2-offline",
        max_new_tokens=NEW_TOKENS,
    )
    profile = subject.profile("ft2-offline")
    assert profile.bounds.keys() == decoded.bounds.keys()
    for name, pair in profile.bounds.items():
        assert pair == pytest.approx(decoded.bounds[name], rel=1e-4)


def test_the_digest_tells_other_questions_and_weights_apart() -> None:
    subject = make()
    assert subject.digest == make().digest
    assert subject.digest != make(wanted=6).digest
    assert subject.digest != make(seed=1).digest
    assert subject.digest != make(precision="fp32").digest


def test_another_questions_answer_seldom_counts_as_right() -> None:
    subject = make(wanted=30)
    right = [
        contains_number(subject.text(other.said), asked.question.answers)
        for asked in subject.asked
        for other in subject.asked
        if other is not asked
    ]
    assert 0 < subject.confusable < 50
    assert subject.confusable == pytest.approx(100 * sum(right) / len(right))


def test_an_answer_of_full_length_goes_on_past_its_end_token() -> None:
    subject = make(full_length=True, wanted=1, profiled=1)
    assert {len(each.said) for each in subject.asked} == {NEW_TOKENS}


def test_a_seed_determines_the_questions() -> None:
    one, other = make(seed=3), make(seed=3)
    assert [each.question.id for each in one.asked] == [each.question.id for each in other.asked]
