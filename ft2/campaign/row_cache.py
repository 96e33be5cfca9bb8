"""The keys and values of a running batch whose rows share prefixes: each prefix is stored once.

A row reads the prefix that it continues (its golden run up to the fault, or its own prompt), and
owns keys and values only from there on. Rows are at different steps, and the batch is no wider for
it: where a row's own tokens lie does not depend on their positions, which the keys carry.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from ft2.forward import cache_argument, rows_written_elsewhere

__all__ = ["Attending", "Prefixes", "RowCache", "chooses_attention", "kernels_for"]

_NAME = "ft2-rows"


def chooses_attention(model: nn.Module) -> bool:
    """Whether a model's attention function can be chosen."""
    return bool(getattr(model, "_supports_attention_backend", False))


def kernels_for(like: Tensor) -> Any:
    """Return the module with kernels for such keys and values; None if there is none.

    In fp32 there is none: there trials give what they give alone, computed as it is computed there.
    """
    if not like.is_cuda or like.dtype not in (torch.float16, torch.bfloat16):
        return None
    return _working_kernels(like.device)


@functools.cache
def _working_kernels(device: torch.device) -> Any:
    # Triton is not everywhere, and needs a C compiler when it first runs.
    try:
        kernels = importlib.import_module("ft2.campaign.row_kernels")
        ones = torch.ones(1, 1, 1, 16, dtype=torch.float16, device=device)
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        both = (ones, ones)
        kernels.attend(ones, both, [(*both, 1)], (ones * 1, ones * 1), zero, zero, zero, 1.0)
    except Exception:
        return None
    return kernels


@dataclass(eq=False)
class Prefixes:
    """Prefixes of equal width, and the rows that read them: `rows_each` rows for each, in order.

    Attributes
    ----------
    keys, values:
        For each layer (prefixes, heads, columns, size).
    """

    keys: list[Tensor]
    values: list[Tensor]
    rows_each: int

    @property
    def rows(self) -> int:
        """How many rows read them."""
        return self.keys[0].shape[0] * self.rows_each

    @property
    def columns(self) -> int:
        """How many tokens each has room for."""
        return self.keys[0].shape[2]

    def blank(self, count: int, columns: int) -> Prefixes:
        """Return `count` prefixes of zeros with these layers, one row each."""
        keys, values = (
            [each.new_zeros(count, each.shape[1], columns, each.shape[3]) for each in side]
            for side in (self.keys, self.values)
        )
        return Prefixes(keys, values, 1)

    def take(self, prefixes: list[int], rows_each: int) -> Prefixes:
        """Return some of them, in order, to be read by so many rows each; all are not copied."""
        if prefixes == list(range(self.keys[0].shape[0])):
            return Prefixes(self.keys, self.values, rows_each)
        keys, values = ([each[prefixes] for each in side] for side in (self.keys, self.values))
        return Prefixes(keys, values, rows_each)

    def copies(self, prefix: int) -> list[tuple[Tensor, Tensor]]:
        """Return copies of one prefix: each layer's keys and values, (1, heads, columns, size)."""
        one = slice(prefix, prefix + 1)
        both = zip(self.keys, self.values, strict=True)
        return [(keys[one].clone(), values[one].clone()) for keys, values in both]

    def put(self, places: Tensor, other: Prefixes, theirs: Tensor, column: int) -> None:
        """Copy prefixes of `other` to `places`, both int64 (copied,), from `column` on.

        What was there before is gone: what is hidden weighs nothing, but 0 times NaN is NaN.
        """
        for here, there in self._layers(other):
            here[places, :, :column] = 0
            here[places, :, column : column + there.shape[2]] = there[theirs]

    def extend(self, column: int, own: RowCache, rows: slice) -> None:
        """Copy what rows own, one for each prefix, behind `column`."""
        for here, there in self._layers(own):
            here[:, :, column : column + there.shape[2]] = there[rows]

    def _layers(self, other: Prefixes | RowCache) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.keys, other.keys, strict=True)
        yield from zip(self.values, other.values, strict=True)


class RowCache:
    """The keys and values of all rows of a batch.

    Parameters
    ----------
    groups:
        The prefixes; the batch's rows are those of the first group, then those of the next.
    columns:
        How many tokens of its own a row has room for.
    copied:
        Whether a model is given copies of what its rows see.
    """

    def __init__(self, groups: Sequence[Prefixes], columns: int, copied: bool = False) -> None:
        self.groups = list(groups)
        self.rows = sum(group.rows for group in groups)
        self.columns = columns
        first = groups[0]
        self.device = first.keys[0].device
        self.keys, self.values = (
            [each.new_zeros(self.rows, each.shape[1], columns, each.shape[3]) for each in side]
            for side in (first.keys, first.values)
        )
        self.start = torch.zeros(self.rows, dtype=torch.int64, device=self.device)
        self.stop = torch.zeros(self.rows, dtype=torch.int64, device=self.device)
        self._every_row = torch.arange(self.rows, device=self.device)
        self._prefix_columns = torch.arange(first.columns, device=self.device)
        self._own_columns = torch.arange(columns, device=self.device)
        self._kernels: Any = None if copied else kernels_for(first.keys[0])
        # Of each layer what is to be kept when it is attended to.
        self._new: dict[int, tuple[Tensor, Tensor]] = {}
        self._seen: Tensor | None = None
        self._length: Tensor
        self.width = 0

    def join(self, rows: Tensor, start: Tensor, stop: Tensor) -> None:
        """Let rows, int64 (joining,), begin with the columns `start` to `stop` of their prefix."""
        self.start[rows] = start
        self.stop[rows] = stop
        if self._kernels is None:
            # What a row leaves behind is hidden, which does not help against NaN.
            for each in (*self.keys, *self.values):
                each[rows] = 0

    def begin(self, length: Tensor, width: int) -> None:
        """Prepare a forward.

        Parameters
        ----------
        length:
            int64 (rows,): how many tokens of its own each row has before it.
        width:
            One more than the largest of these.
        """
        self._length, self.width = length.contiguous(), width
        self._seen = None
        self._new.clear()

    @property
    def attends_in_kernels(self) -> bool:
        """Whether forwards launch the same kernels whatever the rows' progress."""
        return self._kernels is not None

    @property
    def _hidden(self) -> Tensor:
        """bool (rows, columns): what rows do not see, of their prefixes and of their own."""
        if self._seen is None:
            prefix = self._prefix_columns
            is_prefix = (prefix >= self.start[:, None]) & (prefix < self.stop[:, None])
            is_own = self._own_columns[: self.width] <= self._length[:, None]
            self._seen = ~torch.cat([is_prefix, is_own], 1)
        return self._seen

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return what is added to the scores, (rows, 1, 1, columns): 0 where a row sees."""
        lowest = torch.finfo(dtype).min
        mask = torch.zeros(self._hidden.shape, dtype=dtype, device=self.device)
        return mask.masked_fill_(self._hidden, lowest)[:, None, None, :]

    def take(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Take in what :meth:`write` writes, at the latest when the layer is attended to."""
        if self._kernels is None:
            self.write(layer, keys, values)
        else:
            self._new[layer] = keys, values

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Take in the keys and values of each row's token, (rows, heads, 1, size)."""
        self.keys[layer][self._every_row, :, self._length] = keys[:, :, 0]
        self.values[layer][self._every_row, :, self._length] = values[:, :, 0]

    def written(self, layer: int) -> list[tuple[Tensor, Any]]:
        """Return keys and values, (rows, ...), and where in them :meth:`write` writes."""
        where = (self._every_row, slice(None), self._length)
        return [(self.keys[layer], where), (self.values[layer], where)]

    def gathered(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values, (rows, heads, columns, size), each row's prefix copied."""
        own = self.keys[layer], self.values[layer]
        both = []
        for side, mine in zip(("keys", "values"), own, strict=True):
            prefixes = [
                getattr(group, side)[layer].repeat_interleave(group.rows_each, 0)
                for group in self.groups
            ]
            both.append(torch.cat([torch.cat(prefixes), mine[:, :, : self.width]], 2))
        return both[0], both[1]

    def alone(self, layer: int, row: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values that a row sees, (1, heads, tokens, size), and no others."""
        first = 0
        for group in self.groups:
            if row < first + group.rows:
                break
            first += group.rows
        prefix = (row - first) // group.rows_each
        seen = slice(int(self.start[row]), int(self.stop[row]))
        own = slice(0, int(self._length[row]) + 1)
        keys, values = (
            torch.cat([shared[layer][prefix, :, seen], mine[layer][row, :, own]], 1)[None]
            for shared, mine in ((group.keys, self.keys), (group.values, self.values))
        )
        return keys, values

    def attend(self, layer: int, query: Tensor, scaling: float) -> tuple[Tensor, list[int]]:
        """Attend to each row's prefix, read once for all its rows, and to its own tokens.

        Parameters
        ----------
        query:
            (rows, heads, 1, size).
        scaling:
            Factor of the scores.

        Returns
        -------
        tuple
            The output, (rows, 1, heads, size), and the rows where numbers came near to what their
            type holds. What comes of overflows depends on the order of the operations, so it is not
            known for these; the list is always empty for half precision on accelerators.
        """
        rows, heads, _, size = query.shape
        if self._kernels is not None:
            return self._attend_in_kernels(layer, query, scaling)[:, None], []
        own_keys = self.keys[layer][:, :, : self.width]
        own_values = self.values[layer][:, :, : self.width]
        shared = own_keys.shape[1]
        each = heads // shared
        scaled = (query * scaling).view(rows, shared, each, size)
        scores = torch.cat(
            [
                torch.cat(self._of_groups(scaled, [group.keys[layer].mT for group in self.groups])),
                scaled @ own_keys.mT,
            ],
            -1,
        )
        extreme = self._extreme(scores)
        hidden = self._hidden[:, None, None, :]
        weights = torch.softmax(scores.masked_fill_(hidden, -torch.inf), -1, dtype=torch.float32)
        weights = weights.to(own_values.dtype)
        columns = self.groups[0].columns
        prefix, own = weights[..., :columns], weights[..., columns:]
        output = torch.cat(self._of_groups(prefix, [group.values[layer] for group in self.groups]))
        output = output + own @ own_values
        extreme |= self._extreme(output)
        return output.reshape(rows, 1, heads, -1), sorted(extreme)

    def _attend_in_kernels(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        new = self._new.pop(layer, None)
        if new is None:
            raise NotImplementedError("its layers attend to each other's keys")
        groups = [(each.keys[layer], each.values[layer], each.rows_each) for each in self.groups]
        own = self.keys[layer], self.values[layer]
        output: Tensor = self._kernels.attend(
            query, new, groups, own, self.start, self.stop, self._length, scaling
        )
        return output

    def _extreme(self, values: Tensor) -> set[int]:
        """Return the rows with NaN, or with numbers so large that some near them overflow."""
        if values.is_cuda and values.dtype in (torch.float16, torch.bfloat16):
            # Here outcomes depend on the batch anyway, and asking would stop the device.
            return set()
        limit = torch.finfo(values.dtype).max ** 0.75
        low, high = values.aminmax()
        if low > -limit and high < limit:
            return set()
        is_fine = (values.abs() < limit).flatten(1).all(1)
        return set((~is_fine).nonzero()[:, 0].tolist())

    def _of_groups(self, left: Tensor, right: list[Tensor]) -> list[Tensor]:
        """Multiply each group's rows of `left`, (rows, heads, each, n), with its matrices."""
        products = []
        start = 0
        for group, matrices in zip(self.groups, right, strict=True):
            part = left[start : start + group.rows]
            start += group.rows
            count, (_, heads, each, width) = matrices.shape[0], part.shape
            together = part.view(count, group.rows_each, heads, each, width).transpose(1, 2)
            product = together.reshape(count, heads, group.rows_each * each, width) @ matrices
            product = product.view(count, heads, group.rows_each, each, -1).transpose(1, 2)
            products.append(product.reshape(group.rows, heads, each, -1))
        return products


class _Layer(CacheLayerMixin):
    """One layer of a :class:`RowCache`, as a model sees it."""

    is_sliding = False

    def __init__(self, cache: RowCache, index: int, gather: bool) -> None:
        super().__init__()
        self.is_initialized = True
        self._cache = cache
        self._index = index
        self._gather = gather

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self._gather:
            self._cache.write(self._index, key_states, value_states)
            return self._cache.gathered(self._index)
        self._cache.take(self._index, key_states, value_states)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.groups[0].columns + self._cache.width, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        """What some releases of transformers 5 call :meth:`get_max_length`."""
        return -1

    def written(self) -> list[tuple[Tensor, Any]]:
        """Return what a forward writes to, and where."""
        return self._cache.written(self._index)


rows_written_elsewhere(_Layer, _Layer.written)


class Attending:
    """Lets a model attend to a :class:`RowCache`.

    Models whose attention function can be chosen read each prefix once for all its rows; others are
    given copies, and a mask.

    Parameters
    ----------
    model:
        The model.
    cache:
        What its forwards attend to inside :meth:`on`.
    """

    def __init__(self, model: nn.Module, cache: RowCache) -> None:
        config: Any = model.config
        self._config = config.get_text_config(decoder=True)
        self._cache = cache
        self._chooses = chooses_attention(model)
        layers = [_Layer(cache, each, not self._chooses) for each in range(len(cache.keys))]
        self._before: str | None = None
        self._argument = cache_argument(model)
        self._past: Any = Cache(layers=layers)

    @contextmanager
    def on(self) -> Generator[dict[str, Any], None, None]:
        """Attend to the cache, in one forward; yields arguments for it."""
        if not self._chooses:
            mask = self._cache.mask(self._cache.keys[0].dtype)
            yield {self._argument: self._past, "attention_mask": mask}
            return
        self._before = self._config._attn_implementation_internal
        AttentionInterface.register(_NAME, self._attend)
        self._config._attn_implementation_internal = _NAME
        try:
            yield {self._argument: self._past}
        finally:
            self._config._attn_implementation_internal = self._before
            del AttentionInterface._global_mapping[_NAME]

    def _attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        for name in ("softcap", "s_aux", "position_bias"):
            if others.get(name) is not None:
                raise NotImplementedError(f"its attention takes {name}")
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        output, extreme = self._cache.attend(module.layer_idx, query, factor)
        for row in extreme:
            keys, values = self._cache.alone(module.layer_idx, row)
            output[row] = self._original(module)(
                module, query[row : row + 1], keys, values, None, scaling=scaling, **others
            )[0][0]
        return output, None

    def _original(self, module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
        """Return the attention function that the model uses without this cache."""
        if self._before == "eager":
            return sys.modules[type(module).__module__].eager_attention_forward
        return AttentionInterface._global_mapping[self._before]
