"""What a model wears so that its clock hears of calls, forwards and generated tokens."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._dynamo.decorators import skip
from transformers import GenerationMixin, StoppingCriteriaList

from ft2.forward.call import Call, Kind
from ft2.forward.disguise import Disguise
from ft2.forward.undisturbed import is_undisturbed

if TYPE_CHECKING:
    from ft2.forward.clock import Clock

__all__ = ["announcers", "disguises"]


class _CountingCriteria(StoppingCriteriaList):
    """The stopping criteria of one ``generate``, counting the tokens they are asked about."""

    clock: Clock
    call: Call

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended: Tensor = super().__call__(input_ids, scores, **kwargs)
        self.clock.token_generated(self.call, ended)
        return ended


def announcers(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model whose calls are announced: itself, and those it stands on."""
    # Some heads go past their base model, straight to its decoder (OPT).
    base = getattr(model, "base_model", None)
    announcers = [model, base, getattr(base, "decoder", None)]
    return list(dict.fromkeys(each for each in announcers if isinstance(each, nn.Module)))


def disguises(clock: Clock, model: nn.Module) -> list[Disguise]:
    """Return what the announcers of a model wear, in their order, for a clock to hear of calls."""
    found = []
    for position, module in enumerate(announcers(model)):
        announced = _announced_call if position == 0 else _nested_call
        methods: dict[str, Callable[..., Any]] = {"__call__": announced(clock, module)}
        generate = inspect.getattr_static(type(module), "generate", None)
        if position == 0 and inspect.isfunction(generate):
            methods["generate"] = _announced_generate(clock, type(module))
        if position == 0 and isinstance(module, GenerationMixin):
            methods |= _counting_methods(clock, type(module))
        found.append(Disguise(type(module), methods))
    return found


def _announced_call(clock: Clock, module: nn.Module) -> Callable[..., Any]:
    call = type(module).__call__

    @skip
    def announced_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return clock.run(module, call, args, kwargs)

    return announced_call


def _nested_call(clock: Clock, module: nn.Module) -> Callable[..., Any]:
    call = type(module).__call__

    def nested_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Within a forward that was announced, compiled code goes on without a break.
        if torch.compiler.is_compiling() and clock.thread.is_computing:
            return call(module, *args, **kwargs)
        return clock.run(module, call, args, kwargs)

    return nested_call


def _announced_generate(clock: Clock, original: Any) -> Callable[..., Any]:
    # What another one says it need not return as token ids: its forwards tell.
    kind: Kind = "generate" if issubclass(original, GenerationMixin) else "request"

    @functools.wraps(original.generate)
    def generate(module: Any, *args: Any, **kwargs: Any) -> Any:
        with clock.calling(kind) as call:
            try:
                call.result = original.generate(module, *args, **kwargs)
            except Exception as error:
                clock.failed(error)
                raise
        return call.result

    return generate


def _counting_methods(clock: Clock, original: Any) -> dict[str, Callable[..., Any]]:
    @functools.wraps(original._get_stopping_criteria)
    def _get_stopping_criteria(module: Any, *args: Any, **kwargs: Any) -> StoppingCriteriaList:
        criteria = original._get_stopping_criteria(module, *args, **kwargs)
        call = clock.innermost
        if call is None:
            return criteria
        config = kwargs.get("generation_config", args[0] if args else None)
        call.rows_per_request = int(getattr(config, "num_beams", None) or 1)
        call.tokens_are_counted = True
        counting = _CountingCriteria(criteria)
        counting.clock, counting.call = clock, call
        return counting

    @functools.wraps(original.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(module: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        call = clock.innermost
        # Static caches turn the mask into a 4-D one before the forward sees it.
        if call is not None and isinstance(mask, Tensor) and mask.dim() == 2:
            call.attention_mask = mask
        return original.prepare_inputs_for_generation(module, *args, **kwargs)

    @functools.wraps(original._sample)
    def _sample(module: Any, *args: Any, **kwargs: Any) -> Any:
        call = clock.innermost
        if call is None:
            return original._sample(module, *args, **kwargs)
        call.is_undisturbed = is_undisturbed(module, original, original._sample, args, kwargs)
        try:
            return original._sample(module, *args, **kwargs)
        finally:
            call.is_undisturbed = False

    return {
        "_get_stopping_criteria": _get_stopping_criteria,
        "_sample": _sample,
        "prepare_inputs_for_generation": prepare_inputs_for_generation,
    }
