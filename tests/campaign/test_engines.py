"""Golden runs that are kept from one chunk of trials to the next."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ft2.campaign.batch_engine import BatchEngine
from ft2.campaign.engines import Engines
from ft2.campaign.prompt import GoldenRow, Prompt
from tests.tiny_models import tiny_model

PROMPTS = [Prompt((1, 5, 9, number), 4) for number in range(3, 13)]
# As chunks of five trials ask for six sets, and as workers are given them.
ASKED = [PROMPTS[:5], PROMPTS[5:6] + PROMPTS[:4], PROMPTS[4:6] + PROMPTS[:3], PROMPTS]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """The prompts whose golden runs were decoded, each as often as it was."""
    found: list[Prompt] = []
    prepare = BatchEngine.prepare

    def watched(engine: BatchEngine) -> list[GoldenRow]:
        found.extend(engine._prompts)
        return prepare(engine)

    monkeypatch.setattr(BatchEngine, "prepare", watched)
    return found


def ask(engines: Engines, model: Any, prompts: Sequence[Prompt], fixed: bool = False) -> None:
    found = engines.holding(model, prompts, fixed, None)
    assert list(found) == list(prompts)
    for prompt, engine in found.items():
        assert engine.golden(prompt).prompt is prompt


@pytest.mark.parametrize("fixed", [False, True])
def test_each_golden_run_is_decoded_once(decoded: list[Prompt], fixed: bool) -> None:
    model = tiny_model(dtype=torch.float16 if fixed else torch.float32)
    engines = Engines("ft2", None, None, 16, 1)
    for prompts in ASKED * 2:
        ask(engines, model, prompts, fixed)
    assert sorted(decoded, key=PROMPTS.index) == PROMPTS


def test_where_memory_is_short_those_used_last_are_kept(
    decoded: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    engines = Engines("none", None, None, 4, 1)
    ask(engines, model, PROMPTS[:4])
    monkeypatch.setattr("ft2.campaign.batch_size._free", lambda device: 0)
    ask(engines, model, PROMPTS[4:6])
    decoded.clear()
    ask(engines, model, PROMPTS[4:6])
    assert decoded == []
    ask(engines, model, PROMPTS[:1])
    assert PROMPTS[0] in decoded


def test_a_model_is_given_up_with_its_golden_runs() -> None:
    engines = Engines("none", None, None, 16, 1)
    model = tiny_model("opt")
    before = weakref.ref(model)
    ask(engines, model, PROMPTS[:2])
    del model
    ask(engines, tiny_model(), PROMPTS[:2])
    gc.collect()
    assert before() is None
