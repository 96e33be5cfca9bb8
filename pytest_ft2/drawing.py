"""Which faults the trials of a chunk have: draws of their own numbers, or from chosen strata."""

from __future__ import annotations

from collections.abc import Callable

from ft2.faults import Draw, Fault, fault_model
from pytest_ft2.cell_reading import read_cells
from pytest_ft2.cells import CampaignCells, UnknownCellsError
from pytest_ft2.goldens import GoldenRunner, GoldenSet
from pytest_ft2.items import ChunkItem
from pytest_ft2.needed import Word, needed_trials, wait_for_word
from pytest_ft2.plan import GatePlan, Payload
from pytest_ft2.reports import send

__all__ = ["ChunkDrawing", "sample_fault"]


def sample_fault(plan: GatePlan, draw: int, golden: GoldenSet) -> Fault:
    """Return the fault of a draw: the same in every process and under every protection.

    Raises
    ------
    ValueError
        If the encoding does not fit the model's dtype.
    """
    assert golden.golden is not None
    numbers = Draw(plan.seed, plan.key, draw)
    return golden.golden.space.sample(numbers, fault_model(plan.fault_model), plan.encoding)


class ChunkDrawing:
    """Knows which of a chunk's trials are needed, and which draw each has.

    Parameters
    ----------
    report_problem:
        Is called with a sentence on why that cannot be known.
    """

    def __init__(
        self, chunk: ChunkItem, goldens: GoldenRunner, report_problem: Callable[[str], None]
    ) -> None:
        self._chunk, self._goldens = chunk, goldens
        self._plan = chunk.campaign.plan
        self._report_problem = report_problem
        self._word: Word | None = None
        self._draws: dict[int, int] = {}
        self._stood_in: set[int] = set()

    def first_trials(self) -> list[int]:
        """Return first trials to run here, as others seem not to, before this chunk's own.

        Only where these depend on them; none as soon as the first trials are known.
        """
        if self._word is not None or not 0 < self._plan.planned <= self._chunk.trials[0]:
            return []
        found = wait_for_word(self._chunk.config, self._plan, lambda: self._send("waits"))
        if isinstance(found, list):
            missing = [trial for trial in found if trial not in self._stood_in]
            self._stood_in.update(missing)
            return missing
        self._word = found
        return []

    def is_any_needed(self) -> bool:
        """Whether the campaign needs a trial of this chunk, as far as is known."""
        if self._word is None and self._chunk.trials[0] >= self._plan.planned > 0:
            self._report_problem(
                f"The trials of {self._chunk.nodeid} are drawn from strata that the first trials "
                "choose, and this process was never told of these: look at the errors above, run "
                "all processes on one machine, or use --ft2-sampling=uniform."
            )
            return False
        return any(map(self.is_needed, self._chunk.trials))

    def is_needed(self, trial: int) -> bool:
        """Whether the campaign's first trials have not decided that this one need not run."""
        if self._word is None:
            self._word = needed_trials(self._chunk.config, self._plan)
        return self._word is None or any(trial in each for each in self._word.needed)

    def draw(self, trial: int) -> int:
        """Return the number of a trial's draw; its own, but for those from chosen strata."""
        return self._draws.get(trial, trial)

    def drawn(self, trial: int) -> Payload:
        """Return what is known of a trial's draw before it runs."""
        draw, cells = self.draw(trial), self._cells
        return {"draw": draw, "cell": None if cells is None else [*cells.cell(draw)]}

    def find_cells(self, sets: list[int]) -> bool:
        """Find out into which cells draws fall, and which draws this chunk's trials have.

        Parameters
        ----------
        sets:
            The numbers of the parameter sets that trials are dealt to in turn.

        Returns
        -------
        bool
            Whether they are known.
        """
        state = self._goldens.state
        try:
            if state.cells is None:
                state.cells = read_cells(self._goldens, sets)
                shares = [[*cell, share] for cell, share in state.cells.shares.items()]
                self._send("cells", shares=shares)
            if self._word is not None and self._word.strata:
                self._find_draws(state.cells, self._word)
        except UnknownCellsError as error:
            # A golden run that cannot be used says so itself.
            if all(self._goldens.of_set(number).problem is None for number in sets):
                self._report_problem(str(error))
            return False
        return True

    def _find_draws(self, cells: CampaignCells, word: Word) -> None:
        planned = self._plan.planned
        behind = [trial for trial in self._chunk.trials if trial >= planned]
        if not behind:
            return
        chosen = cells.chosen(planned, word.strata, word.more, self._plan.seed)
        if len(chosen) < sum(word.more):
            raise UnknownCellsError(
                "Strata have fewer draws than the first trials allotted to them: use more faults, "
                "or --ft2-sampling=uniform."
            )
        self._draws = {
            trial: chosen[trial - planned] for trial in behind if trial - planned < len(chosen)
        }
        shares = cells.shares_of_strata(word.strata, len(word.more))
        self._send("strata", shares={self._plan.sets[at]: each for at, each in shares.items()})

    @property
    def _cells(self) -> CampaignCells | None:
        return self._goldens.state.cells

    def _send(self, kind: str, **values: object) -> None:
        send(self._chunk, kind, [{"kind": kind, "campaign": self._plan.key, **values}])
