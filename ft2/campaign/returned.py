"""What ``generate`` returns beside token ids, with ``return_dict_in_generate``.

Before its fault a trial returns what its golden run returned alone, to the bit. What comes later is
computed in a batch, where its last digits may be others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ft2.campaign.prompt import Prompt
from ft2.forward import cache_made_by, cache_name

__all__ = ["GoldenReturned", "Returned", "asked_for", "whole"]

_LOGITS = frozenset(["logits", "scores"])


@dataclass(eq=False)
class Returned:
    """What one trial's row computed from its fault's step on.

    Attributes
    ----------
    first:
        The fault's step.
    logits:
        Of each step (1, vocabulary), in fp32.
    hidden_states:
        Of each step one for each layer, (1, tokens, size).
    cache:
        Each layer's keys and values in the end, (1, heads, tokens, size).
    """

    first: int
    logits: list[Tensor] = field(default_factory=list)
    hidden_states: list[tuple[Tensor, ...]] = field(default_factory=list)
    cache: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, place: int, prompt: Prompt, last: Tensor, hidden: Sequence[Tensor]) -> None:
        """Take in a step.

        Parameters
        ----------
        place:
            The row in the batch.
        last:
            The logits of the last token, (rows, vocabulary).
        hidden:
            For each layer (rows, tokens, size); empty if they were not computed.
        """
        if prompt.returns & _LOGITS:
            self.logits.append(last[place : place + 1].to(torch.float32, copy=True))
        if "hidden_states" in prompt.returns:
            self.hidden_states.append(tuple(each[place : place + 1].clone() for each in hidden))


@dataclass(frozen=True, eq=False)
class GoldenReturned:
    """What a golden run's call of ``generate`` returned, kept where the test cannot change it.

    Attributes
    ----------
    kind:
        The class of what was returned.
    steps:
        By field, what it holds of each step.
    cache:
        Each layer's keys and values.
    """

    kind: type
    steps: Mapping[str, tuple[Any, ...]]
    cache: Sequence[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, result: Any) -> GoldenReturned:
        """Keep copies of what was returned, in the machine's memory."""
        steps = {
            name: _copied(getattr(result, name), torch.device("cpu"))
            for name in ("scores", "logits", "hidden_states")
            if getattr(result, name) is not None
        }
        layers = [(layer.keys, layer.values) for layer in cache_made_by(result).layers]
        return cls(type(result), steps, _copied(layers, torch.device("cpu")))


def asked_for(config: Any) -> frozenset[str]:
    """Return the fields that a generation config asks for beside the tokens; often none."""
    if not config.return_dict_in_generate:
        return frozenset()
    optional = ("scores", "logits", "hidden_states")
    return frozenset(["cache", *(n for n in optional if getattr(config, f"output_{n}"))])


def whole(
    golden: GoldenReturned,
    sequences: Tensor,
    cache: Any,
    prompt: Prompt,
    trial: Returned | None,
) -> Any:
    """Return what ``generate`` returns.

    Parameters
    ----------
    sequences:
        What was said.
    cache:
        The empty cache that this call made for itself: it is filled.
    trial:
        What the trial computed; None where the call is as in the golden run.
    """
    device = sequences.device
    first = None if trial is None else trial.first
    returned = {name: _copied(steps[:first], device) for name, steps in golden.steps.items()}
    layers = golden.cache
    if trial is not None:
        layers = trial.cache
        later = {
            "logits": tuple(each.clone() for each in trial.logits),
            "scores": tuple(
                _processed(each, prompt, trial.first + at) for at, each in enumerate(trial.logits)
            ),
            "hidden_states": _copied(tuple(trial.hidden_states), device),
        }
        returned = {name: steps + later[name] for name, steps in returned.items()}
    for number, (keys, values) in enumerate(layers):
        cache.update(_copied(keys, device), _copied(values, device), number)
    name = str(cache_name(each.name for each in fields(golden.kind)))
    return golden.kind(sequences=sequences, **{name: cache}, **returned)


def _processed(logits: Tensor, prompt: Prompt, step: int) -> Tensor:
    scores = logits.clone()
    if step < prompt.least:
        scores[:, list(prompt.ends)] = -torch.inf
    return scores


def _copied(values: Any, device: torch.device) -> Any:
    if isinstance(values, Tensor):
        return values.detach().to(device, copy=True)
    return type(values)(_copied(each, device) for each in values)
