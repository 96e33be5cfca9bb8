"""Attach a policy to a model, and take it off again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from torch import nn

from ft2.forward import Clock, Forward, Listener
from ft2.layers import unwrap
from ft2.protection.policies import make_policy
from ft2.protection.policy import Policy, Recomputations
from ft2.protection.profile import Profile
from ft2.protection.settings import PolicySettings

__all__ = ["Detection", "Protection", "protect"]


@dataclass(frozen=True)
class Detection:
    """What a policy corrected in one forward.

    Attributes
    ----------
    call, step:
        Which call of the model, counted since ft2 began to listen to it, and which of its steps.
    corrected:
        Corrected values of each request of the call, in this forward.
    """

    call: int
    step: int
    corrected: tuple[int, ...]


class _Announcer(Listener):
    """Tells of each forward in which a policy corrected something; knows no model."""

    def __init__(self, policy: Policy, on_detection: Callable[[Detection], Any]) -> None:
        self._policy = policy
        self._on_detection = on_detection
        self._before: list[int] = []

    def forward_started(self, forward: Forward) -> None:
        self._before = self._policy.corrected(forward.call)

    def forward_finished(self, forward: Forward, output: Any) -> None:
        after = self._policy.corrected(forward.call)
        new = tuple(now - before for now, before in zip(after, self._before, strict=True))
        if any(new):
            self._on_detection(Detection(forward.call.index, forward.step, new))


class Protection:
    """A policy on a model, from :func:`protect` until :meth:`remove`.

    Also a context manager, which removes it.

    Attributes
    ----------
    model:
        The protected model, the same object as before.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: str,
        settings: PolicySettings,
        on_detection: Callable[[Detection], Any] | None,
    ) -> None:
        self.model = unwrap(model)
        self._policy = make_policy(policy, settings)
        self._announcer = None if on_detection is None else _Announcer(self._policy, on_detection)
        layers = self._policy.find(self.model)
        self._clock = Clock.listen(self.model, self._policy)
        try:
            self._taps = self._policy.attach(self.model, layers, self._clock)
        except Exception:
            self._clock.dismiss(self.model, self._policy)
            raise
        if self._announcer is not None:
            Clock.listen(self.model, self._announcer)
        self._attached = True

    @property
    def policy(self) -> Policy:
        """What is attached."""
        return self._policy

    @property
    def counts(self) -> list[int]:
        """Corrected values of each request, oldest first, of the last 1,000 calls.

        Reading them waits for the device.
        """
        return self._policy.counts

    @property
    def recomputations(self) -> list[Recomputations]:
        """What became of the detections of ``ft2-recompute``, oldest call first; else empty."""
        return self._policy.recomputations

    @property
    def left_first_token(self) -> bool:
        """Whether anything was protected after a first token: without that, nothing is."""
        return self._policy.left_first_token

    def remove(self) -> None:
        """Leave the model as it was before. Counts can still be read. Safe to call again."""
        if not self._attached:
            return
        self._attached = False
        for attached in self._taps:
            attached.remove()
        self._clock.dismiss(self.model, self._policy)
        if self._announcer is not None:
            self._clock.dismiss(self.model, self._announcer)

    def __enter__(self) -> Protection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def protect(
    model: nn.Module,
    policy: str = "ft2",
    scale: float | None = None,
    on_detection: Callable[[Detection], Any] | None = None,
    *,
    bounds: Profile | str | os.PathLike[str] | None = None,
    correction: Literal["clip", "zero"] | None = None,
    detect: Literal["checksums", "bounds", "checksums+bounds"] | None = None,
    group: int | None = None,
) -> Protection:
    """Protect a model against soft errors.

    Parameters
    ----------
    model:
        A causal language model. It stays the same object: ``state_dict``, ``save_pretrained``,
        ``deepcopy``, ``.to()`` and ``isinstance`` are as before, and a copy is unprotected. Until
        the protection is removed, its modules are of classes made of their own.
    policy:
        ``ft2``: bounds learned on each request's first token restrict the critical layers on the
        later ones (FT2, HPDC '25). ``none``: nothing. With bounds profiled offline: ``ranger``
        (outputs of activations), ``maximals`` (last projections of attention and of the MLP),
        ``global-clipper`` (values and outputs of attention) and ``ft2-offline`` (FT2's layers).
        ``ft2-recompute`` detects wrong values on every projection, from the first token on, and
        computes such a step again (:mod:`ft2.protection.policies.recompute`); what it counts as
        corrected are rows of steps.
    scale:
        How far bounds are widened, at least 1; None: as the policy has it, 2 for ``ft2`` (FT2,
        section 4.2.1) and ``ft2-recompute``, 1.3 for ``maximals``, 1 for the others.
    on_detection:
        Called with a :class:`Detection` after each forward in which something was corrected.
        Finding that out waits for the device in each forward; without it nothing does.
    bounds:
        What :func:`ft2.profile` returned for this policy and this model, or the file that it was
        saved in. ``ft2-recompute`` can take those of ``ft2-offline``, for the first token.
    correction:
        What ``ft2`` and ``ft2-offline`` do with values out of bounds: ``clip`` them to the bound,
        as the paper has it (FT2, section 4.3), or set them to ``zero``, as its code does. The
        others have a correction of their own.
    detect:
        What ``ft2-recompute`` detects by: ``checksums`` of every projection, which is the default,
        ``bounds`` on critical layers (learned on the first token), or ``checksums+bounds``.
    group:
        How many columns one of its checksums has, where that divides a layer's; 0: all. None: 16
        in bf16, else all. Smaller groups see smaller errors.

    Returns
    -------
    Protection
        The handle: ``.counts``, ``.remove()``, and a context manager.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        If the policy is unknown, the scale below 1 or infinite, or the model has no layer to
        protect; a :class:`ProfileError` if the policy needs a profile and has none, or another
        model's.
    """
    profile = bounds if bounds is None or isinstance(bounds, Profile) else Profile.load(bounds)
    settings = PolicySettings(scale, correction, profile, detect, group)
    return Protection(model, policy, settings, on_detection)
