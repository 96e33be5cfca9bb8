"""The space of sites of a run: what was computed, and a uniform draw from it.

An error strikes at any time (FT2, section 4.2.2): each step is equally likely, over all calls of
the run; inside a step, each output element of the linear layers in the decoder blocks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from ft2.faults.draw import Draw
from ft2.faults.fault import Fault
from ft2.faults.formats import number_format
from ft2.faults.models import FaultModel

__all__ = ["EmptySpaceError", "Execution", "Space", "Step"]


class EmptySpaceError(ValueError):
    """There is no site: nothing was computed that a fault could hit."""


@dataclass(frozen=True)
class Execution:
    """One run of one layer.

    Attributes
    ----------
    layer:
        The projection's name.
    columns:
        Size of its output's last dimension.
    macs:
        Multiply-accumulate operations behind one output element.
    encoding:
        Number format of its output.
    first_position:
        Tokens that the layer had computed in this step before.
    tokens:
        Tokens of each row, padding included.
    real:
        ``(row, start, stop)``: the tokens that are neither padding nor of a row that has ended.
    """

    layer: str
    columns: int
    macs: int
    encoding: str
    first_position: int
    tokens: int
    real: tuple[tuple[int, int, int], ...]

    @property
    def elements(self) -> int:
        """Output elements that a fault can hit."""
        return self.columns * sum(stop - start for _, start, stop in self.real)


@dataclass(frozen=True)
class Step:
    """What one step of one call computed."""

    call: int
    step: int
    executions: tuple[Execution, ...]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(execution.elements for execution in self.executions))

    @property
    def elements(self) -> int:
        """Output elements that a fault can hit."""
        return self._ends[-1] if self._ends else 0

    def element(self, index: int) -> tuple[Execution, int, int, int]:
        """Return (execution, row, position, neuron) of the step's element `index`."""
        chosen = bisect_right(self._ends, index)
        execution = self.executions[chosen]
        token, neuron = divmod(index - (self._ends[chosen] - execution.elements), execution.columns)
        for row, start, stop in execution.real:
            if token < stop - start:
                return execution, row, execution.first_position + start + token, neuron
            token -= stop - start
        raise IndexError(index)


@dataclass(frozen=True)
class Space:
    """All sites of a run.

    Parameters
    ----------
    steps:
        What the run computed, in order.
    """

    steps: tuple[Step, ...]

    def sample(self, draw: Draw, model: FaultModel, encoding: str | None = None) -> Fault:
        """Draw one fault.

        Parameters
        ----------
        draw:
            The trial's uniform numbers. Four are used, in a fixed order: step, element, bits.
        model:
            Chooses the bits.
        encoding:
            The number format whose bits are flipped; None: the layer's own.

        Raises
        ------
        EmptySpaceError
            If the run computed nothing that a fault could hit.
        ValueError
            If a layer computes in a format that does not hold all numbers of `encoding`.
        """
        steps = self._steps_with_sites
        if not steps:
            raise EmptySpaceError("no projection of a decoder block computed a real token")
        step = steps[draw.below(len(steps))]
        execution, row, position, neuron = step.element(draw.below(step.elements))
        own = number_format(execution.encoding)
        chosen = own if encoding is None else number_format(encoding)
        if not own.holds(chosen):
            raise ValueError(
                f"encoding {chosen.name} cannot be tested on {execution.layer}, which computes in "
                f"{own.name}: {own.name} does not hold all numbers of {chosen.name}"
            )
        return Fault(
            call=step.call,
            step=step.step,
            layer=execution.layer,
            row=row,
            position=position,
            neuron=neuron,
            bits=model(chosen, draw),
            encoding=chosen.name,
        )

    def find(self, fault: Fault) -> tuple[Step, Execution]:
        """Return the step and the execution that compute the fault's element.

        Raises
        ------
        ValueError
            If the run computes no such element.
        """
        for step in self.steps:
            if (step.call, step.step) != (fault.call, fault.step):
                continue
            for execution in step.executions:
                token = fault.position - execution.first_position
                if execution.layer == fault.layer and _covers(execution.real, fault.row, token):
                    return step, execution
        raise ValueError(f"the run has no site {fault}")

    @cached_property
    def encodings(self) -> frozenset[str]:
        """The number formats of all elements."""
        return frozenset(
            each.encoding for step in self.steps for each in step.executions if each.elements
        )

    @cached_property
    def elements(self) -> int:
        """Output elements of all steps."""
        return sum(step.elements for step in self.steps)

    @cached_property
    def _steps_with_sites(self) -> Sequence[Step]:
        return [step for step in self.steps if step.elements]


def _covers(real: tuple[tuple[int, int, int], ...], row: int, token: int) -> bool:
    return any(row == at and start <= token < stop for at, start, stop in real)
