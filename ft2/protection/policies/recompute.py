"""FT2-recompute: a step that computed something wrong is thrown away and computed again.

It goes past FT2 (HPDC '25). A soft error is transient: computing again gives the right number. So
nothing is corrected here, only detected, on every projection and from the first token on, by
checksums (Huang and Abraham, 1984: algorithm-based fault tolerance); on critical layers by FT2's
bounds too, where that is chosen. A genuine outlier costs a recomputation, and is kept.

What the sums may be off without an error is derived in csrc/checksum.h: 8 u ‖y‖ for the u of fp16
and bf16. An error below that is not seen; it changes a column of n by less than 8 u √n of their
root mean square. Sums over groups of columns see smaller ones. Not seen either is what arises
outside of the projections (attention's products, norms, activations, ``lm_head``, the cache),
unless it makes a critical layer leave its bounds.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ft2.forward import (
    CacheRecord,
    Call,
    Clock,
    Forward,
    Kept,
    LengthRecord,
    Order,
    Reviewer,
    Tap,
    adopted,
    attach,
    cache_made_by,
    copied,
    records_gradients,
    sparable,
    takes_a_seat,
    tap_in_lane,
)
from ft2.forward.in_place import changed_in_place
from ft2.forward.random_states import RandomStates
from ft2.forward.surroundings import Surroundings
from ft2.layers import Projection, UnsupportedModelError, projections
from ft2.protection.checksum import why_no_checksum, why_not_summed
from ft2.protection.detection import Output
from ft2.protection.policy import Policy, Recomputations
from ft2.protection.settings import PolicySettings
from ft2.protection.watched import Requests, Spot, WatchedLayers
from ft2.protection.watched_products import WatchedProducts

__all__ = ["RecomputePolicy"]

_SCALE = 2.0
_MOST_RECOMPUTATIONS = 3
_PROFILED_AS = "ft2-offline"


class RecomputePolicy(Policy, Reviewer):
    """Detects in every forward, and has those with a wrong value computed again.

    Parameters
    ----------
    settings:
        What detects, in groups of how many columns, and how far bounds are widened. Bounds that
        were profiled for ``ft2-offline`` hold on the first token.
    """

    def __init__(self, settings: PolicySettings) -> None:
        if settings.correction is not None:
            raise ValueError("ft2-recompute computes again, so it has no other correction")
        self._scale = settings.scale_or(_SCALE)
        self._profile = settings.bounds
        both = "checksums" if self._profile is None else "checksums+bounds"
        self._detect = settings.detect or both
        if self._profile is not None and self._detect == "checksums":
            raise ValueError("profiled bounds need detect='checksums+bounds', or 'bounds'")
        self._group = settings.group
        self._watched: list[WatchedLayers] = []
        self._products: WatchedProducts | None = None
        self._model: nn.Module
        self._clock: Clock
        self._device: torch.device
        self._requests: WeakKeyDictionary[Call, Requests] = WeakKeyDictionary()
        self._counts: deque[Recomputations] = deque(maxlen=1000)
        self._was_in_force = False
        self._phases: set[bool] = set()
        self._warned = False
        # What the running forward uses.
        self._record: CacheRecord | LengthRecord
        self._random: RandomStates
        self._left: Surroundings | None = None
        self._review: _Review | None = None

    def find(self, model: nn.Module) -> list[Projection]:
        found = projections(model)
        kind = type(model).__name__
        if self._detect == "bounds":
            found = [each for each in found if each.critical]
            if not found:
                raise UnsupportedModelError(
                    f"no critical layer was found in this {kind}, so there is nothing to bound"
                )
        for each in found:
            reason = self._why_not(model, each)
            if reason is not None:
                raise UnsupportedModelError(
                    f"ft2-recompute cannot check {each.name} of this {kind}: {reason}; use another "
                    "protection"
                )
        if self._profile is not None:
            critical = [each.name for each in found if each.critical]
            self._profile.check(model, _PROFILED_AS, critical)
        return found

    def attach(self, model: nn.Module, layers: list[Projection], clock: Clock) -> list[Tap]:
        if clock.reviewer is not None:
            raise ValueError("the model is under ft2-recompute already: remove that first")
        self._model, self._clock = model, clock
        self._device = next(model.parameters()).device
        products = [each for each in layers if each.weight is not None]
        layers = [each for each in layers if each.weight is None]
        at_once = changed_in_place(model, [each.name for each in layers])
        taps: list[Tap] = []
        if products:
            self._products = WatchedProducts(model, clock)
            # There are none among them that are the output of a module.
            taps += attach(model, products, Order.PROTECT, _never, self._products.vectors)
        by_kind: dict[tuple[torch.device, torch.dtype], list[Projection]] = {}
        for each in layers:
            weight: Any = model.get_submodule(each.name).weight
            by_kind.setdefault((weight.device, weight.dtype), []).append(each)
        spared = sparable(model, [each.name for each in layers])
        for group in by_kind.values():
            number = len(self._watched)
            watched = WatchedLayers(number, model, group, at_once, self._detect, self._group)
            self._watched.append(watched)
            names = [each.name for each in group]
            taps += tap_in_lane(model, names, watched.lane, clock.lanes, spared)
            spared = []
        clock.reviewer = self
        return [*taps, _Reviewing(clock, self)]  # type: ignore[list-item]

    @property
    def counts(self) -> list[int]:
        return [count for each in self._counts for count in each.corrected]

    def corrected(self, call: Call) -> list[int]:
        known = self._requests.get(call)
        return [] if known is None else list(known.counts.corrected)

    @property
    def recomputations(self) -> list[Recomputations]:
        return list(self._counts)

    @property
    def left_first_token(self) -> bool:
        """Whether anything was checked: checksums hold from the first token on."""
        return self._was_in_force

    def requests_of(self, call: Call) -> object:
        return self._requests[call]

    def join(self, call: Call, rows: int, requests: Tensor, others: object, theirs: Tensor) -> None:
        assert isinstance(others, Requests)
        self._requests_of(call, rows).join(requests, others, theirs)

    def forward_started(self, forward: Forward) -> None:
        self._refuse_autocast()
        self._review = None
        self._record = CacheRecord(_caches(forward), forward.tokens)
        self._random = RandomStates(self._device)
        # What a forward does not leave behind the first time, it never does.
        self._left = (
            None
            if forward.is_first_token in self._phases
            else Surroundings(self._model, forward.inputs)
        )
        requests = self._requests_of(forward.call, forward.rows)
        for watched in self._watched:
            watched.begin(forward, requests, self._scale, self._profile)
        if self._products is not None:
            self._products.begin()
        has_bounds = any(watched.is_bounding for watched in self._watched)
        self._was_in_force |= self._detect != "bounds" or has_bounds

    def forward_repeats(self, forward: Forward) -> Callable[[], None] | None:
        # Bounds may be learned anew from step to step, and where tokens go to experts is seen anew.
        if self._detect != "checksums" or self._products is not None:
            return None
        if _caches(forward) != [forward.cache] or LengthRecord.of(forward.cache) is None:
            return None
        preparations = [watched.repeating() for watched in self._watched]

        def prepare() -> None:
            self._refuse_autocast()
            cache, tokens = self._clock.forward.cache, self._clock.forward.tokens
            # Its layers may be others than a step before.
            self._record = LengthRecord.of(cache) or CacheRecord([cache], tokens)
            self._random = RandomStates(self._device)
            for ready in preparations:
                ready()

        return prepare

    def rejects(self, forward: Forward, output: Any) -> bool:
        review = self._review
        if self._left is not None:
            self._check_state(forward, self._left)
        flagged = self._flagged(forward)
        if review is None:
            if flagged is None:
                return False
            cache = forward.cache if forward.cache is not None else cache_made_by(output)
            review = self._review = _Review(flagged, self._outputs())
            # Rows taken from the first computation would pass no gradients on: then all are new.
            if not bool(flagged.all()) and not records_gradients(output):
                review.keep(output, Kept(cache, forward.cached, forward.tokens), self._learned())
            review.random = RandomStates(self._device)
        else:
            review.last = None if flagged is None else flagged & review.flagged
            if review.last is None:
                return False
            if review.before:
                # What did not stay, as nearly all, need not be looked for.
                review.spots = self._spots(review.before, review.flagged)
                review.before = []
            spots = self._spots(self._outputs(), review.last)
            if spots <= review.spots or review.count == _MOST_RECOMPUTATIONS:
                review.left = spots
                return False
            review.spots |= spots
        review.count += 1
        self._record.undo()
        self._random.restore()
        for watched in self._watched:
            watched.again()
        if self._products is not None:
            self._products.begin()
        return True

    def accepted(self, forward: Forward, output: Any) -> Any:
        review = self._review
        if review is not None:
            output = self._adopt(forward, output, review)
        requests = self._requests_of(forward.call, forward.rows)
        for watched in self._watched:
            watched.learn(requests)
        self._let_go()
        return output

    def call_failed(self, error: Exception) -> None:
        self._let_go()

    def _let_go(self) -> None:
        """Hold nothing more of what was kept for undoing."""
        for name in ("_record", "_random"):
            vars(self).pop(name, None)
        self._review = None

    def _adopt(self, forward: Forward, output: Any, review: _Review) -> Any:
        if review.kept is not None:
            cache = forward.cache if forward.cache is not None else cache_made_by(output)
            review.kept.adopt(cache, review.flagged)
            for watched, before in zip(self._watched, review.learned, strict=True):
                watched.adopt(before, review.flagged)
            output = adopted(output, review.output, review.flagged)
        review.random.restore()
        wrong = review.flagged.tolist()
        stayed = [False] * len(wrong) if review.last is None else review.last.tolist()
        requests = self._requests_of(forward.call, forward.rows)
        requests.counts.add(wrong, stayed, review.count)
        if any(stayed) and not self._warned:
            self._warned = True
            warnings.warn(
                f"ft2-recompute computed step {forward.step} again, and found "
                f"{self._named(review.left)} as before: the value is genuine, the fault permanent, "
                "or a hook changes it; it is kept and counted",
                stacklevel=2,
            )
        return output

    def _refuse_autocast(self) -> None:
        if torch.is_autocast_enabled(self._device.type):
            raise RuntimeError(
                "ft2-recompute cannot check products under autocast, which rounds the weights: "
                "convert the model (model.to(dtype)) and leave autocast out"
            )

    def _named(self, spots: set[Spot]) -> str:
        names = {self._watched[lane].names[seat] for lane, _, seat, *_ in spots if seat >= 0}
        return ", ".join(sorted(names)) or "a value"

    def _why_not(self, model: nn.Module, projection: Projection) -> str | None:
        if projection.weight is not None:
            if self._detect == "bounds":
                return "it is the product with a raw parameter, which has checksums only"
            parameter = model.get_parameter(projection.weight)
            return why_not_summed(parameter)
        module = model.get_submodule(projection.name)
        if not takes_a_seat(module):
            return f"calling a {type(module).__name__} is something special"
        return why_no_checksum(module)

    def _requests_of(self, call: Call, rows: int) -> Requests:
        known = self._requests.get(call)
        if known is None or known.rows != rows:
            known = self._requests[call] = Requests(rows, call.rows_per_request)
            self._counts.append(known.counts)
        return known

    def _flagged(self, forward: Forward) -> Tensor | None:
        """Return bool (rows,) of rows that matter and are flagged; None if none is."""
        found = None if self._products is None else self._products.flagged()
        for watched in self._watched:
            rows = watched.flagged()
            if rows is not None:
                found = rows if found is None else found | rows
        ended = forward.call.ended
        # A single row that has ended ends the call.
        if found is not None and ended is not None and ended.shape[0] == forward.rows > 1:
            found = found & ~ended.cpu()
        return None if found is None or not bool(found.any()) else found

    def _outputs(self) -> list[list[Output]]:
        return [list(watched.lane.outputs) for watched in self._watched]

    def _spots(self, outputs: list[list[Output]], flagged: Tensor) -> set[Spot]:
        """Return where flags were raised in these outputs of each lane, of flagged rows."""
        found: set[Spot] = set()
        if bool(flagged.any()):
            for lane, watched in enumerate(self._watched):
                found |= {(lane, *spot) for spot in watched.spots(outputs[lane], flagged)}
        # What compiled code computed, or a long prompt, is not kept: the rows alone are known.
        rows = set(flagged.nonzero()[:, 0].tolist()) - {spot[-1] for spot in found}
        return found | {(0, -1, -1, -1, -1, 0, row) for row in rows}

    def _learned(self) -> list[Tensor | None]:
        return [watched.learned for watched in self._watched]

    def _check_state(self, forward: Forward, left: Surroundings) -> None:
        changed = left.changed()
        if changed is not None:
            raise UnsupportedModelError(
                f"a forward of this {type(self._model).__name__} {changed}, and ft2-recompute "
                "could not undo that: use another protection"
            )
        self._left = None
        self._phases.add(forward.is_first_token)


class _Reviewing:
    """Stands among the taps, and ends the review with them."""

    def __init__(self, clock: Clock, reviewer: Reviewer) -> None:
        self._clock, self._reviewer = clock, reviewer

    def remove(self) -> None:
        if self._clock.reviewer is self._reviewer:
            self._clock.reviewer = None


@dataclass(eq=False)
class _Review:
    """One forward that was rejected.

    Attributes
    ----------
    flagged:
        bool (rows,), on the CPU: the rows that are to be adopted from a recomputation.
    before:
        What the layers put out first, of each lane, until it was looked at.
    spots:
        Where flags were raised so far.
    count:
        How many recomputations were begun.
    last, left:
        The rows that are flagged in the last recomputation, or None, and where.
    kept, output, learned:
        What the other rows have, from the first computation.
    random:
        The random states after it.
    """

    flagged: Tensor
    before: list[list[Output]]
    spots: set[Spot] = field(default_factory=set)
    count: int = 0
    last: Tensor | None = None
    left: set[Spot] = field(default_factory=set)
    kept: Kept | None = None
    output: Any = None
    learned: list[Tensor | None] = field(default_factory=list)
    random: Any = None

    def keep(self, output: Any, kept: Kept, learned: list[Tensor | None]) -> None:
        self.output, self.kept = copied(output), kept
        self.learned = [None if each is None else each.clone() for each in learned]


def _never(projection: Projection) -> Any:
    raise AssertionError(projection)


def _caches(forward: Forward) -> list[Any]:
    """Return the cache that a forward is given, and what else among its inputs is like one."""
    others = [
        each
        for each in forward.inputs.values()
        if hasattr(each, "get_seq_length") and each is not forward.cache
    ]
    return others if forward.cache is None else [forward.cache, *others]
