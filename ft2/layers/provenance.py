"""Where the elements of intermediate tensors come from: which columns of which linear products.

Everything belongs to storages, so that views need no rule: whatever reads or writes a view reads
or writes what is known of the same places.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor

__all__ = ["NOTHING", "Origin", "Provenance", "Stream"]

NOTHING = -1

# Beyond so many elements, or columns that meet in one element, only the set of columns is kept: a
# scan over a long chunk holds millions of elements.
_MOST_ELEMENTS = 1 << 22
_MOST_LAYERS = 4


class Origin(IntEnum):
    """What a tensor was computed from; the larger one wins."""

    CONSTANT = 0
    WEIGHT = 1
    DATA = 2


@dataclass(frozen=True, eq=False)
class Stream:
    """Columns of one linear product, on their way through one tensor.

    Attributes
    ----------
    source:
        The product's number.
    via:
        What they went through since, in words.
    ended:
        The activation or norm that they went through, or None. What has ended is followed only to
        recognise the product of a value with its own activation.
    columns:
        bool (width of the product,): which of its columns can be here at all.
    labels:
        int32, in the shape of the tensor: the column that each element holds, or -1. None: each
        element can hold each of `columns`.
    """

    source: int
    via: tuple[str, ...]
    ended: str | None
    columns: Tensor
    labels: Tensor | None

    @property
    def present(self) -> Tensor:
        """bool (width of the product,): which of its columns are here."""
        if self.labels is None:
            return self.columns
        present = torch.zeros_like(self.columns)
        held = self.labels.reshape(-1)
        present[held[held >= 0].long()] = True
        return present

    def blurred(self) -> Stream:
        """Return the stream without knowledge of which element holds which column."""
        return replace(self, columns=self.present, labels=None)

    @property
    def empty(self) -> bool:
        """Whether no column is left in it."""
        return not bool(
            self.columns.any() if self.labels is None else (self.labels != NOTHING).any()
        )

    @property
    def key(self) -> tuple[int, tuple[str, ...], str | None]:
        """What two streams must share to be one."""
        return self.source, self.via, self.ended


@dataclass
class _Storage:
    holders: int = 0
    origin: Origin = Origin.CONSTANT
    weights: frozenset[str] = frozenset()
    is_distribution: bool = False
    streams: list[Stream] = field(default_factory=list)


class Provenance:
    """What is known of all storages that are alive."""

    def __init__(self) -> None:
        self._storages: dict[int, _Storage] = {}
        self._seen: dict[int, weakref.ref[Tensor]] = {}

    def hold(self, tensor: Tensor) -> None:
        """Keep what is known of the tensor's storage for as long as the tensor lives."""
        key = id(tensor)
        if key in self._seen:
            return
        address = _address(tensor)
        storage = self._storages.setdefault(address, _Storage())
        storage.holders += 1

        def release(_: object) -> None:
            self._seen.pop(key, None)
            storage.holders -= 1
            if storage.holders == 0 and self._storages.get(address) is storage:
                del self._storages[address]

        self._seen[key] = weakref.ref(tensor, release)

    def is_known(self, tensor: Tensor) -> bool:
        """Whether the tensor shares its storage with one that is held."""
        return _address(tensor) in self._storages

    def has_streams(self, tensor: Tensor) -> bool:
        """Whether anything of the tensor's storage may hold columns of a product."""
        storage = self._storages.get(_address(tensor))
        return storage is not None and bool(storage.streams)

    def origin(self, tensor: Tensor) -> Origin:
        """Return what the tensor was computed from."""
        storage = self._storages.get(_address(tensor))
        return Origin.CONSTANT if storage is None else storage.origin

    def weights(self, tensor: Tensor) -> frozenset[str]:
        """Return the names of the parameters that a tensor of weights was computed from."""
        storage = self._storages.get(_address(tensor))
        return frozenset() if storage is None else storage.weights

    def is_distribution(self, tensor: Tensor) -> bool:
        """Whether the tensor was computed from a softmax, with no product of matrices since."""
        storage = self._storages.get(_address(tensor))
        return storage is not None and storage.is_distribution

    def declare_distribution(self, tensor: Tensor) -> None:
        """Note that the tensor was computed from a softmax."""
        self.hold(tensor)
        self._storages[_address(tensor)].is_distribution = True

    def declare(
        self, tensor: Tensor, origin: Origin, weights: frozenset[str] = frozenset()
    ) -> None:
        """Note what the tensor was computed from; what was noted before is not taken back."""
        self.hold(tensor)
        storage = self._storages[_address(tensor)]
        storage.origin = max(storage.origin, origin)
        storage.weights |= weights

    def read(self, tensor: Tensor) -> list[Stream]:
        """Return the streams in `tensor`, with labels in its shape."""
        storage = self._storages.get(_address(tensor))
        if storage is None or not storage.streams:
            return []
        found = []
        for stream in storage.streams:
            if stream.labels is None:
                found.append(stream)
                continue
            for window in _windows(stream.labels, tensor):
                found.append(replace(stream, labels=window.clone()))
        return [stream for stream in found if not stream.empty]

    def add(self, tensor: Tensor, streams: Iterable[Stream]) -> None:
        """Let the elements of `tensor` hold `streams` too, whose labels are in its shape."""
        # An empty view has no elements of the storage that it shares.
        if tensor.numel() == 0:
            return
        self.hold(tensor)
        held = self._storages[_address(tensor)].streams
        for stream in streams:
            if not stream.empty:
                _merge(held, tensor, stream)

    def erase(self, tensor: Tensor) -> None:
        """Forget what the elements of `tensor` held: they are overwritten."""
        storage = self._storages.get(_address(tensor))
        if storage is None or not storage.streams:
            return
        whole = tensor.numel() >= _elements(tensor)
        for stream in storage.streams:
            if stream.labels is not None:
                for window in _windows(stream.labels, tensor):
                    window.fill_(NOTHING)
        storage.streams = [
            stream
            for stream in storage.streams
            if not stream.empty and not (whole and stream.labels is None)
        ]


def _merge(held: list[Stream], tensor: Tensor, stream: Stream) -> None:
    alike = [index for index, other in enumerate(held) if other.key == stream.key]
    is_blurred = any(held[index].labels is None for index in alike)
    if (
        stream.labels is None
        or is_blurred
        or _elements(tensor) > _MOST_ELEMENTS
        or len(alike) >= _MOST_LAYERS
    ):
        columns = stream.present.clone()
        for index in reversed(alike):
            columns |= held.pop(index).present
        held.append(replace(stream, columns=columns, labels=None))
        return
    for index in alike:
        labels = held[index].labels
        assert labels is not None
        windows = _windows(labels, tensor)
        if all(_fits(stream.labels, window) for window in windows):
            for window in windows:
                window.copy_(torch.where(window == NOTHING, stream.labels, window))
            return
    flat = torch.full((_elements(tensor),), NOTHING, dtype=torch.int32)
    for window in _windows(flat, tensor):
        window.copy_(stream.labels)
    held.append(replace(stream, labels=flat))


def _fits(labels: Tensor, window: Tensor) -> bool:
    return bool(((window == NOTHING) | (labels == NOTHING) | (window == labels)).all())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _elements(tensor: Tensor) -> int:
    """Elements of the tensor's storage, a complex number counting as two."""
    size = tensor.element_size() // (2 if tensor.is_complex() else 1)
    return tensor.untyped_storage().nbytes() // size


def _windows(flat: Tensor, tensor: Tensor) -> list[Tensor]:
    """Look at labels of a whole storage through the tensor's sizes and strides.

    Both parts of a complex number are looked at: whatever multiplies it mixes them.
    """
    if not tensor.is_complex():
        return [flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())]
    strides = [2 * stride for stride in tensor.stride()]
    start = 2 * tensor.storage_offset()
    return [flat.as_strided(tensor.size(), strides, start + part) for part in (0, 1)]
