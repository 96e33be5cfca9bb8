"""Campaigns without pytest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ft2
from ft2.campaign import Batched, Replies
from ft2.campaign.judges import judge
from ft2.campaign.row_batch import RowBatch
from tests.tiny_models import tiny_model

LLAMA = Path(__file__).resolve().parents[2] / "example_suites" / "quickstart" / "models" / "llama"
ASKED: dict[str, Any] = {
    "prompts": ["What is the capital of Peru?", "What is the capital of Italy?"],
    "answers": ["Lima", "Rome"],
    "generation": {"max_new_tokens": 12},
    "fault_model": "exp",
    "encoding": "fp16",
}


@pytest.fixture(scope="module")
def llama() -> dict[str, Any]:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(LLAMA, dtype=torch.float32).eval()
    return {"model": model, "tokenizer": AutoTokenizer.from_pretrained(LLAMA)}


def told(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(each["fault"], each["outcome"], each["said"], each["corrected"]) for each in records]


@pytest.mark.parametrize("protection", ["none", "ft2"])
def test_batched_trials_end_as_those_one_at_a_time(llama: dict[str, Any], protection: str) -> None:
    asked = {**ASKED, **llama, "faults": 60, "protection": protection}
    batched = ft2.Campaign(**asked, batch=32).run(progress=False)
    alone = ft2.Campaign(**asked, batch=1).run(progress=False)
    assert told(batched) == told(alone)
    assert {each["batch"] for each in batched} == {32}
    assert {each["batch"] for each in alone} == {1}
    assert all(each["landed"] for each in batched)


def test_some_batched_trials_run_again_alone(
    llama: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**ASKED, **llama, "faults": 20}
    records = ft2.Campaign(**asked).run(progress=False)
    assert [each["alike"] for each in records].count(True) == 5
    assert [each["alike"] for each in records].count(None) == 15
    replies = Batched.replies

    def wrong(batched: Batched) -> Replies:
        found = replies(batched)
        found._continuation.said[:] = [3]
        return found

    monkeypatch.setattr(Batched, "replies", wrong)
    with pytest.warns(RuntimeWarning, match=r"end differently in a batch and alone"):
        records = ft2.Campaign(**asked).run(progress=False)
    assert [each["alike"] for each in records].count(False) > 0


def test_memory_that_runs_out_in_half_precision_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(batch: RowBatch) -> list[int]:
        raise MemoryError

    monkeypatch.setattr(RowBatch, "advance", too_large)
    model = tiny_model(dtype=torch.float16)
    campaign = ft2.Campaign(model, [[1, 5]], [None], lambda said, answer: True, faults=6, batch=16)
    with pytest.warns(RuntimeWarning, match="use --ft2-batch=8"):
        records = campaign.run(progress=False)
    assert [each["landed"] for each in records] == [True] * 6


def test_the_same_faults_under_two_protections_are_compared(llama: dict[str, Any]) -> None:
    asked = {**ASKED, **llama, "faults": 60}
    bare, protected = (
        ft2.Campaign(**asked, protection=name).run(progress=False) for name in ("none", "ft2")
    )
    pairs = ft2.compare(bare, protected)
    assert pairs.before == sum(each["outcome"] == "sdc" for each in bare) > 0
    assert pairs.after == sum(each["outcome"] == "sdc" for each in protected)
    low, high = pairs.difference_interval()
    assert low < pairs.difference < high


def test_what_a_batch_cannot_compute_runs_alone_and_says_why() -> None:
    campaign = ft2.Campaign(
        tiny_model(),
        [[1, 5, 9, 11]],
        [None],
        lambda said, answer: True,
        faults=3,
        generation={"max_new_tokens": 4, "repetition_penalty": 1.5},
    )
    records = campaign.run(progress=False)
    assert {each["alone"] for each in records} == {"it uses RepetitionPenaltyLogitsProcessor"}
    assert {each["outcome"] for each in records} == {"masked"}


def test_a_wrong_answer_without_a_fault_is_refused_or_left_out(llama: dict[str, Any]) -> None:
    asked = {**ASKED, **llama, "answers": ["Lima", "Paris"], "faults": 5}
    with pytest.raises(ValueError, match=r"answers 1 of 2 prompts wrongly .*Italy"):
        ft2.Campaign(**asked).run(progress=False)
    records = ft2.Campaign(**asked, golden="exclude").run(progress=False)
    assert {each["prompt"] for each in records} == {0}


def test_prompts_and_answers_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="1 prompts and 2 answers"):
        ft2.Campaign(tiny_model(), [[1]], [1, 2])


@pytest.mark.parametrize(
    ("name", "said", "answer", "right"),
    [
        ("contains", "It is Lima.", "Lima", True),
        ("contains", "It is Rome.", "Lima", False),
        ("equals", " Lima\n", "Lima", True),
        ("equals", [1, 2], [1, 2], True),
        ("equals", [1, 2], [1], False),
        ("number", "3 and 4 make 1,007.0", 1007, True),
        ("number", "7 it is not: 8", 7, False),
        ("number", "none", 7, False),
    ],
)
def test_judges(name: str, said: Any, answer: Any, right: bool) -> None:
    assert judge(name)(said, answer) is right


def test_an_unknown_judge_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of contains, equals, number"):
        judge("vibes")
