"""Greedy answers token by token, computed as ``generate`` does, to be left and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, DynamicCache, StaticCache

from ft2.forward import Call, Clock
from ft2.forward.cache_names import cache_argument
from ft2.forward.clock import Silent

__all__ = ["Decoder", "Moment"]

# Of each token: whether it is a request's first, and the seconds it took.
Moment = tuple[bool, float]


class Decoder:
    """Answers one request after the other, greedily, and can be left and resumed at any token.

    What the model is given is what its own ``prepare_inputs_for_generation`` makes, token by token.

    Parameters
    ----------
    model:
        A causal model, with what protects it.
    prompt:
        int64 (rows, tokens).
    new_tokens:
        For each request.
    compiled:
        Whether later tokens are computed by what ``generate`` compiles, with a static cache that
        all requests use; prompts are not, as there.
    is_announced:
        Whether each request is announced, as ``generate`` announces its own where ft2 listens.
    """

    def __init__(
        self, model: Any, prompt: Tensor, new_tokens: int, compiled: bool, is_announced: bool
    ) -> None:
        self._model = model
        self._clock = Clock.listen(model, Silent()) if is_announced else None
        self._request = ExitStack()
        self._call: Call
        self._prompt = self._ids = prompt
        self._kwargs: dict[str, Any] = {}
        self._new_tokens = new_tokens
        self._compiled = _compiled_call(model, is_announced) if compiled else None
        self._static = (
            StaticCache(model.config, max_cache_len=prompt.shape[1] + new_tokens)
            if compiled
            else None
        )
        self._done = 0

    def decode(self) -> Moment:
        """Compute one token and wait for it."""
        is_first = self._done == 0
        if is_first:
            self._begin()
        began = time.perf_counter()
        inputs = self._model.prepare_inputs_for_generation(
            self._ids,
            next_sequence_length=None if is_first else 1,
            is_first_iteration=is_first,
            **self._kwargs,
        )
        call = self._model if is_first or self._compiled is None else self._compiled
        output = call(**inputs, return_dict=True)
        self._kwargs = self._model._update_model_kwargs_for_generation(output, self._kwargs)
        scores = output.logits[:, -1].to(copy=True, dtype=torch.float32)
        token = scores.argmax(-1)
        self._ids = torch.cat([self._ids, token[:, None]], dim=-1)
        ended = token < 0
        bool(ended.all())
        if self._clock is not None:
            self._clock.token_generated(self._call, ended)
        self._done = (self._done + 1) % self._new_tokens
        return is_first, time.perf_counter() - began

    def start_over(self) -> None:
        """Leave the request; the next token is the first of another one."""
        self._done = 0

    def _begin(self) -> None:
        self._request.close()
        if self._clock is not None:
            self._call = self._request.enter_context(self._clock.calling("generate"))
            self._call.tokens_are_counted = self._call.is_undisturbed = True
        if self._static is not None:
            self._static.reset()
        self._ids = self._prompt
        self._kwargs = {
            "attention_mask": torch.ones_like(self._prompt),
            "position_ids": torch.arange(self._prompt.shape[1], device=self._prompt.device)[None],
            "use_cache": True,
            cache_argument(self._model): self._static or DynamicCache(config=self._model.config),
        }
        if self._prompt.is_cuda:
            torch.cuda.synchronize()


def _compiled_call(model: Any, is_announced: bool) -> Callable[..., Any]:
    """What ``generate`` compiles of a model.

    Code that was compiled for one model serves another of the same classes, whatever hooks that one
    has (pytorch#117758). Where ft2 listens, each model has code of its own; so it has here.
    """
    config = CompileConfig()
    if is_announced:
        return model.get_compiled_call(config)

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    return torch.compile(own, **config.to_dict())
