"""FT2: bounds learned on the first token restrict the critical layers on the later ones.

FT2 (HPDC '25), sections 4.1 (critical layers), 4.2 (bounds from the first token, widened) and 4.3
(out-of-bound values are clipped to the bound, NaN becomes 0).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ft2.forward import (
    Call,
    Clock,
    Forward,
    Order,
    Tap,
    Vectors,
    attach,
    by_row,
    fit_tokens,
    sparable,
    takes_a_seat,
    tap_in_lane,
)
from ft2.layers import Projection, UnsupportedModelError, projections
from ft2.protection.bounds import Corrections, Key, RequestBounds, Where
from ft2.protection.clipping import ClippingLane
from ft2.protection.columns import Columns
from ft2.protection.correction import CLIP
from ft2.protection.policy import Policy
from ft2.protection.settings import PolicySettings

__all__ = ["FirstTokenPolicy"]

_SCALE = 2.0


class FirstTokenPolicy(Policy):
    """Learns per request and layer; restricts from the second token on.

    Parameters
    ----------
    settings:
        How far learned bounds are widened (section 4.2.1: 2), and what is done with values out of
        them (section 4.3: they are clipped; the paper's artifact sets them to zero).
    """

    def __init__(self, settings: PolicySettings) -> None:
        self._scale = settings.scale_or(_SCALE)
        self._correction = settings.correction_or(CLIP)
        self._bounds: WeakKeyDictionary[Call, RequestBounds] = WeakKeyDictionary()
        self._corrections: deque[Corrections] = deque(maxlen=1000)
        self._left_first_token = False
        # What the layers of the running forward use. Compiled layers guard on all they read, so
        # nothing here changes with the step.
        self._current: RequestBounds
        self._clock: Clock
        self._lane: ClippingLane | None = None
        self._real: Tensor | None = None
        self._live: Tensor | None = None

    def find(self, model: nn.Module) -> list[Projection]:
        critical = [projection for projection in projections(model) if projection.critical]
        if not critical:
            raise UnsupportedModelError(
                f"no critical layer was found in this {type(model).__name__}, so there is nothing "
                "that ft2 would protect"
            )
        return critical

    def attach(self, model: nn.Module, layers: list[Projection], clock: Clock) -> list[Tap]:
        # What runs there clips.
        seated = [each for each in layers if _is_seated(model, each) and self._correction is CLIP]
        names = [each.name for each in seated]
        others = [each for each in layers if each not in seated]
        self._clock = clock
        taps = attach(model, others, Order.PROTECT, self._whole, self._vectors)
        if names:
            self._lane = ClippingLane([(name, 0) for name in names], self._output)
            spared = sparable(model, names)
            taps += tap_in_lane(model, names, self._lane, clock.lanes, spared)
        return taps

    @property
    def counts(self) -> list[int]:
        return [count for corrections in self._corrections for count in corrections.totals()]

    def corrected(self, call: Call) -> list[int]:
        bounds = self._bounds.get(call)
        return [] if bounds is None else bounds.corrections.totals()

    @property
    def left_first_token(self) -> bool:
        return self._left_first_token

    def requests_of(self, call: Call) -> object:
        return self._bounds[call]

    def join(self, call: Call, rows: int, requests: Tensor, others: object, theirs: Tensor) -> None:
        assert isinstance(others, RequestBounds)
        if call not in self._bounds:
            self._bounds[call] = RequestBounds(rows, 1, self._scale, self._correction)
            self._corrections.append(self._bounds[call].corrections)
        self._bounds[call].join(requests, others, theirs)

    def forward_started(self, forward: Forward) -> None:
        call = forward.call
        bounds = self._bounds.get(call)
        if bounds is None or bounds.rows != forward.rows:
            bounds = RequestBounds(
                forward.rows, call.rows_per_request, self._scale, self._correction
            )
            self._bounds[call] = bounds
            self._corrections.append(bounds.corrections)
        if not forward.is_first_token:
            bounds.settle()
        self._left_first_token |= bounds.settled
        self._current = bounds
        self._real = forward.real
        self._live = _live(call, forward.rows, forward.real)
        if self._lane is None:
            return
        if forward.is_first_token:
            self._lane.learn(bounds, forward.real)
        else:
            self._lane.begin(bounds, self._live)

    def forward_repeats(self, forward: Forward) -> Callable[[], None] | None:
        bounds, lane = self._current, self._lane
        if lane is None or bounds.kind is None or not bounds.is_settled or self._real is not None:
            return None
        version, call, rows = bounds.version, forward.call, forward.rows

        def prepare() -> None:
            live = self._live = _live(call, rows, None)
            if live is None and bounds.is_settled and bounds.version == version:
                lane.resume()
            else:
                # Rows may have ended, or a layer has run that had not run before.
                bounds.settle()
                lane.begin(bounds, live)

        return prepare

    def _output(self, key: Key, output: Tensor) -> Tensor:
        view = by_row(output, self._clock.forward)
        protected = self._protect(key, view)
        return protected if protected.shape == output.shape else protected.view_as(output)

    def _whole(self, projection: Projection) -> Callable[[Tensor], Tensor]:
        columns = _columns(projection)
        key = (projection.name, _critical(projection)[0][0])

        def transform(output: Tensor) -> Tensor:
            view = by_row(output, self._clock.forward)
            part = columns.take(view)
            protected = self._protect(key, part)
            return columns.put(view, part, protected).view(output.shape)

        return transform

    def _vectors(self, group: list[Projection]) -> Callable[[Vectors], Tensor]:
        """Experts of one parameter, each with bounds of its own."""
        critical = _critical(group[0])
        columns = _columns(group[0])
        key = (str(group[0].weight), critical[0][0])
        matrices = max((each.expert or 0 for each in group), default=0) + 1

        def transform(vectors: Vectors) -> Tensor:
            rows = self._clock.forward.rows
            if vectors.count % rows:
                raise RuntimeError(
                    f"ft2 cannot tell the rows of {vectors.count} tokens in {key[0]}, in a forward "
                    f"over {rows} rows"
                )
            tokens = vectors.count // rows
            row = vectors.tokens // tokens
            request = row // (self._current.rows // self._current.requests)
            cell = request if vectors.experts is None else vectors.experts * self._current.requests
            if vectors.experts is not None:
                cell = cell + request
            real, live = (
                _of_tokens(mask, vectors, rows, tokens) for mask in (self._real, self._live)
            )
            where = Where(cell, request, real, live, matrices)
            part = columns.take(vectors.values)
            protected = self._current.protect_vectors(key, part, where)
            return columns.put(vectors.values, part, protected)

        return transform

    def _protect(self, key: tuple[str, int], view: Tensor) -> Tensor:
        real, live = self._real, self._live
        if real is not None or live is not None:
            real, live = _of_layer(real, view), _of_layer(live, view)
        return self._current.protect(key, view, real, live)


def _live(call: Call, rows: int, real: Tensor | None) -> Tensor | None:
    """Return bool (rows, tokens or 1), False where corrections are not counted; None if all are."""
    # A single row that has ended ends the call.
    if call.ended is None or rows == 1 or call.ended.shape[0] != rows:
        return real
    alive = ~call.ended[:, None]
    return alive if real is None else real & alive


def _critical(projection: Projection) -> list[tuple[int, int]]:
    return [(start, stop) for start, stop, critical in projection.columns if critical]


def _columns(projection: Projection) -> Columns:
    critical = _critical(projection)
    return Columns(None if critical == [(0, projection.out_features)] else critical)


def _is_seated(model: nn.Module, projection: Projection) -> bool:
    """Whether the whole output of a module is critical, and calling it is nothing special."""
    is_whole = _critical(projection) == [(0, projection.out_features)]
    if projection.weight is not None or not is_whole:
        return False
    return takes_a_seat(model.get_submodule(projection.name))


def _of_tokens(mask: Tensor | None, vectors: Vectors, rows: int, tokens: int) -> Tensor | None:
    """Look up bool (rows, tokens or 1) for vectors of tokens that are numbered row after row."""
    if mask is None:
        return None
    shown = fit_tokens(mask, tokens).to(vectors.values.device).expand(rows, tokens)
    return shown.reshape(-1)[vectors.tokens]


def _of_layer(mask: Tensor | None, view: Tensor) -> Tensor | None:
    """Fit bool (rows, tokens or 1) to a layer's tokens, on its device."""
    return None if mask is None else fit_tokens(mask, view.shape[1]).to(view.device)
