"""Run a model on prompts, and note between which bounds its layers' outputs stay."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ft2.forward import Order, Vectors
from ft2.layers import unwrap
from ft2.protection.columns import Columns
from ft2.protection.places import Place, tap_places
from ft2.protection.policies import profiled_policy
from ft2.protection.profile import ModelFacts, Profile, PromptFacts

__all__ = ["profile"]

Prompt = str | Sequence[int] | Tensor | Mapping[str, Tensor]


def profile(
    model: nn.Module,
    prompts: Prompt | Iterable[Prompt],
    policy: str,
    *,
    tokenizer: Any = None,
    max_new_tokens: int = 32,
    progress: bool = True,
) -> Profile:
    """Profile the bounds that a policy needs, on prompts that are like those of the real use.

    Each prompt runs by itself, without padding, and the model continues it greedily: what is
    computed for generated tokens counts too (FT2, HPDC '25, section 3.2: bounds are obtained from a
    forward over such data; the paper's baselines take 20 % of the training set).

    Parameters
    ----------
    model:
        A causal language model in evaluation mode, as it will be protected: the same weights in the
        same dtype.
    prompts:
        Texts; lists of token ids; int64 tensors (tokens,) or (prompts, tokens); or mappings such as
        a tokenizer returns, whose ``attention_mask`` tells padding. One of these or several.
    policy:
        ``ranger``, ``maximals``, ``global-clipper`` or ``ft2-offline``.
    tokenizer:
        For texts.
    max_new_tokens:
        How many tokens the model adds to each prompt; with 0 the prompts alone are profiled.
    progress:
        Whether to show a progress bar, where the output is a terminal.

    Returns
    -------
    Profile
        For ``ft2.protect(model, policy, bounds=profile)``, or to be saved.

    Raises
    ------
    TypeError
        If `model` is not a module, or a prompt is none of these.
    ValueError
        If the policy has no bounds to profile or the model no layer for it, there is no prompt, the
        model is in training mode, or a layer puts out NaN or Inf.
    """
    model = unwrap(model)
    places = profiled_policy(policy).places(model)
    if model.training:
        raise ValueError("a model in training mode puts out other numbers: call model.eval() first")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is a number of tokens from 0, not {max_new_tokens}")
    inputs = [each for prompt in _listed(prompts) for each in _single(prompt, tokenizer)]
    if not inputs:
        raise ValueError("there are no prompts to profile bounds on")
    seen = _Seen(places)
    # What wraps the model (an adapter, say) can have no generate; what is inside has.
    device = next((each.device for each in model.parameters() if not each.is_meta), None)
    tokens = 0
    taps = tap_places(model, places, Order.OBSERVE, seen.whole, seen.vectors)
    try:
        with torch.no_grad():
            for number, given in enumerate(tqdm(inputs, "profiling", disable=_hidden(progress))):
                tokens += _run(model, {k: v.to(device) for k, v in given.items()}, max_new_tokens)
                seen.check(f"prompt {number}")
    finally:
        for each in taps:
            each.remove()
    made = Profile(
        policy=policy,
        model=ModelFacts.of(model),
        prompts=PromptFacts(len(inputs), tokens, _hash(inputs, max_new_tokens)),
        bounds=seen.bounds(),
    )
    if made.unseen:
        warnings.warn(
            f"{len(made.unseen)} of {len(made.bounds)} layers saw no token of the prompts and stay "
            f"without bounds ({made.unseen[0]} first): profile on more prompts",
            stacklevel=2,
        )
    return made


def _hidden(progress: bool) -> bool | None:
    """What tqdm is told: None hides the bar unless there is a terminal."""
    return None if progress else True


def _run(model: Any, given: dict[str, Tensor], max_new_tokens: int) -> int:
    """Run the model on one prompt; return how many tokens went through it."""
    length = given["input_ids"].shape[1]
    if max_new_tokens == 0:
        model(**given)
        return length
    if not hasattr(model, "generate"):
        raise TypeError(
            f"this {type(model).__name__} has no generate: profile it with max_new_tokens=0"
        )
    said: Tensor = model.generate(
        **given,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=False,
    )
    # The last token is not read again.
    return max(length, said.shape[1] - 1)


def _listed(prompts: Any) -> Iterator[Any]:
    if isinstance(prompts, (str, Tensor, Mapping)) or (
        isinstance(prompts, Sequence) and prompts and all(isinstance(each, int) for each in prompts)
    ):
        yield prompts
    else:
        yield from prompts


def _single(prompt: Any, tokenizer: Any) -> Iterator[dict[str, Tensor]]:
    """Yield the inputs of each prompt in `prompt`, with one row and no padding."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise TypeError("prompts that are texts need a tokenizer: pass tokenizer=")
        yield from _single(dict(tokenizer(prompt, return_tensors="pt")), None)
        return
    if isinstance(prompt, Sequence):
        prompt = torch.tensor(list(prompt))
    if isinstance(prompt, Tensor):
        prompt = {"input_ids": prompt}
    if not isinstance(prompt, Mapping) or not isinstance(prompt.get("input_ids"), Tensor):
        raise TypeError(
            "a prompt is a text, token ids in a list or a tensor, or a mapping with input_ids, not "
            f"{type(prompt).__name__}"
        )
    ids = torch.atleast_2d(prompt["input_ids"])
    if ids.dim() != 2 or ids.is_floating_point() or not ids.shape[1]:
        raise TypeError(
            "token ids are whole numbers of shape (tokens,) or (prompts, tokens), at least one"
        )
    mask = prompt.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else torch.atleast_2d(mask) > 0
    for row, shown in zip(ids, real, strict=True):
        kept = row[shown][None]
        yield {"input_ids": kept, "attention_mask": torch.ones_like(kept)}


def _hash(inputs: list[dict[str, Tensor]], max_new_tokens: int) -> str:
    ids = [each["input_ids"][0].tolist() for each in inputs]
    text = json.dumps({"prompts": ids, "max_new_tokens": max_new_tokens})
    return hashlib.sha256(text.encode()).hexdigest()


class _Seen:
    """The least and largest number seen at each of some places."""

    def __init__(self, places: list[Place]) -> None:
        self._names = [place.name for place in places]
        self._low: dict[str, Tensor] = {}
        self._high: dict[str, Tensor] = {}

    def whole(self, place: Place) -> Callable[[Tensor], Tensor]:
        columns = Columns(place.ranges)

        def observe(output: Tensor) -> Tensor:
            part = columns.take(output).detach()
            if part.numel():
                self._note(place.name, part.amin(), part.amax())
            return output

        return observe

    def vectors(self, group: list[Place]) -> Callable[[Vectors], Tensor]:
        columns = Columns(group[0].ranges)

        def observe(vectors: Vectors) -> Tensor:
            part = columns.take(vectors.values).detach()
            # Some experts are given nothing, rather than left out: that tells nothing.
            speaks = (vectors.values.detach() != 0).any(1)
            for place in group:
                own = speaks
                expert = getattr(place.layer, "expert", None)
                if vectors.experts is not None:
                    own = own & (vectors.experts == expert)
                chosen = part[own]
                if chosen.numel():
                    self._note(place.name, chosen.amin(), chosen.amax())
            return vectors.values

        return observe

    def _note(self, name: str, low: Tensor, high: Tensor) -> None:
        # Both keep NaN: it is found when the prompt has run.
        self._low[name] = torch.minimum(self._low.get(name, low), low.to(self._at(name, low)))
        self._high[name] = torch.maximum(self._high.get(name, high), high.to(self._at(name, high)))

    def _at(self, name: str, value: Tensor) -> torch.device:
        known = self._low.get(name)
        return value.device if known is None else known.device

    def check(self, prompt: str) -> None:
        """Check that all numbers were finite; this waits for the device."""
        for name in self._low:
            if not torch.isfinite(self._low[name]) or not torch.isfinite(self._high[name]):
                raise ValueError(
                    f"{name} puts out NaN or Inf on {prompt}, without any fault: profile prompts "
                    "that the model can compute in its dtype"
                )

    def bounds(self) -> dict[str, tuple[float, float] | None]:
        """Return ``(low, high)`` of each place; None where nothing was seen."""
        return {
            name: (float(self._low[name]), float(self._high[name])) if name in self._low else None
            for name in self._names
        }
