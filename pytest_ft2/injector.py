"""Faults placed by hand, by the ``fault_injector`` fixture."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ft2.campaign import Recorder
from ft2.faults import Draw, Fault, Injection, fault_model, inject
from ft2.layers import unwrap
from pytest_ft2.options import Settings

__all__ = ["FaultInjector"]


class FaultInjector:
    """Draws faults from what the test has computed so far, and injects them.

    Parameters
    ----------
    model:
        The model under test.
    settings:
        Their fault model, encoding and seed are used.
    name:
        What the faults depend on besides the seed: the test's node id.

    Examples
    --------
    ::

        def test_one_bit_rarely_matters(model, prompt, fault_injector):
            right = model.generate(**prompt)
            wrong = 0
            for fault in fault_injector.sample(100):
                with fault_injector.inject(fault) as injection:
                    wrong += not torch.equal(model.generate(**prompt), right)
                assert injection.landed
            assert wrong < 5
    """

    def __init__(self, model: Any, settings: Settings, name: str) -> None:
        self._model = unwrap(model)
        self._settings = settings
        self._name = name
        self._recorder = Recorder(self._model)
        self._drawn = 0

    def sample(self, n: int) -> list[Fault]:
        """Draw `n` faults, uniformly over the steps of all calls made before the first draw.

        Raises
        ------
        ValueError
            If the model was not called yet, or `n` is not positive.
        """
        if n < 1:
            raise ValueError(f"sample(n) draws at least one fault, not {n}")
        self.stop()
        space = self._recorder.golden().space
        if not space.steps:
            raise ValueError(
                "fault_injector.sample() draws from what the model computed: call the model once, "
                "without a fault, before"
            )
        settings = self._settings
        first, self._drawn = self._drawn, self._drawn + n
        return [
            space.sample(
                Draw(settings.seed, self._name, trial),
                fault_model(settings.fault_model),
                settings.encoding,
            )
            for trial in range(first, first + n)
        ]

    def inject(self, fault: Fault) -> AbstractContextManager[Injection]:
        """Inject `fault` inside a context, as :func:`ft2.inject` does."""
        self.stop()
        return inject(self._model, fault)

    def stop(self) -> None:
        """Stop recording what the test computes."""
        self._recorder.stop()
