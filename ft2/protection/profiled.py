"""What policies with bounds profiled offline have in common.

FT2 (HPDC '25), sections 3 and 5.1: bounds are the least and largest number that a layer put out
while the model ran on prompts given beforehand, one pair for a layer. They hold for every request
and from the first token on. Beyond what its authors widen them by, they have room for the rounding
of a batch of another shape: 8 machine epsilons of the layer's dtype.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ft2.forward import Call, Clock, Forward, Order, Tap, Vectors, by_row, fit_tokens
from ft2.layers import Activation
from ft2.protection.arithmetic import bounds_dtype, widen
from ft2.protection.bounds import Corrections
from ft2.protection.columns import Columns
from ft2.protection.correction import Correction
from ft2.protection.places import Place, tap_places
from ft2.protection.policy import Policy
from ft2.protection.profile import ProfileError
from ft2.protection.settings import PolicySettings

__all__ = ["ProfiledPolicy"]

_ROUNDINGS = 8


class ProfiledPolicy(Policy):
    """Restricts places to bounds profiled offline.

    Parameters
    ----------
    settings:
        With the profile.

    Attributes
    ----------
    name:
        The name that users give.
    scale:
        How far the profiled bounds are widened unless users say so.
    correction:
        What is done with values out of bounds.

    Raises
    ------
    ProfileError
        If there is no profile.
    ValueError
        If the settings ask for another correction than the policy's.
    """

    name: ClassVar[str]
    scale: ClassVar[float] = 1.0
    correction: ClassVar[Correction]

    def __init__(self, settings: PolicySettings) -> None:
        if settings.bounds is None:
            raise ProfileError(
                f"{self.name} needs bounds that were profiled on prompts of yours: give it those "
                f"that ft2.profile(model, prompts, policy={self.name!r}) returns, or the file that "
                "their save(FILE) wrote"
            )
        self._profile = settings.bounds
        self._scale = settings.scale_or(self.scale)
        self._correction = self._chosen_correction(settings)
        self._bounds: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._names: dict[str, int] = {}
        self._of_call: WeakKeyDictionary[Call, Corrections] = WeakKeyDictionary()
        self._corrections: deque[Corrections] = deque(maxlen=1000)
        self._packs_tokens = False
        self._was_in_force = False
        # What the layers of the running forward use.
        self._current: Corrections
        self._live: Tensor | None = None

    @classmethod
    @abstractmethod
    def places(cls, model: nn.Module) -> list[Place]:
        """Return where the policy acts in `model`.

        Raises
        ------
        UnsupportedModelError
            If there is nothing that it could protect, or something that it cannot reach.
        """

    def _chosen_correction(self, settings: PolicySettings) -> Correction:
        if settings.correction is not None:
            raise ValueError(f"{self.name} has its own correction, so none can be chosen")
        return self.correction

    def find(self, model: nn.Module) -> list[Place]:
        places = self.places(model)
        self._profile.check(model, self.name, [place.name for place in places])
        return places

    def attach(self, model: nn.Module, layers: list[Place], clock: Clock) -> list[Tap]:
        self._names = {place.name: number for number, place in enumerate(layers)}
        self._packs_tokens = any(
            isinstance(place.layer, Activation) and not place.layer.by_token for place in layers
        )

        def whole(place: Place) -> Callable[[Tensor], Tensor]:
            return self._whole(place, clock)

        def vectors(group: list[Place]) -> Callable[[Vectors], Tensor]:
            return self._vectors(group, clock)

        return tap_places(model, layers, Order.PROTECT, whole, vectors)

    @property
    def counts(self) -> list[int]:
        return [count for corrections in self._corrections for count in corrections.totals()]

    def corrected(self, call: Call) -> list[int]:
        corrections = self._of_call.get(call)
        return [] if corrections is None else corrections.totals()

    @property
    def left_first_token(self) -> bool:
        """Whether anything ran under it: its bounds hold from the first token on."""
        return self._was_in_force

    def forward_started(self, forward: Forward) -> None:
        self._current = self._corrections_of(forward.call, forward.rows)
        if self._packs_tokens and self._current.requests > 1:
            raise RuntimeError(
                f"{self.name} cannot tell whose the values are that experts' activations put out "
                f"in a forward over {self._current.requests} requests: run one request at a time"
            )
        self._was_in_force = True
        self._live = forward.real
        call = forward.call
        # A single row that has ended ends the call.
        if call.ended is not None and call.ended.shape[0] == forward.rows > 1:
            alive = ~call.ended[:, None]
            self._live = alive if self._live is None else self._live & alive

    def _corrections_of(self, call: Call, rows: int) -> Corrections:
        each = call.rows_per_request
        requests = rows // each if rows % each == 0 else rows
        known = self._of_call.get(call)
        if known is None or known.requests != requests:
            known = self._of_call[call] = Corrections(requests)
            self._corrections.append(known)
        return known

    def _bounds_on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the widened bounds (2, places + 1); the last ones are the type's range."""
        key = (device, dtype)
        if key not in self._bounds:
            pairs = [self._profile.bounds[name] for name in self._names]
            # Where nothing was seen, as where nothing was learned, there is no bound.
            known = [(torch.inf, -torch.inf) if pair is None else pair for pair in pairs]
            with torch.inference_mode(False), torch.no_grad():
                table = torch.tensor(
                    [*known, (torch.inf, -torch.inf)], dtype=bounds_dtype(dtype), device=device
                )
                # The same prompt in a batch of another shape is rounded otherwise.
                scale = max(self._scale, 1 + _ROUNDINGS * torch.finfo(dtype).eps)
                both = widen(table[:, 0], table[:, 1], scale, dtype, len(table))
                self._bounds[key] = torch.stack([each[:, 0, 0] for each in both])
        return self._bounds[key]

    def _whole(self, place: Place, clock: Clock) -> Callable[[Tensor], Tensor]:
        columns = Columns(place.ranges)
        number = self._names[place.name]
        is_packed = isinstance(place.layer, Activation) and not place.layer.by_token

        def transform(output: Tensor) -> Tensor:
            # All that is packed is of one request.
            view = output.reshape(1, -1, output.shape[-1]) if is_packed else None
            if view is None:
                view = by_row(output, clock.forward)
            part = columns.take(view)
            bounds = self._bounds_on(output.device, output.dtype)[:, number, None]
            current = self._current
            live = None if is_packed else self._live
            if live is not None:
                live = fit_tokens(live, view.shape[1]).to(output.device)
            changed = self._correction.restrict(
                part,
                live,
                bounds.expand(2, current.requests).contiguous(),
                current.on(output.device),
            )
            return columns.put(view, part, changed).view(output.shape)

        return transform

    def _vectors(self, group: list[Place], clock: Clock) -> Callable[[Vectors], Tensor]:
        """Experts of one parameter, each with bounds of its own."""
        columns = Columns(group[0].ranges)
        # Experts that are not among the places have the type's range.
        numbers = [len(self._names)] * (1 + max(_expert(place) for place in group))
        for place in group:
            numbers[_expert(place)] = self._names[place.name]

        def transform(vectors: Vectors) -> Tensor:
            values, rows = vectors.values, clock.forward.rows
            if vectors.count % rows:
                raise RuntimeError(
                    f"ft2 cannot tell the rows of {vectors.count} tokens in {group[0].name}, in a "
                    f"forward over {rows} rows"
                )
            tokens = vectors.count // rows
            request = vectors.tokens // tokens // (rows // self._current.requests)
            places = torch.tensor(numbers, device=values.device)
            chosen = places[:1] if vectors.experts is None else places[vectors.experts]
            live = self._live
            if live is not None:
                shown = fit_tokens(live, tokens).to(values.device).expand(rows, tokens)
                live = shown.reshape(-1)[vectors.tokens]
            part = columns.take(values)
            bounds = self._bounds_on(values.device, values.dtype)[:, chosen]
            changed = self._correction.restrict_vectors(
                part,
                live,
                bounds.expand(2, len(values)),
                request,
                self._current.on(values.device),
            )
            return columns.put(values, part, changed)

        return transform

    def requests_of(self, call: Call) -> object:
        return self._of_call[call]

    def join(self, call: Call, rows: int, requests: Tensor, others: object, theirs: Tensor) -> None:
        if self._packs_tokens:
            raise NotImplementedError(
                f"{self.name} tells no requests apart in what experts' activations put out"
            )
        assert isinstance(others, Corrections)
        here = self._corrections_of(call, rows)
        for device, counter in others.counters.items():
            here.on(device)[requests.to(device)] = counter[theirs.to(device)]


def _expert(place: Place) -> int:
    return getattr(place.layer, "expert", None) or 0
