"""One run of the thing under test: what is attached to its model, and what was seen.

A campaign's runs differ only in what is attached: a recorder, a fault, a protection, noise. Whoever
runs the test attaches the run to the model as soon as there is one, or lets it meet the model
before the run begins.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ft2.campaign.asked import Asked, Watch
from ft2.campaign.exponents import ExponentReader
from ft2.campaign.golden import Golden, Recorder
from ft2.campaign.noise import talk_noise
from ft2.campaign.replies import Replies
from ft2.campaign.returned import GoldenReturned
from ft2.faults import Fault, Injection, inject
from ft2.forward import Call, Clock, Forward, Listener
from ft2.layers import unwrap
from ft2.protection import Protection, protect

__all__ = ["Run", "RunSpec"]


@dataclass(frozen=True)
class RunSpec:
    """What to attach.

    Attributes
    ----------
    protection:
        Name of the policy.
    bounds:
        The file with its profiled bounds, for policies that need them.
    correction:
        What it does with values out of bounds; None: as it has it.
    fault:
        The fault to inject, if any.
    record:
        Whether to record what is computed.
    noise:
        Seed of the noise to put in place of the logits, if any.
    exponents:
        Reads the exponents of what is recorded, if anything is to.
    """

    protection: str = "none"
    bounds: str | None = None
    correction: Literal["clip", "zero"] | None = None
    fault: Fault | None = None
    record: bool = False
    noise: int | None = None
    exponents: ExponentReader | None = None


class Run(Listener):
    """Attaches a :class:`RunSpec` to a model, and remembers the first error leaving the model.

    Parameters
    ----------
    spec:
        What to attach.
    replies:
        What the model's calls say, computed before with the fault: then no fault is attached, and
        whatever is asked behind the fault and is not known runs with the protection alone.

    Attributes
    ----------
    asked:
        Of a recorded run, what each call of ``generate`` asked, by the call's number.
    returned:
        Of a recorded run, what calls returned beside the tokens, by the call's number.
    calls:
        How many calls of the model began.
    error:
        The first exception that left a call of the model, or None.
    attach_error:
        Why the run could not be attached to the model, or None.
    injection:
        What became of the fault, or None without one.
    """

    def __init__(self, spec: RunSpec, replies: Replies | None = None) -> None:
        self.spec = spec
        self.asked: dict[int, Asked] = {}
        self.returned: dict[int, GoldenReturned] = {}
        self._replies = replies
        self.calls = 0
        self.model: nn.Module | None = None
        self.errors: list[Exception] = []
        self.attach_error: Exception | None = None
        self.injection: Injection | None = None if replies is None else replies.injection
        self._protection: Protection | None = None
        self._recorder: Recorder | None = None
        self._attached = ExitStack()
        self._met: Any = None

    def meet(self, model: Any) -> None:
        """Remember the model that :meth:`begin` is to attach to."""
        self._met = model

    def begin(self) -> None:
        """Attach to the model that was met, if any; raises as :meth:`attach` does."""
        if self._met is not None:
            self.attach(self._met)
            self._met = None

    def attach(self, model: Any) -> None:
        """Attach everything to `model`, in place of a model attached before.

        Raises
        ------
        TypeError
            If `model` is not a module.
        ValueError
            If the model has no layer for the fault or the protection.
        """
        try:
            self._attach(unwrap(model))
        except Exception as error:
            self.attach_error = error
            raise

    def _attach(self, model: nn.Module) -> None:
        if model is self.model:
            return
        self.detach()
        self._protection = None
        self.model = model
        with ExitStack() as attached:
            clock = Clock.listen(model, self)
            attached.callback(clock.dismiss, model, self)
            if self.spec.record:
                self._recorder = Recorder(model, self.spec.exponents)
                attached.callback(self._recorder.stop)
            if self.spec.noise is not None:
                attached.callback(talk_noise(model, self.spec.noise).remove)
            if self._replies is not None:
                attached.callback(Watch(model, self._replies.answer).stop)
            else:
                self._protection = self._protect(model, attached)
                if self.spec.record:
                    attached.callback(Watch(model, self._note, self._keep).stop)
                if self.spec.fault is not None:
                    self.injection = attached.enter_context(inject(model, self.spec.fault))
            self._attached = attached.pop_all()

    def _protect(self, model: nn.Module, attached: ExitStack) -> Protection | None:
        if self.spec.protection == "none":
            return None
        protection = protect(
            model,
            policy=self.spec.protection,
            bounds=self.spec.bounds,
            correction=self.spec.correction,
        )
        return attached.enter_context(protection)

    def detach(self) -> None:
        """Leave the model as it was. What was seen can still be read. Safe to call again."""
        self._attached.close()
        self.model = None

    def call_started(self, call: Call) -> None:
        self.calls += 1
        if self._replies is not None:
            self._replies.begin(self.calls - 1, call.kind)

    def forward_started(self, forward: Forward) -> None:
        # Most runs with replies compute nothing, and attaching costs more than all else they do.
        if self._replies is None or self._protection is not None or self.model is None:
            return
        try:
            self._protection = self._protect(self.model, self._attached)
        except Exception as error:
            self.attach_error = error
            raise
        if self._protection is not None:
            # What listens since this forward began is not told of its beginning.
            self._protection.policy.forward_started(forward)

    def _note(self, asked: Asked) -> None:
        self.asked[self.calls - 1] = asked

    def _keep(self, asked: Asked, result: Any) -> None:
        # Its decoding may have shown that it must go alone.
        self.asked[self.calls - 1] = asked
        if any(prompt.returns for prompt in asked.prompts):
            self.returned[self.calls - 1] = GoldenReturned.of(result)

    def call_failed(self, error: Exception) -> None:
        # One that passes through several calls, a forward and its generate, is one error.
        if not any(known is error for known in self.errors):
            self.errors.append(error)

    @property
    def error(self) -> Exception | None:
        """The first exception that left a call of the model, or None."""
        return self.errors[0] if self.errors else None

    @property
    def golden(self) -> Golden | None:
        """What was recorded; None if nothing was to be, or no model was attached."""
        return None if self._recorder is None else self._recorder.golden()

    @property
    def corrected(self) -> int:
        """How many values the protection corrected."""
        live = 0 if self._protection is None else sum(self._protection.counts)
        return live if self._replies is None else live + self._replies.corrected

    @property
    def recomputed(self) -> int:
        """How many steps the protection computed again, each for one request."""
        if self._protection is None:
            return 0
        return sum(sum(each.recomputed) for each in self._protection.recomputations)

    @property
    def left_first_token(self) -> bool:
        """Whether the protection protected anything after a first token."""
        return self._protection is not None and self._protection.left_first_token
