"""Undo what a forward changed in its cache, by a record that is made before it.

Layers that grow are cut to their length again. Static ones write in place, behind a length: the
length is kept, and what the same tokens will overwrite again is left. Of other layers that replace
their tensors, references are enough; windows that move in place, and recurrent states, are copied,
all of them in one operation a forward.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    StaticCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from ft2.forward.adoption import adopted_tensor

__all__ = ["CacheRecord", "Kept", "LengthRecord", "UndoError", "rows_written_elsewhere"]


class UndoError(ValueError):
    """What a forward changes cannot be undone; the message says what."""


def _kinds(*names: str) -> tuple[type, ...]:
    """Classes of cache layers that this release of transformers has."""
    return tuple(getattr(cache_utils, name) for name in names if hasattr(cache_utils, name))


_GROWING = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    *_kinds("DynamicIndexedLayer", "DummyLayer"),
)
_STATIC = (StaticLayer, StaticSlidingWindowLayer, *_kinds("StaticIndexedLayer"))
_RECURRENT = _kinds(
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionAndStaticFullAttentionLayer",
    "LinearAttentionAndStaticSlidingWindowAttentionLayer",
)
_FLAT = (Cache, DynamicCache, StaticCache)
_CACHES = (*_FLAT, EncoderDecoderCache)
_LENGTHS = ("cumulative_length", "indexer_cumulative_length")

# Of layers that keep nothing of a forward but what it writes for each row: where that is.
_Written = Callable[[Any], list[tuple[Tensor, Any]]]
_ELSEWHERE: dict[type, _Written] = {}


def rows_written_elsewhere(kind: type, written: _Written) -> None:
    """Let forwards be undone that write to cache layers of a class of one's own.

    Parameters
    ----------
    kind:
        The class. A forward writes the same places again when it is computed again, and changes
        nothing else.
    written:
        Given a layer, returns tensors (rows, ...), and of each the index that was written.
    """
    _ELSEWHERE[kind] = written


class CacheRecord:
    """What caches held before a forward.

    Parameters
    ----------
    caches:
        Those that the forward is given.
    tokens:
        How many tokens it computes.

    Raises
    ------
    UndoError
        If a cache is of a kind that cannot be put back.
    """

    def __init__(self, caches: Iterable[Any], tokens: int) -> None:
        self._tokens = tokens
        self._attributes: list[tuple[Any, dict[str, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._live: list[Tensor] = []
        self._grown: list[tuple[Any, int]] = []
        self._rolled: list[Any] = []
        self._fresh: list[Any] = []
        for cache in caches:
            self._record(cache)
        # One launch where they are on one device; a recurrent model's states are many.
        with torch.no_grad():
            self._saved = [torch.empty_like(each) for each in self._live]
            if self._live:
                torch._foreach_copy_(self._saved, self._live)

    def undo(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for layer, length in self._grown:
                _cut(layer, length)
            for layer in self._rolled:
                for whole in (layer.keys, layer.values):
                    whole.copy_(whole.roll(1, -2))
            for owner, before in self._attributes:
                vars(owner).update(_shallow(before))
            for layer in self._fresh:
                for name in _LENGTHS:
                    if isinstance(getattr(layer, name, None), Tensor):
                        getattr(layer, name).zero_()
            for here, before_list in self._lists:
                here[:] = before_list
            if self._live:
                torch._foreach_copy_(self._live, self._saved)

    def _record(self, cache: Any) -> None:
        kind = type(cache)
        if isinstance(cache, EncoderDecoderCache):
            self._attributes.append((cache, _shallow(vars(cache))))
            self._record(cache.self_attention_cache)
            self._record(cache.cross_attention_cache)
            return
        if kind not in _CACHES or getattr(cache, "offloading", False):
            what = "a cache that is moved between devices" if kind in _CACHES else _named(kind)
            raise UndoError(
                f"ft2-recompute cannot undo a forward that writes to {what}: use one of "
                "transformers' dynamic or static caches, or another protection"
            )
        self._lists.append((cache.layers, list(cache.layers)))
        for layer in cache.layers:
            self._record_layer(layer)

    def _record_layer(self, layer: Any) -> None:
        kind = type(layer)
        if kind in _ELSEWHERE:
            return
        if kind not in _GROWING + _STATIC + _RECURRENT:
            raise UndoError(
                f"ft2-recompute cannot undo a forward that writes to {_named(kind)}: use one of "
                "transformers' dynamic or static caches, or another protection"
            )
        # A reference to what it held would keep all of it in memory, beside the longer one.
        if kind is DynamicLayer and _can_be_cut(layer):
            self._grown.append((layer, layer.keys.shape[-2]))
            return
        if kind in _RECURRENT:
            for states in (layer.conv_states, layer.recurrent_states):
                self._live += [each for each in states.values() if each is not None]
        if isinstance(layer, StaticLayer):
            self._record_static(layer)
        else:
            self._attributes.append((layer, _shallow(vars(layer))))

    def _record_static(self, layer: Any) -> None:
        # Memory that is there stays: compiled code knows its address.
        steady = {
            name: each
            for name, each in _shallow(vars(layer)).items()
            if isinstance(each, dict) or (isinstance(each, int) and "initialized" not in name)
        }
        self._attributes.append((layer, steady))
        if not layer.is_initialized:
            self._fresh.append(layer)
            return
        lengths = (getattr(layer, name, None) for name in _LENGTHS)
        self._live += [each for each in lengths if each is not None]
        if isinstance(layer, StaticSlidingWindowLayer):
            self._record_window(layer)

    def _record_window(self, layer: Any) -> None:
        """Keep what a window that is full moves out, or all of it where it moves by several."""
        held, room = layer.cumulative_length_int, layer.max_cache_len
        if held == 0 or held + self._tokens <= room:
            return
        if held >= room and self._tokens == 1:
            self._rolled.append(layer)
            self._live += [layer.keys[:, :, :1], layer.values[:, :, :1]]
        else:
            self._live += [layer.keys, layer.values]


class LengthRecord:
    """What a cache of plain layers held before a forward, by their lengths alone.

    Parameters
    ----------
    layers:
        The cache's own list of them, which grows where layers are made late.
    lengths:
        Of dynamic layers.
    live:
        Of static layers, which count on their device, all of them on one.
    """

    def __init__(self, layers: list[Any], lengths: list[int], live: list[Tensor]) -> None:
        self._layers, self._count = layers, len(layers)
        self._lengths, self._live = lengths, live
        with torch.no_grad():
            self._saved = torch.stack(live) if live else None

    @classmethod
    def of(cls, cache: Any) -> LengthRecord | None:
        """Return what a cache holds now, or None if its layers' lengths do not tell it."""
        if type(cache) not in _FLAT or getattr(cache, "offloading", False):
            return None
        layers = cache.layers
        kinds = set(map(type, layers))
        if kinds == {DynamicLayer} and all(map(_can_be_cut, layers)):
            return cls(layers, [layer.keys.size(-2) for layer in layers], [])
        if kinds == {StaticLayer} and all(layer.is_initialized for layer in layers):
            # Layers of transformers before 5.4 count nothing.
            live = [
                layer.cumulative_length for layer in layers if hasattr(layer, "cumulative_length")
            ]
            if len(live) == len(layers) and len({each.device for each in live}) == 1:
                return cls(layers, [], live)
        return None

    def undo(self) -> None:
        """Put everything back."""
        del self._layers[self._count :]
        with torch.no_grad():
            for layer, length in zip(self._layers, self._lengths, strict=False):
                _cut(layer, length)
            if self._saved is not None:
                torch._foreach_copy_(self._live, list(self._saved.unbind()))


class Kept:
    """What rows have in a cache after a forward, for when it has been computed again.

    Parameters
    ----------
    cache:
        What the forward was given, or the one that it made and returned.
    cached, tokens:
        How many tokens it held before, and how many the forward added.
    """

    def __init__(self, cache: Any, cached: int, tokens: int) -> None:
        self._cached, self._tokens = cached, tokens
        with torch.no_grad():
            self._before = [
                # What is replaced is not written to any more.
                values if index is None else values[index].clone()
                for _, values, index in self._parts(cache)
            ]

    def adopt(self, cache: Any, chosen: Tensor) -> None:
        """Put the rows back that are not chosen, bool (rows,)."""
        with torch.no_grad():
            for (put, values, index), before in zip(self._parts(cache), self._before, strict=True):
                if index is None:
                    put(adopted_tensor(values, before, chosen))
                else:
                    values[index] = adopted_tensor(values[index], before, chosen)

    def _parts(self, cache: Any) -> Iterator[tuple[Any, Tensor, Any]]:
        """Yield what a forward wrote: a way to replace it, the tensor, and where in it, if partly.

        What is not by row is left out by its shape, when rows are chosen.
        """
        if cache is None:
            return
        if isinstance(cache, EncoderDecoderCache):
            yield from self._parts(cache.self_attention_cache)
            yield from self._parts(cache.cross_attention_cache)
            return
        for layer in getattr(cache, "layers", ()):
            yield from self._parts_of_layer(layer)

    def _parts_of_layer(self, layer: Any) -> Iterator[tuple[Any, Tensor, Any]]:
        written = _ELSEWHERE.get(type(layer))
        if written is not None:
            for values, index in written(layer):
                yield None, values, index
            return
        is_static = isinstance(layer, StaticLayer)
        is_whole = isinstance(layer, StaticSlidingWindowLayer)
        for name, values in list(vars(layer).items()):
            if isinstance(values, dict):
                for each in values.values():
                    if isinstance(each, Tensor):
                        yield _nowhere, each, slice(None)
            elif not isinstance(values, Tensor) or name in _LENGTHS or values.dim() < 2:
                continue
            elif is_whole:
                yield _nowhere, values, slice(None)
            elif is_static:
                tokens = slice(self._cached, self._cached + self._tokens)
                where = (slice(None), tokens) if values.dim() == 3 else (..., tokens, slice(None))
                yield _nowhere, values, where
            else:
                yield _Put(layer, name), values, None


class _Put:
    """Replaces an attribute."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner = weakref.ref(owner)
        self._name = name

    def __call__(self, values: Tensor) -> None:
        setattr(self._owner(), self._name, values)


def _can_be_cut(layer: Any) -> bool:
    """Whether a dynamic layer can be cut to its length, and loses no gradients by that."""
    if not layer.is_initialized:
        return False
    keys, values = layer.keys, layer.values
    return keys.dim() == 4 and not (keys.requires_grad or values.requires_grad)


def _cut(layer: Any, length: int) -> None:
    layer.keys = layer.keys[..., :length, :]
    layer.values = layer.values[..., :length, :]


def _nowhere(values: Tensor) -> None:
    """What is written in place is not replaced."""


def _shallow(attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        name: dict(each) if isinstance(each, dict) else each for name, each in attributes.items()
    }


def _named(kind: type) -> str:
    return f"a {kind.__module__}.{kind.__qualname__}"
