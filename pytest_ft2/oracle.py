"""Whether a test's assertion hears wrong answers: tried with noise, before trials and behind."""

from __future__ import annotations

from collections.abc import Callable

from ft2.campaign import RunSpec
from pytest_ft2.goldens import GoldenRunner
from pytest_ft2.items import ChunkItem
from pytest_ft2.judgement import machine_error, sticky_error
from pytest_ft2.options import NOISES
from pytest_ft2.plan import Payload
from pytest_ft2.reports import send
from pytest_ft2.timeouts import trial_timeout

__all__ = ["Oracle"]


class Oracle:
    """Tries the assertions of a campaign's parameter sets, and reports what it finds.

    Parameters
    ----------
    chunk:
        Whose reports say so.
    goldens:
        Runs the tests.
    report_problem:
        Takes in a sentence on what could not be found out.
    """

    def __init__(
        self, chunk: ChunkItem, goldens: GoldenRunner, report_problem: Callable[[str], None]
    ) -> None:
        self._chunk = chunk
        self._goldens = goldens
        self._report_problem = report_problem

    def check(self, number: int) -> None:
        """Let the model talk noise: an assertion that still holds tests nothing."""
        if self._goldens.of_set(number).golden is None:
            return
        holds = self._holds(number)
        if isinstance(holds, bool):
            self._send("noise", number, holds=holds)
        else:
            self._report_problem(holds)
        if holds is not False:
            self._goldens.state.deaf.add(number)

    def check_again(self, number: int) -> None:
        """Do so behind trials: what a run left behind may have silenced the assertion.

        That it can fail at all was found out before.
        """
        if number not in self._goldens.state.deaf and self._holds(number) is True:
            self._send("deafened", number)

    def _holds(self, number: int) -> bool | str:
        """Whether a set's assertion holds when the model talks noise; or why that is not known."""
        campaign = self._chunk.campaign
        limit = trial_timeout(
            campaign.sets[number], campaign.plan, self._goldens.of_set(number).seconds
        )
        for attempt in range(NOISES):
            spec = RunSpec(noise=campaign.plan.seed + attempt)
            result, run = self._goldens.run(number, spec, limit)
            asserted = "call" in result.failed and not result.timed_out
            if machine_error(result, run) is not None or sticky_error(result, run) is not None:
                asserted = False
            if not result.passed and (not asserted or run.attach_error is not None):
                return (
                    f"Whether the assertion of {campaign.sets[number].nodeid} can fail was "
                    "not found out: with noise for logits the test does not get as far "
                    f"({result.shown})."
                )
            if not result.passed:
                return False
        return True

    def _send(self, kind: str, number: int, **values: bool) -> None:
        plan = self._chunk.campaign.plan
        noise: Payload = {"kind": kind, "campaign": plan.key, "params": plan.sets[number]}
        send(self._chunk, "noise", [noise | values])
