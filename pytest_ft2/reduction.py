"""A test's demand that the protection cuts SDCs by so much, by the ``sdc_reduction`` fixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ft2.campaign import (
    Golden,
    Outcome,
    Run,
    RunSpec,
    is_harness_error,
    is_sticky,
    outcome_of,
    preserved_randomness,
    seed_everything,
)
from ft2.faults import Draw, Fault, fault_model
from ft2.verdict import Pairs, decide_reduction
from pytest_ft2.options import NOISES, Settings
from pytest_ft2.protections import protection_options

__all__ = ["SdcReduction"]

_DUE_BUDGET = 5


class SdcReduction:
    """Meets the same faults with and without the protection, and compares the SDCs.

    Parameters
    ----------
    model:
        The model under test.
    settings:
        Their protection, fault model, encoding and seed are used.
    name:
        What the faults depend on besides the seed: the test's node id.

    Examples
    --------
    ::

        def test_the_protection_cuts_sdcs_by_half(model, prompt, sdc_reduction):
            right = model.generate(**prompt)
            sdc_reduction(
                lambda: torch.equal(model.generate(**prompt), right),
                at_least=50,
                faults=2000,
                confidence=0.95,
            )
    """

    def __init__(self, model: Any, settings: Settings, name: str) -> None:
        self._model = model
        self._settings = settings
        self._name = name

    def __call__(
        self,
        answers_rightly: Callable[[], object],
        *,
        at_least: float,
        faults: int = 500,
        confidence: float | None = None,
    ) -> Pairs:
        """Fail the test unless the protection cuts the SDCs by so much.

        Parameters
        ----------
        answers_rightly:
            Asks the model, and says whether the answer is right: a wrong one returns something
            false or fails an assertion.
        at_least:
            The reduction asked for, in per cent of the SDCs without the protection.
        faults:
            How many faults to inject, each of them twice.
        confidence:
            None compares the observed reduction. A number between 0.5 and 1 demands that the
            one-sided bound of that confidence proves it.

        Returns
        -------
        Pairs
            Before: without the protection; after: with it.

        Raises
        ------
        ValueError
            If an argument has a value that it cannot have.
        """
        if isinstance(faults, bool) or not isinstance(faults, int) or faults < 1:
            raise ValueError(f"faults should be a whole number from 1, not {faults!r}")
        decide_reduction(Pairs(0, 0, 0, 0), at_least, confidence)
        policy = self._settings.protection
        if policy == "none":
            raise ValueError("there is no protection to compare with: --ft2-protection is none")
        bare = RunSpec()
        protected = RunSpec(protection=policy, **protection_options(policy, self._settings))
        with preserved_randomness():
            golden = self._golden(answers_rightly, protected)
            outcomes = []
            for trial in range(faults):
                fault = golden.space.sample(
                    Draw(self._settings.seed, self._name, trial),
                    fault_model(self._settings.fault_model),
                    self._settings.encoding,
                )
                outcomes.append(
                    tuple(
                        self._outcome(answers_rightly, replace(spec, fault=fault), trial)
                        for spec in (bare, protected)
                    )
                )
        self._check_dues(outcomes)
        pairs = Pairs.of(
            (before is Outcome.SDC, after is Outcome.SDC) for before, after in outcomes
        )
        verdict = decide_reduction(pairs, at_least, confidence)
        if verdict.name != "pass":
            pytest.fail(f"{verdict.name}: {verdict.reason}", pytrace=False)
        return pairs

    def _golden(self, answers_rightly: Callable[[], object], protected: RunSpec) -> Golden:
        """Run without a fault, bare, protected and with noise; return what was computed bare."""
        known = []
        for _ in range(2):
            right, run = self._run(answers_rightly, RunSpec(record=True))
            if not right:
                pytest.fail("The model answers wrongly without any fault.", pytrace=False)
            known.append(run.golden)
        golden = known[0]
        if golden is None or golden.space.elements == 0:
            pytest.fail(
                "What was asked did not call the model that the fixture returned, so no fault can "
                "change its answer.",
                pytrace=False,
            )
        if known[1] is None or known[1].digest != golden.digest:
            pytest.fail(
                "Two fault-free runs from the same random state called the model differently or "
                "got different answers.",
                pytrace=False,
            )
        right, run = self._run(answers_rightly, protected)
        if not right:
            pytest.fail(
                f"Protection {protected.protection} alone, without a fault, makes the answer "
                "wrong.",
                pytrace=False,
            )
        if not run.left_first_token:
            pytest.fail(
                f"Protection {protected.protection} never left the first token, so it protected "
                "nothing: pass the cache from forward to forward, or write the decode loop inside "
                "`with ft2.request(model):`.",
                pytrace=False,
            )
        noises = (RunSpec(noise=self._settings.seed + number) for number in range(NOISES))
        if all(self._run(answers_rightly, noise)[0] for noise in noises):
            pytest.fail(
                "The answer counts as right when the model talks noise, so no wrong one is seen.",
                pytrace=False,
            )
        return golden

    def _run(self, answers_rightly: Callable[[], object], spec: RunSpec) -> tuple[bool, Run]:
        """Ask once, from the same random state each time."""
        seed_everything(self._settings.seed, self._name)
        run = Run(spec)
        run.attach(self._model)
        try:
            return bool(answers_rightly()), run
        except Exception as error:
            if any(is_harness_error(each) or is_sticky(each) for each in (error, *run.errors)):
                raise
            if spec.fault is None and spec.noise is None and not isinstance(error, AssertionError):
                raise
            return False, run
        finally:
            run.detach()

    def _outcome(self, answers_rightly: Callable[[], object], spec: RunSpec, trial: int) -> Outcome:
        right, run = self._run(answers_rightly, spec)
        if run.injection is None or not run.injection.landed:
            fault: Fault | None = spec.fault
            pytest.fail(f"Fault {trial} did not land, so it shows nothing: {fault}", pytrace=False)
        return outcome_of(right, bool(run.errors), timed_out=False)

    def _check_dues(self, outcomes: list[tuple[Outcome, ...]]) -> None:
        for place, title in enumerate(("without", "with")):
            dues = sum(each[place] is Outcome.DUE for each in outcomes)
            if 100 * dues > _DUE_BUDGET * len(outcomes):
                pytest.fail(
                    f"{dues} of {len(outcomes)} faults ended in a detected error {title} the "
                    f"protection, over {_DUE_BUDGET} %: find out what raises.",
                    pytrace=False,
                )
