"""Attention of a batch's rows to the prefixes that they share and to what they own, in Triton.

Two launches in place of some twenty. The first goes over the prefixes: rows that read the same one
are multiplied with it together. The second goes on from there over each row's own keys and values,
which nobody else reads, and takes in those of its new token. Between them stands, for each row and
head, what a softmax that is not at its end needs: the largest score, the sum of the weights, and
the sum of the weighted values, all in fp32.

Columns are taken in portions that begin at fixed numbers, so a row's result does not depend on
which others it is computed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["attend"]

_LOG2_E = 1.4426950408889634
_PREFIX_COLUMNS = 32
# How a row's own columns are gone over: benchmarks/row_attention.py compares others.
OWN_COLUMNS = 16
OWN_WARPS = 1
_FEWEST_QUERIES = 16
_MOST_QUERIES = 64
# Of wide heads fewer fit into a multiprocessor's memory.
_WIDE, _MOST_WIDE_QUERIES = 128, 32


@triton.jit(do_not_specialize=["first", "rows_each"])
def _attend_to_prefixes(
    query: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    keys: tl.tensor,
    key_prefix: tl.tensor,
    key_head: tl.tensor,
    key_column: tl.tensor,
    values: tl.tensor,
    value_prefix: tl.tensor,
    value_head: tl.tensor,
    value_column: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    largest: tl.tensor,
    weight: tl.tensor,
    weighted: tl.tensor,
    first: tl.tensor,
    rows_each: tl.tensor,
    factor: tl.tensor,
    heads: tl.constexpr,
    each: tl.constexpr,
    key_size: tl.constexpr,
    key_width: tl.constexpr,
    value_size: tl.constexpr,
    value_width: tl.constexpr,
    queries: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    """Compute a portion of the queries of rows that read one prefix, at one head of its keys."""
    prefix = tl.program_id(1).to(tl.int64)
    shared = tl.program_id(2).to(tl.int64)
    number = tl.program_id(0) * queries + tl.arange(0, queries)
    is_query = number < rows_each * each
    row = first + prefix * rows_each + number // each
    head = shared * each + number % each
    in_key = tl.arange(0, key_width)
    in_value = tl.arange(0, value_width)
    asked = tl.load(
        query + (row * query_row + head * query_head)[:, None] + in_key[None, :],
        mask=is_query[:, None] & (in_key < key_size)[None, :],
        other=0.0,
    )
    # What nobody sees is never read: it may be NaN, and 0 times that is, too.
    begin = tl.load(start + row, mask=is_query, other=2**31 - 1).to(tl.int32)
    end = tl.load(stop + row, mask=is_query, other=0).to(tl.int32)
    lowest = tl.min(begin, 0)
    highest = tl.max(end, 0)
    best = tl.full([queries], float("-inf"), tl.float32)
    total = tl.zeros([queries], tl.float32)
    summed = tl.zeros([queries, value_width], tl.float32)
    keys += prefix * key_prefix + shared * key_head
    values += prefix * value_prefix + shared * value_head
    for portion in range(lowest // columns * columns, highest, columns):
        column = portion + tl.arange(0, columns)
        is_read = (column >= lowest) & (column < highest)
        key = tl.load(
            keys + column[None, :] * key_column + in_key[:, None],
            mask=is_read[None, :] & (in_key < key_size)[:, None],
            other=0.0,
        )
        sees = (column[None, :] >= begin[:, None]) & (column[None, :] < end[:, None])
        scores = tl.where(sees, tl.dot(asked, key) * factor, float("-inf"))
        better = tl.maximum(best, tl.max(scores, 1))
        # Where nothing is seen yet, nothing is subtracted: infinities have no difference.
        base = tl.where(better == float("-inf"), 0.0, better)
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(best - base)
        value = tl.load(
            values + column[:, None] * value_column + in_value[None, :],
            mask=is_read[:, None] & (in_value < value_size)[None, :],
            other=0.0,
        )
        total = total * fade + tl.sum(weights, 1)
        summed = summed * fade[:, None] + tl.dot(weights.to(value.dtype), value)
        best = better
    place = row * heads + head
    tl.store(largest + place, best, mask=is_query)
    tl.store(weight + place, total, mask=is_query)
    tl.store(
        weighted + place[:, None] * value_size + in_value[None, :],
        summed,
        mask=is_query[:, None] & (in_value < value_size)[None, :],
    )


@triton.jit
def _attend_to_own(
    query: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    new_key: tl.tensor,
    new_key_row: tl.tensor,
    new_key_head: tl.tensor,
    new_value: tl.tensor,
    new_value_row: tl.tensor,
    new_value_head: tl.tensor,
    keys: tl.tensor,
    key_row: tl.tensor,
    key_head: tl.tensor,
    key_column: tl.tensor,
    values: tl.tensor,
    value_row: tl.tensor,
    value_head: tl.tensor,
    value_column: tl.tensor,
    length: tl.tensor,
    largest: tl.tensor,
    weight: tl.tensor,
    weighted: tl.tensor,
    output: tl.tensor,
    factor: tl.tensor,
    heads: tl.constexpr,
    each: tl.constexpr,
    key_size: tl.constexpr,
    key_width: tl.constexpr,
    value_size: tl.constexpr,
    value_width: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    """Go on with one row at one head of its query, over what it owns; keep its new token."""
    head = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    shared = head // each
    in_key = tl.arange(0, key_width)
    in_value = tl.arange(0, value_width)
    is_key = in_key < key_size
    is_value = in_value < value_size
    own = tl.load(length + row).to(tl.int32)
    asked = tl.load(
        query + row * query_row + head * query_head + in_key, mask=is_key, other=0.0
    ).to(tl.float32)
    last_key = tl.load(
        new_key + row * new_key_row + shared * new_key_head + in_key, mask=is_key, other=0.0
    )
    last_value = tl.load(
        new_value + row * new_value_row + shared * new_value_head + in_value,
        mask=is_value,
        other=0.0,
    )
    keys += row * key_row + shared * key_head
    values += row * value_row + shared * value_head
    if head % each == 0:
        tl.store(keys + own * key_column + in_key, last_key, mask=is_key)
        tl.store(values + own * value_column + in_value, last_value, mask=is_value)
    place = row * heads + head
    best = tl.load(largest + place)
    total = tl.load(weight + place)
    summed = tl.load(weighted + place * value_size + in_value, mask=is_value, other=0.0)
    for portion in range(0, own, columns):
        column = portion + tl.arange(0, columns)
        is_own = column < own
        key = tl.load(
            keys + column[:, None] * key_column + in_key[None, :],
            mask=is_own[:, None] & is_key[None, :],
            other=0.0,
        ).to(tl.float32)
        scores = tl.where(is_own, tl.sum(asked[None, :] * key, 1) * factor, float("-inf"))
        better = tl.maximum(best, tl.max(scores, 0))
        base = tl.where(better == float("-inf"), 0.0, better)
        weights = tl.where(is_own, tl.exp2(scores - base), 0.0)
        fade = tl.exp2(best - base)
        value = tl.load(
            values + column[:, None] * value_column + in_value[None, :],
            mask=is_own[:, None] & is_value[None, :],
            other=0.0,
        ).to(tl.float32)
        total = total * fade + tl.sum(weights, 0)
        summed = summed * fade + tl.sum(weights[:, None] * value, 0)
        best = better
    score = tl.sum(asked * last_key.to(tl.float32), 0) * factor
    better = tl.maximum(best, score)
    base = tl.where(better == float("-inf"), 0.0, better)
    last = tl.exp2(score - base)
    fade = tl.exp2(best - base)
    total = total * fade + last
    summed = summed * fade + last * last_value.to(tl.float32)
    result = (summed / total).to(output.dtype.element_ty)
    tl.store(output + place * value_size + in_value, result, mask=is_value)


def attend(
    query: Tensor,
    new: tuple[Tensor, Tensor],
    prefixes: Sequence[tuple[Tensor, Tensor, int]],
    own: tuple[Tensor, Tensor],
    start: Tensor,
    stop: Tensor,
    length: Tensor,
    scaling: float,
) -> Tensor:
    """Attend to prefixes and to rows' own keys and values, and put each row's new ones there.

    Parameters
    ----------
    query:
        (rows, heads, 1, size).
    new:
        Each row's new key and value, (rows, shared heads, 1, size).
    prefixes:
        Keys, values, (prefixes, shared heads, columns, size), and how many rows read each; the rows
        are those of the first, in order, then those of the next.
    own:
        Keys and values, (rows, shared heads, columns, size).
    start, stop:
        int64 (rows,): the columns of its prefix that a row sees.
    length:
        int64 (rows,): how many columns of its own; the new ones are put behind them.
    scaling:
        Factor of the scores.

    Returns
    -------
    Tensor
        (rows, heads, size of a value), in the dtype of the query.
    """
    rows, heads, _, size = query.shape
    query, new_key, new_value = (_with_dense_vectors(each) for each in (query, *new))
    own_keys, own_values = own
    shared, width = own_keys.shape[1], own_values.shape[3]
    device = query.device
    largest = torch.empty(rows, heads, dtype=torch.float32, device=device)
    weight = torch.empty_like(largest)
    weighted = torch.empty(rows, heads, width, dtype=torch.float32, device=device)
    output = torch.empty(rows, heads, width, dtype=query.dtype, device=device)
    factor = scaling * _LOG2_E
    sizes: dict[str, Any] = {
        "heads": heads,
        "each": heads // shared,
        "key_size": size,
        "key_width": max(triton.next_power_of_2(size), 16),
        "value_size": width,
        "value_width": max(triton.next_power_of_2(width), 16),
    }
    most = _MOST_QUERIES if max(size, width) <= _WIDE else _MOST_WIDE_QUERIES
    first = 0
    for keys, values, rows_each in prefixes:
        queries = rows_each * sizes["each"]
        together = _FEWEST_QUERIES if queries <= _FEWEST_QUERIES else most
        _attend_to_prefixes[(triton.cdiv(queries, together), keys.shape[0], shared)](
            query,
            *query.stride()[:2],
            keys,
            *keys.stride()[:3],
            values,
            *values.stride()[:3],
            start,
            stop,
            largest,
            weight,
            weighted,
            first,
            rows_each,
            factor,
            **sizes,
            queries=together,
            columns=_PREFIX_COLUMNS,
            num_stages=2,
        )
        first += keys.shape[0] * rows_each
    _attend_to_own[(heads, rows)](
        query,
        *query.stride()[:2],
        new_key,
        *new_key.stride()[:2],
        new_value,
        *new_value.stride()[:2],
        own_keys,
        *own_keys.stride()[:3],
        own_values,
        *own_values.stride()[:3],
        length,
        largest,
        weight,
        weighted,
        output,
        factor,
        **sizes,
        columns=OWN_COLUMNS,
        num_warps=OWN_WARPS,
    )
    return output


def _with_dense_vectors(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
