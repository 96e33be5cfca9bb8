"""The layers of one device and dtype whose outputs are checked, and what is known of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ft2.forward import Forward, fit_tokens
from ft2.layers import Projection
from ft2.protection.arithmetic import widen
from ft2.protection.detection import BoundsCheck, Check, ChecksumCheck, DetectionLane, Output, Place
from ft2.protection.policy import Recomputations
from ft2.protection.resident import keep_address

__all__ = ["Requests", "Spot", "WatchedLayers"]

# Where a flag was raised: check, seat, vector, column or group of columns and its hash, row.
Spot = tuple[int, ...]

# In bf16 a sum of all columns hides too much in its rounding.
_GROUPS = {torch.bfloat16: 16}


class Requests:
    """What is counted, and what was learned, of the requests of one call.

    Parameters
    ----------
    rows, rows_per_request:
        Rows of the batch, and how many of them belong to one request.

    Attributes
    ----------
    learned:
        For each lane, fp32 (places, 2, rows) of what its layers put out on the first token.
    version:
        Changes whenever `learned` does.
    """

    def __init__(self, rows: int, rows_per_request: int) -> None:
        self.rows = rows
        each = rows_per_request if rows % rows_per_request == 0 else 1
        self.rows_each = each
        self.counts = Recomputations(rows // each)
        self.learned: dict[int, Tensor] = {}
        self.version = 0

    def join(self, requests: Tensor, others: Requests, theirs: Tensor) -> None:
        """Let requests, int64 (joining,), go on where others stand."""
        for lane, there in others.learned.items():
            if lane not in self.learned:
                # A row that nobody joined has the type's range.
                unknown = there.new_tensor([torch.inf, -torch.inf])[:, None]
                self.learned[lane] = unknown.repeat(len(there), 1, self.rows)
            self.learned[lane][:, :, requests] = there[:, :, theirs]
        self.version += 1
        self.counts.join(requests.tolist(), others.counts, theirs.tolist())


class WatchedLayers:
    """The layers of one dtype on one device, and what checks them.

    Attributes
    ----------
    device:
        Where they are.
    names:
        Their names, in the order of their seats.
    lane:
        What keeps their outputs.
    is_bounding:
        Whether bounds are checked in the running forward.
    """

    def __init__(
        self,
        number: int,
        model: nn.Module,
        layers: Sequence[Projection],
        at_once: frozenset[str],
        detect: str,
        group: int | None,
    ) -> None:
        modules = [model.get_submodule(each.name) for each in layers]
        weight: Any = modules[0].weight
        self._number = number
        self.device, self._dtype = weight.device, weight.dtype
        self.names = [each.name for each in layers]
        self.is_bounding = False
        early = frozenset(seat for seat, name in enumerate(self.names) if name in at_once)
        self.lane = DetectionLane([], early)
        self._places: list[Place] = []
        self._owners: list[str] = []
        if "bounds" in detect:
            for seat, each in enumerate(layers):
                for start, stop, critical in each.columns:
                    if critical:
                        is_last = stop == each.out_features
                        self._places.append((seat, start, None if is_last else stop))
                        self._owners.append(each.name)
        # Of each row, and with padding of each token, since padding may hold anything.
        self._flags: dict[int, Tensor] = {}
        self._checksums: ChecksumCheck | None = None
        if "checksums" in detect:
            if group is None:
                group = _GROUPS.get(self._dtype, 0)
            self._checksums = ChecksumCheck(modules, self._flags_of(1), group)
        self._rows = 0
        self._real: Tensor | None = None
        self._tokens = 0
        self._is_settled = True
        self._bounds: dict[int, BoundsCheck] = {}
        self._learners: dict[int, _FirstToken] = {}
        self._learner: _FirstToken | None = None
        self._held: tuple[object, int] | None = None
        self._checks: list[Any] = []

    def begin(self, forward: Forward, requests: Requests, scale: float, profile: Any) -> None:
        """Check the forward that begins."""
        self._rows, self._tokens, self._real = forward.rows, forward.tokens, forward.real
        if not self._is_settled:
            # The forward before failed, and nobody read what was flagged.
            for each in self._flags.values():
                each.zero_()
        self._is_settled = False
        self._checks = []
        if self._checksums is not None:
            if forward.is_first_token:
                self._checksums.refresh()
            self._checks.append(self._checksums)
        self._learner = None
        self.is_bounding = False
        if self._places:
            self._begin_bounds(forward, requests, scale, profile)
        by_row = self._flags_of(self._rows)
        for check in self._checks:
            check.flags = by_row
        checks: list[Check] = list(self._checks)
        if self._real is not None:
            by_token = self._flags_of(self._rows * self._tokens)
            checks = [_ByToken(each, by_token, by_row) for each in self._checks]
        if self._learner is not None:
            checks.append(self._learner)
        self.lane.begin(checks, self._rows * self._tokens)

    def repeating(self) -> Callable[[], None]:
        """Return what has a further forward checked that is like the last, without bounds."""
        begin = self.lane.repeating(self._rows * self._tokens)

        def prepare() -> None:
            self._is_settled = False
            begin()

        return prepare

    def again(self) -> None:
        """Check the same forward once more."""
        self._is_settled = False
        if self._learner is not None:
            self._learner.reset()
        self.lane.begin(None, self._rows * self._tokens)

    def flagged(self) -> Tensor | None:
        """Return bool (rows,), on the CPU, of rows that are flagged; None if none is."""
        self._is_settled = True
        found = None
        counts = {self._rows, self._rows * self._tokens if self._real is not None else self._rows}
        for count in counts:
            flags = self._flags[count]
            # One copy that is waited for, and no launch.
            raised = flags.cpu().view(self._rows, -1) != 0
            if not bool(raised.any()):
                continue
            flags.zero_()
            if self._real is not None and raised.shape[1] == self._tokens:
                raised = raised & self._real.cpu()
            rows = raised.any(1)
            found = rows if found is None else found | rows
        return found

    def spots(self, outputs: Sequence[Output], rows: Tensor) -> set[Spot]:
        """Return where flags are raised in outputs of this forward, of rows, bool (rows,)."""
        found: set[Spot] = set()
        for output in outputs:
            vectors = output.values.numel() // output.values.shape[-1]
            each = vectors // len(rows)
            wanted = rows.repeat_interleave(each)
            if self._real is not None:
                wanted = wanted & fit_tokens(self._real.cpu(), each).expand(
                    len(rows), each
                ).reshape(-1)
            chosen = wanted.nonzero()[:, 0]
            for at, check in enumerate(self._checks):
                spots = check.spots(output, chosen.to(self.device))
                found |= {(at, output.seat, *spot, spot[0] // each) for spot in spots}
        return found

    @property
    def learned(self) -> Tensor | None:
        """What this forward's layers put out, fp32 (places, 2, rows), on the first token."""
        return None if self._learner is None else self._learner.seen

    def adopt(self, before: Tensor | None, chosen: Tensor) -> None:
        """Learn of the rows that are not chosen what they put out before."""
        if self._learner is not None and before is not None:
            seen = self._learner.seen
            mask = chosen.to(seen.device)
            seen.copy_(torch.where(mask, seen, before))

    def learn(self, requests: Requests) -> None:
        """Take in what the first token's forward put out."""
        if self._learner is None:
            return
        lane = self._number
        seen = self._learner.seen
        known = requests.learned.get(lane)
        if known is None:
            requests.learned[lane] = seen.clone()
        else:
            known[:, 0] = torch.minimum(known[:, 0], seen[:, 0])
            known[:, 1] = torch.maximum(known[:, 1], seen[:, 1])
        requests.version += 1

    def _begin_bounds(
        self, forward: Forward, requests: Requests, scale: float, profile: Any
    ) -> None:
        rows = forward.rows
        if rows not in self._bounds:
            with torch.inference_mode(False):
                shape = (len(self._places), 2, rows)
                table = torch.zeros(shape, dtype=torch.float32, device=self.device)
            self._bounds[rows] = BoundsCheck(table, self._flags_of(rows), self._places)
        check = self._bounds[rows]
        if forward.is_first_token:
            if rows not in self._learners:
                self._learners[rows] = _FirstToken(self._places, rows, self.device)
            self._learner = self._learners[rows]
            self._learner.reset()
            self._learner.real = self._real
            if profile is None:
                return
            pairs = [profile.bounds[name] for name in self._owners]
            both = torch.tensor(pairs, dtype=torch.float32)[:, :, None]
            self._hold(check, both.expand(-1, -1, rows).to(self.device), scale)
            self._held = None
        else:
            known = requests.learned.get(self._number)
            if known is None:
                return
            if self._held != (requests, requests.version):
                each = requests.rows_each
                low, high = (
                    reduced.repeat_interleave(each, 1)
                    for reduced in (
                        known[:, 0].view(len(known), -1, each).amin(2),
                        known[:, 1].view(len(known), -1, each).amax(2),
                    )
                )
                self._hold(check, torch.stack([low, high], 1), scale)
                self._held = (requests, requests.version)
        self.is_bounding = True
        self._checks.append(check)

    def _hold(self, check: BoundsCheck, learned: Tensor, scale: float) -> None:
        places, _, rows = learned.shape
        low, high = learned[:, 0].flatten(), learned[:, 1].flatten()
        widened = widen(low, high, scale, self._dtype, places * rows)
        check.bounds.copy_(torch.stack([each.view(places, rows) for each in widened], 1))

    def _flags_of(self, count: int) -> Tensor:
        if count not in self._flags:
            # Made outside inference mode, a tensor can be updated inside and outside of it.
            with torch.inference_mode(False):
                self._flags[count] = torch.zeros(count, dtype=torch.uint8, device=self.device)
            keep_address(self._flags[count])
        return self._flags[count]


class _ByToken:
    """A check with a flag for each token, where a layer runs on just these, else for each row."""

    def __init__(self, check: Any, by_token: Tensor, by_row: Tensor) -> None:
        self._check, self._by_token, self._by_row = check, by_token, by_row

    def __call__(self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]) -> None:
        fits = [each.numel() // each.shape[-1] == len(self._by_token) for each in outputs]
        for flags, chosen in ((self._by_token, True), (self._by_row, False)):
            at = [place for place, fit in enumerate(fits) if fit is chosen]
            self._check.flags = flags
            if at:
                self._check(
                    [seats[each] for each in at],
                    [hidden[each] for each in at],
                    [outputs[each] for each in at],
                )


class _FirstToken:
    """Sees between which bounds the layers of a forward stay, for each row; ±Inf and NaN aside."""

    def __init__(self, places: Sequence[Place], rows: int, device: torch.device) -> None:
        self.real: Tensor | None = None
        self._rows = rows
        self._places: dict[int, list[Place]] = {}
        for at, (seat, start, stop) in enumerate(places):
            self._places.setdefault(seat, []).append((at, start, stop))
        with torch.inference_mode(False):
            self.seen = torch.zeros((len(places), 2, rows), dtype=torch.float32, device=device)
        keep_address(self.seen)

    def reset(self) -> None:
        self.seen[:, 0] = torch.inf
        self.seen[:, 1] = -torch.inf

    def __call__(self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]) -> None:
        for seat, output in zip(seats, outputs, strict=True):
            for at, start, stop in self._places.get(seat, ()):
                view = output.detach().reshape(self._rows, -1, output.shape[-1])
                part = view[..., start:stop].float()
                shown = part.isfinite()
                if self.real is not None:
                    real = fit_tokens(self.real, view.shape[1]).to(view.device)
                    shown = shown & real[..., None]
                low = torch.where(shown, part, torch.inf).flatten(1).amin(1)
                high = torch.where(shown, part, -torch.inf).flatten(1).amax(1)
                self.seen[at, 0] = torch.minimum(self.seen[at, 0], low)
                self.seen[at, 1] = torch.maximum(self.seen[at, 1], high)
