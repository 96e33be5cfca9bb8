"""What a call of ``generate`` asks for, and whether its rows can be computed with others.

A call is looked at where its decoding begins, when ``generate`` has prepared everything.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers.cache_utils import DynamicCache
from transformers.generation import (
    EosTokenCriteria,
    GenerationMixin,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
)
from transformers.utils import output_capturing

from ft2.campaign.model_state import (
    MODES_OF_THE_CALL,
    UNCHANGING,
    modes_of,
    modules_of,
    state_of,
)
from ft2.campaign.prompt import Prompt
from ft2.campaign.returned import asked_for
from ft2.forward.cache_names import cache_in
from ft2.forward.disguise import Disguise, own_class
from ft2.forward.left_behind import LeftBehind

__all__ = ["Asked", "Watch"]

_UNDERSTOOD = (MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor)
_OF_THE_CALL = frozenset(
    ["attention_mask", "position_ids", "cache", "past_key_values", "use_cache", "logits_to_keep"]
)


@dataclass(frozen=True, eq=False)
class Asked:
    """One call of ``generate``.

    Attributes
    ----------
    model:
        The model that was asked; None when it is gone.
    input_ids:
        int64 (rows, tokens), as they were.
    prompts:
        What each row asks; empty if `alone` says why it cannot be told.
    alone:
        Why the rows cannot be computed with others, or None.
    cache:
        The empty cache that the call made for itself, where it returns it.
    """

    model: weakref.ref[nn.Module]
    input_ids: Tensor
    prompts: tuple[Prompt, ...]
    pad: int
    alone: str | None
    _surroundings: tuple[Any, ...]
    _rows: tuple[Any, ...]
    cache: Any = None

    def is_as(self, other: Asked) -> bool:
        """Whether another call asks exactly the same of the same weights."""
        return (
            self.alone is None
            and other.alone is None
            and self.model() is other.model()
            and self.prompts == other.prompts
            and self.pad == other.pad
            and self._rows == other._rows
            and self._surroundings == other._surroundings
            and self.input_ids.device == other.input_ids.device
            and self.input_ids.dtype == other.input_ids.dtype
        )

    @property
    def paddings(self) -> list[int]:
        """How many tokens of padding stand before each row's prompt."""
        return [self.input_ids.shape[1] - len(prompt.tokens) for prompt in self.prompts]

    def sequences(self, said: list[list[int]]) -> Tensor:
        """Return what ``generate`` returns when its rows say this: int64 (rows, tokens)."""
        longest = max(map(len, said))
        new = [row + [self.pad] * (longest - len(row)) for row in said]
        return torch.cat([self.input_ids, self.input_ids.new_tensor(new)], 1)

    def is_current(self) -> bool:
        """Whether what the model computes here and now is what it computed when it was asked.

        Its weights are compared, its modules' attributes, its configuration, its classes' forwards,
        and torch's modes: a fixture may have changed them for its test alone.
        """
        model = self.model()
        if model is None:
            return False
        _, modes, state = self._surroundings
        lasting = slice(MODES_OF_THE_CALL, None)
        return bool(
            modes[lasting] == modes_of(model)[lasting] and state == state_of(modules_of(model))
        )


class Watch:
    """Tells of each greedy or sampling decode of a model, and may answer in its place.

    Parameters
    ----------
    model:
        A model that is listened to.
    answer:
        Given what is asked; returns what ``generate`` is to return, or None to have it decode.
    hear:
        Given what was asked, and what its decoding returned.
    """

    def __init__(
        self,
        model: nn.Module,
        answer: Callable[[Asked], Any] = lambda asked: None,
        hear: Callable[[Asked, Any], object] = lambda asked, result: None,
    ) -> None:
        self._model = model
        self._answer, self._hear = answer, hear
        self._watched: _Watched | None = None
        if hasattr(type(model), "_sample"):
            known = _WATCHED.get(model)
            if known is None or known.disguise.original is not type(model):
                known = _WATCHED[model] = _Watched(type(model))
            self._watched = known
            known.watch = self
            known.disguise.put_on(model)

    def sample(self, original: Any, module: Any, input_ids: Tensor, **given: Any) -> Any:
        """Decode as `original` does, unless the answer is known."""
        asked = _asked(module, input_ids, given)
        said = self._answer(asked)
        if said is None:
            left = LeftBehind(module)
            said = original._sample(module, input_ids, **given)
            changed = left.changed(module)
            if changed is not None and asked.alone is None:
                reason = f"its forward leaves {changed} behind, which the test could read"
                asked = replace(asked, alone=reason, prompts=(), cache=None)
            self._hear(asked, said)
        return said

    def stop(self) -> None:
        """Leave the model as it was before."""
        if self._watched is not None:
            self._watched.disguise.take_off(self._model)
            self._watched.watch = None


class _Watched:
    """What a model wears while it is watched: each trial has a watch, a class costs more."""

    def __init__(self, original: Any) -> None:
        self.watch: Watch | None = None
        own: Any = own_class(original)
        own_way = own._sample is not GenerationMixin._sample

        def _sample(module: Any, input_ids: Tensor, *args: Any, **given: Any) -> Any:
            if args or own_way or self.watch is None:
                return original._sample(module, input_ids, *args, **given)
            return self.watch.sample(original, module, input_ids, **given)

        self.disguise = Disguise(original, {"_sample": _sample})


_WATCHED: weakref.WeakKeyDictionary[nn.Module, _Watched] = weakref.WeakKeyDictionary()


def _asked(model: nn.Module, input_ids: Tensor, given: dict[str, Any]) -> Asked:
    config: Any = given["generation_config"]
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    pad = getattr(config, "_pad_token_tensor", None)
    modules = modules_of(model)
    # Most prompts are short: lists of them are compared faster than tensors.
    tokens, seen, places = input_ids.tolist(), _listed(mask), _listed(positions)
    paddings = _paddings(input_ids, mask, seen)
    alone = next(_reasons(modules, input_ids, paddings, places, given), None)
    return Asked(
        model=weakref.ref(model),
        input_ids=input_ids.clone(),
        prompts=() if alone or paddings is None else tuple(_prompts(tokens, paddings, given)),
        pad=0 if pad is None else int(pad),
        alone=alone,
        _surroundings=(_settings(config), modes_of(model), state_of(modules)),
        _rows=(tokens, seen, places),
        cache=cache_in(given) if config.return_dict_in_generate and not alone else None,
    )


def _paddings(input_ids: Tensor, mask: Tensor | None, seen: Any) -> list[int] | None:
    """Return how many tokens of padding stand before each row; None if some stand elsewhere."""
    if mask is None:
        return [0] * len(input_ids)
    if mask.shape != input_ids.shape:
        return None
    paddings = []
    for row in seen:
        padding = row.index(1) if 1 in row else len(row)
        real = len(row) - padding
        if not real or row != [0] * padding + [1] * real:
            return None
        paddings.append(padding)
    return paddings


def _reasons(
    modules: list[nn.Module],
    input_ids: Tensor,
    paddings: list[int] | None,
    places: Any,
    given: dict[str, Any],
) -> Iterator[str]:
    """Yield why the call cannot be computed in a batch with others."""
    config = given["generation_config"]
    if config.do_sample:
        yield "it samples"
    if not isinstance(config.output_hidden_states, bool | None):
        yield "it asks for some hidden states (output_hidden_states)"
    if config.output_attentions:
        yield "it asks for attention weights (output_attentions)"
    if config.return_dict_in_generate and len(input_ids) > 1:
        # What rows that have ended return while others go on hangs on these.
        yield "it asks for more than the token ids of several prompts (return_dict_in_generate)"
    if given.get("streamer") is not None:
        yield "it streams"
    if not given.get("use_cache") or config.cache_implementation is not None:
        yield "it does not decode with the usual cache"
    if getattr(config, "prefill_chunk_size", None) is not None:
        yield "it prefills in chunks"
    past: Any = cache_in(given)
    if type(past) is not DynamicCache or past.get_seq_length() or _is_users(past):
        yield "it passes a cache"
    for processor in given["logits_processor"]:
        if type(processor) not in _UNDERSTOOD:
            yield f"it uses {type(processor).__name__}"
    for criterion in given["stopping_criteria"]:
        if type(criterion) not in (MaxLengthCriteria, EosTokenCriteria):
            yield f"it stops by {type(criterion).__name__}"
    extra = [name for name, value in given.items() if name not in _KNOWN and value is not None]
    if any(given[name] is not False for name in extra):
        yield f"it passes {extra[0]}"
    yield from _reasons_in_model(modules)
    if torch.is_autocast_enabled(input_ids.device.type):
        yield "it runs under autocast"
    if _get_current_function_mode_stack() or _get_current_dispatch_mode_stack():
        yield "torch functions are overridden"
    if paddings is None:
        yield "its padding is not on the left"
    elif config.return_dict_in_generate and any(paddings):
        yield "it asks for more than the token ids of a padded prompt (return_dict_in_generate)"
    elif places is not None and not _count_up(places, paddings, input_ids.shape[1]):
        yield "it passes position_ids"


_KNOWN = _OF_THE_CALL | {
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "synced_gpus",
    "streamer",
    "output_hidden_states",
}


def _is_users(cache: Any) -> bool:
    return bool(getattr(cache, "_is_user_defined", False))


def _count_up(places: list[Any], paddings: list[int], width: int) -> bool:
    """Whether positions, given for all rows or for each, count the tokens that are not padding."""
    if len(places) == 1:
        places = places * len(paddings)
    return len(places) == len(paddings) and all(
        isinstance(row, list) and row[padding:] == list(range(width - padding))
        for row, padding in zip(places, paddings, strict=True)
    )


def _reasons_in_model(modules: list[nn.Module]) -> Iterator[str]:
    if _module._has_any_global_hook():
        yield "hooks are registered for all modules"
    for each in modules:
        own = each.__dict__
        if each.training:
            yield "the model is in training mode"
        hooks = own["_forward_hooks"]
        if own["_forward_pre_hooks"] or (hooks and not all(map(_only_listens, hooks.values()))):
            yield f"a hook is registered on {_name(modules, each)}"
        if "forward" in own or own.get("_compiled_call_impl"):
            yield f"the forward of {_name(modules, each)} is exchanged"
    parameters = (each for module in modules for each in module._parameters.values())
    if len({each.device for each in parameters if each is not None}) > 1:
        yield "the model is on several devices"


def _name(modules: list[nn.Module], module: nn.Module) -> str:
    model = modules[0]
    return next(name for name, each in model.named_modules() if each is module) or "the model"


def _only_listens(hook: Any) -> bool:
    """Whether a hook is one that transformers leaves on a model once it has shown its states."""
    return getattr(hook, "__module__", None) == output_capturing.__name__


def _prompts(
    tokens: list[list[int]], paddings: list[int], given: dict[str, Any]
) -> Iterator[Prompt]:
    width = len(tokens[0])
    most, ends = None, ()
    for criterion in given["stopping_criteria"]:
        if isinstance(criterion, MaxLengthCriteria):
            most = criterion.max_length - width
        else:
            ends = tuple(criterion.eos_token_id.reshape(-1).tolist())
    least = 0
    for processor in given["logits_processor"]:
        if isinstance(processor, MinLengthLogitsProcessor):
            least = max(least, processor.min_length - width)
        else:
            least = max(least, processor.min_new_tokens)
    returns = asked_for(given["generation_config"])
    for row, padding in zip(tokens, paddings, strict=True):
        yield Prompt(tuple(row[padding:]), int(most or 0), least, ends, returns)


def _settings(config: Any) -> dict[str, Any]:
    """What ``generate`` was told; lists that it was given are the caller's, and are copied."""
    return {
        name: value if type(value) in UNCHANGING else _comparable(value)
        for name, value in vars(config).items()
        if name[:1] != "_"
    }


def _comparable(value: Any) -> Any:
    """Copy what may change, and list tensors, of which no comparison is true or false."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_comparable(each) for each in value]
    if isinstance(value, dict):
        return {name: _comparable(each) for name, each in value.items()}
    return value


def _listed(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.tolist()
