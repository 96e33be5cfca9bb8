"""Bounds profiled offline, for one policy on one model, as a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from ft2.layers import unwrap
from ft2.layers.identity import identify

__all__ = ["ModelFacts", "Profile", "ProfileError", "PromptFacts"]

_FORMAT = "ft2 profile"
_VERSION = 1


class ProfileError(ValueError):
    """A profile is missing, unreadable, or not of this model and policy."""


@dataclass(frozen=True)
class ModelFacts:
    """What tells the profiled model from another.

    Attributes
    ----------
    kind:
        The model's class.
    fingerprint:
        A hash of its class, its configuration, its parameters' names and shapes, and a few weights
        of each (:func:`ft2.layers.identity.identify`).
    dtype:
        In what precision its parameters are.
    """

    kind: str
    fingerprint: str
    dtype: str

    @classmethod
    def of(cls, model: nn.Module) -> ModelFacts:
        """Return the facts of a model; reads a few weights."""
        identity = identify(model)
        return cls(type(model).__name__, identity.fingerprint, identity.dtype)


@dataclass(frozen=True)
class PromptFacts:
    """What was profiled on.

    Attributes
    ----------
    count, tokens:
        How many prompts, and how many tokens went through the model, generated ones included.
    sha256:
        A hash of the prompts' token ids and of how many tokens were generated for each.
    """

    count: int
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Profile:
    """The least and largest number that each protected layer put out over all prompts.

    Attributes
    ----------
    policy:
        The policy whose layers were profiled.
    model, prompts:
        What was profiled, and on what.
    bounds:
        ``(low, high)`` of each layer, by its name, as they were seen and not widened; None for an
        expert that no token of the prompts was routed to.
    """

    policy: str
    model: ModelFacts
    prompts: PromptFacts
    bounds: Mapping[str, tuple[float, float] | None]

    @property
    def unseen(self) -> list[str]:
        """The layers that no token went through: they stay unbounded."""
        return [name for name, bounds in self.bounds.items() if bounds is None]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON; an older file is replaced at once or not at all."""
        document = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        target = Path(path)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
        partial.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ProfileError
            If there is no such file, or it holds no profile.
        """
        try:
            status = os.stat(path)
            return _read(Path(path).absolute(), status.st_mtime_ns, status.st_size)
        except OSError as error:
            raise ProfileError(
                f"the profile {os.fspath(path)} cannot be read: {error.strerror}"
            ) from error

    def check(self, model: nn.Module, policy: str, layers: Iterable[str]) -> None:
        """Check that the profile is that of a policy on a model.

        Parameters
        ----------
        model:
            The model to be protected.
        policy:
            The policy's name.
        layers:
            Names of the layers that the policy protects in it.

        Raises
        ------
        ProfileError
            If it is not.
        """
        if self.policy != policy:
            raise ProfileError(
                f"the profile was made for the policy {self.policy}, not for {policy}: profile "
                f"with policy={policy!r}"
            )
        facts = ModelFacts.of(unwrap(model))
        if facts.dtype != self.model.dtype:
            raise ProfileError(
                f"the profile was made on {self.model.dtype} weights, and this {facts.kind} has "
                f"{facts.dtype} ones: profile the model as it will be protected"
            )
        if facts.fingerprint != self.model.fingerprint:
            raise ProfileError(
                f"the profile was made on another model ({self.model.kind}) than this "
                f"{facts.kind}, or on other weights: profile this one"
            )
        if set(layers) != set(self.bounds):
            raise ProfileError(
                f"the profile's layers are not those that {policy} protects in this {facts.kind}: "
                "profile it again"
            )


@lru_cache(maxsize=16)
def _read(path: Path, changed: int, size: int) -> Profile:
    """Read a file once for as long as it stays as it is: each trial asks for it."""
    try:
        return _profile(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProfileError(f"{path.name} is no profile that ft2.profile(...).save wrote") from error


def _profile(document: Any) -> Profile:
    if document["format"] != _FORMAT or document["version"] != _VERSION:
        raise ValueError(document["format"])
    model, prompts, policy = document["model"], document["prompts"], document["policy"]
    texts = [policy, *(model[name] for name in ("kind", "fingerprint", "dtype")), prompts["sha256"]]
    numbers = [prompts["count"], prompts["tokens"]]
    if not all(isinstance(each, str) for each in texts):
        raise TypeError("text")
    if not all(isinstance(each, int) and each > 0 for each in numbers):
        raise TypeError("count")
    return Profile(
        policy=policy,
        model=ModelFacts(**model),
        prompts=PromptFacts(**prompts),
        bounds={str(name): _bounds(pair) for name, pair in document["bounds"].items()},
    )


def _bounds(pair: Any) -> tuple[float, float] | None:
    if pair is None:
        return None
    low, high = (float(each) for each in pair)
    if not -math.inf < low <= high < math.inf:
        raise ValueError(pair)
    return low, high
