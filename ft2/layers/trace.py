"""Run a model once without numbers, and follow what becomes of each linear product."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as _module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ft2.layers.answers import answered, constants_in_index, tensors_in
from ft2.layers.provenance import NOTHING, Origin, Provenance, Stream
from ft2.layers.rules import (
    ACTIVATIONS,
    NORM,
    SOFTMAXES,
    Operation,
    activation_of,
    is_activation,
    rule_of,
)

__all__ = ["LINEAR", "OUTPUT", "Activated", "Fate", "Product", "Traced", "trace"]

LINEAR = "linear"
OUTPUT = "output"

_MATMULS = frozenset(["mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "linear", "_grouped_mm"])
_LINEARS = _MATMULS | {"convolution", "grouped_mm_fallback"}


@dataclass(frozen=True)
class Fate:
    """How a path of a product's columns ends.

    Attributes
    ----------
    end:
        ``linear`` (the next linear layer), ``output`` (what the model returns), or the name of the
        activation or softmax.
    at:
        The linear layer that it reaches; empty for other ends.
    via:
        What lies on the path, in words.
    """

    end: str
    at: str
    via: tuple[str, ...]


@dataclass(eq=False)
class Product:
    """One linear product of the model, over all its runs.

    Attributes
    ----------
    number:
        Counts the products in the order in which they first ran.
    weight:
        Name of the parameter.
    module:
        Path of the module in whose forward it ran.
    scope:
        Path of the innermost module around it that is given one vector for each token.
    width, in_features:
        Sizes of its output's and its input's vectors.
    experts:
        How many matrices the parameter holds, for one that holds several; else 0.
    is_output:
        Whether it is what the module returns, row by row of the batch.
    fates:
        bool (width,) of the columns, by the fate of one of their paths.
    """

    number: int
    weight: str
    module: str
    scope: str
    width: int
    in_features: int
    experts: int = 0
    is_output: bool = False
    fates: dict[Fate, Tensor] = field(default_factory=dict)

    def meet(self, fate: Fate, columns: Tensor) -> None:
        """Note that a path of `columns` ends with `fate`."""
        known = self.fates.get(fate)
        self.fates[fate] = columns.clone() if known is None else known | columns

    @property
    def exposed(self) -> Tensor:
        """bool (width,): the columns that reach a linear layer, or the output, unrestrained."""
        exposed = torch.zeros(self.width, dtype=torch.bool)
        for fate, columns in self.fates.items():
            if fate.end in (LINEAR, OUTPUT):
                exposed |= columns
        return exposed


@dataclass(eq=False)
class Activated:
    """One activation that columns of a linear product go through, over all its runs.

    Attributes
    ----------
    function:
        What it computes, by torch's name or its module's class.
    module:
        Path of the innermost module in which it ran.
    source:
        The number of the product.
    is_output:
        Whether the module is given one tensor and returns it activated, and computes no linear
        product: then its output is the activation's.
    widths:
        Size of the last dimension of its result, and how many columns of the product are in it:
        other ones where tokens or heads come last.
    by_token:
        Whether it is given one vector for each token of the batch, in order.
    reaches:
        Names of the parameters of the linear layers that its result goes into, with no addition on
        the way.
    """

    function: str
    module: str
    source: int
    is_output: bool
    widths: tuple[int, int]
    by_token: bool
    reaches: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Traced:
    """What a run of a model has shown: its linear products and its activations, in that order."""

    products: list[Product]
    activations: list[Activated]


# Compilation and hooks of all modules are switched off for the whole process: two traces that
# overlap would each leave the other's state behind.
_ALONE = threading.RLock()


def trace(model: nn.Module, rows: int, tokens: int) -> Traced:
    """Run `model`, and return its products and activations in the order in which they first ran.

    Parameters
    ----------
    model:
        On the meta device, as :func:`ft2.layers.replica.replicate` returns it, or on any other.
    rows, tokens:
        Shape of the batch that it runs on.
    """
    device = next((each.device for each in model.parameters()), torch.device("meta"))
    tokens_in = torch.ones((rows, tokens), dtype=torch.int64, device=device)
    tracer = _Tracer(model, rows, tokens)
    with (
        _ALONE,
        torch.no_grad(),
        _one_thread(),
        _without_global_hooks(),
        _eager(),
        _Functions(tracer),
        tracer,
        tracer.watching(),
    ):
        if "input_ids" in inspect.signature(model.forward).parameters:
            output = model(input_ids=tokens_in)
        else:
            output = model(tokens_in)
    tracer.returned(output)
    return Traced(tracer.products, list(tracer.activations.values()))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other on tensors of labels, for seconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _without_global_hooks() -> Iterator[None]:
    """Keep hooks on all modules, which the user may count calls with, from being called."""
    hooks = [_module._global_forward_hooks, _module._global_forward_pre_hooks]
    kept = [dict(each) for each in hooks]
    for each in hooks:
        each.clear()
    try:
        yield
    finally:
        for each, before in zip(hooks, kept, strict=True):
            each.update(before)


def _eager() -> AbstractContextManager[Any]:
    """Compiled code hides its operations; it is not run."""
    return torch.compiler.set_stance("force_eager")


class _Tracer(TorchDispatchMode):
    """Follows every operation while it is active."""

    def __init__(self, model: nn.Module, rows: int, tokens: int) -> None:
        super().__init__()
        self.products: list[Product] = []
        self.activations: dict[tuple[str, int, str], Activated] = {}
        # A parameter that stands for queries makes attention no linear layer.
        self.in_attention = False
        self._model = model
        self._batch = (rows, tokens)
        self._known = Provenance()
        self._by_name: dict[tuple[str, int], Product] = {}
        self._running: list[_Running] = [_Running("", None, 0)]
        # Modules in which a linear product ran.
        self._multiplying: set[str] = set()
        self._parameters: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._parameters[name] = parameter
            self._known.declare(parameter, Origin.WEIGHT, frozenset([name]))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = answered(func, args, kwargs)
        # Indices that are constants keep their numbers for the rules.
        self._follow(func, args, kwargs, out)
        return out

    def watching(self) -> _Watch:
        """Return a context in which it is known which module runs."""
        return _Watch(self._model, self._running, self._left)

    def returned(self, output: Any) -> None:
        """Note that `output` leaves the model: its logits, where it holds states beside them."""
        logits = getattr(output, "logits", None)
        for tensor in tensors_in(output if logits is None else logits):
            for stream in self._known.read(tensor):
                if stream.ended is None:
                    self._end(stream, Fate(OUTPUT, "", stream.via))

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        outs = list(tensors_in(out))
        if not outs:
            return
        inputs = list(tensors_in((args, tuple(kwargs.values()))))
        for tensor in inputs:
            self._known.hold(tensor)
        is_view = not func._schema.is_mutable and any(
            self._known.is_known(each) and each.numel() for each in outs
        )
        for tensor in outs:
            self._known.hold(tensor)
        if is_view:
            return
        name = func.overloadpacket.__name__
        if func._schema.is_mutable:
            name = name.removesuffix("_")
        origin = self._origin(name, inputs)
        operation = Operation(name, args, kwargs, outs[0], self._known, self._ended)
        if name in ACTIVATIONS or name == "glu":
            given = self._known.read(args[0])
            self._note_activation(activation_of(name), self._running[-1], given, outs[0])
        if name in _LINEARS and not self.in_attention and self._is_linear(name, inputs):
            streams = self._linear(operation, inputs)
            origin = Origin.DATA
        else:
            streams = self._unresolved(self._ruled(operation, outs))
        if func._schema.is_mutable:
            self._known.erase(outs[0])
        if name in SOFTMAXES or (
            name not in _LINEARS and any(map(self._known.is_distribution, inputs))
        ):
            for tensor in outs:
                self._known.declare_distribution(tensor)
        weights: frozenset[str] = frozenset()
        if origin is Origin.WEIGHT:
            weights = frozenset().union(*(self._known.weights(each) for each in inputs))
        for tensor in outs:
            self._known.declare(tensor, origin, weights)
            if tensor.is_floating_point() or tensor.is_complex():
                fitting = streams if tensor is outs[0] else _blurred(streams, tensor)
                self._known.add(tensor, fitting)

    def _ruled(self, operation: Operation, outs: list[Tensor]) -> Iterator[Stream]:
        if not any(self._known.has_streams(each) for each in operation.tensors):
            return iter(())
        # Values come with indices (topk), or statistics with what was normalised.
        return rule_of(operation.name)(operation)

    def _origin(self, name: str, inputs: list[Tensor]) -> Origin:
        if name == "embedding":
            return Origin.DATA
        found = max(map(self._known.origin, inputs), default=Origin.CONSTANT)
        # An expert's weights, looked up by an index that depends on the input, are weights still.
        is_lookup = name in ("index", "index_select") and inputs and inputs[0].dim() > 2
        if is_lookup and self._known.origin(inputs[0]) is Origin.WEIGHT:
            return Origin.WEIGHT
        return found

    def _is_linear(self, name: str, inputs: list[Tensor]) -> bool:
        operands = _operands(name, inputs)
        weights = [self._known.origin(each) is Origin.WEIGHT for each in operands]
        if name == "convolution":
            # Each channel by itself is a weighting along the tokens.
            return weights == [False, True] and operands[1].shape[1] > 1
        return sum(weights) == 1

    def _linear(self, op: Operation, inputs: list[Tensor]) -> list[Stream]:
        left, right = _operands(op.name, inputs)
        is_right = self._known.origin(right) is Origin.WEIGHT
        weight, hidden = (right, left) if is_right else (left, right)
        names = self._known.weights(weight)
        self._multiplying.update(each.module for each in self._running)
        for stream in self._known.read(hidden):
            if stream.ended is None:
                self._end(stream, Fate(LINEAR, self._name(names), stream.via))
            else:
                self._reach(stream, self._name(names))
        # A convolution over channels mixes them as a linear layer does, but has other sites.
        if op.name == "convolution":
            return []
        product = self._product(op, names, hidden, is_right)
        columns = torch.arange(product.width, dtype=torch.int32)
        if not is_right and op.name != "linear":
            columns = columns[:, None]
        return [
            Stream(
                source=product.number,
                via=(),
                ended=None,
                columns=torch.ones(product.width, dtype=torch.bool),
                labels=columns.expand(op.out.shape),
            )
        ]

    def _product(
        self, op: Operation, names: frozenset[str], hidden: Tensor, is_right: bool
    ) -> Product:
        width = op.out.shape[-1 if is_right or op.name == "linear" else -2]
        # A tied weight is another layer in each module that holds it.
        name = self._name(names)
        product = self._by_name.get((name, width))
        if product is None:
            product = Product(
                number=len(self.products),
                weight=name,
                module=self._running[-1].module,
                scope=self._scope(),
                width=width,
                in_features=hidden.shape[-1 if is_right else -2],
            )
            product.experts = _matrices(self._parameters[name], product)
            self._by_name[name, width] = product
            self.products.append(product)
        return product

    def _name(self, names: frozenset[str]) -> str:
        """The parameter that a weight is known by: a tied one by its name where it runs."""
        module = self._running[-1].module

        def rank(name: str) -> tuple[int, bool, str]:
            return self._parameters[name].dim(), name.rpartition(".")[0] == module, name

        return max(names, key=rank)

    def _scope(self) -> str:
        return next(
            (each.module for each in reversed(self._running) if self._has_a_vector_a_token(each)),
            "",
        )

    def _has_a_vector_a_token(self, running: _Running) -> bool:
        rows, tokens = self._batch
        shape = running.given
        if shape is None or len(shape) < 2:
            return False
        return shape[:2] == (rows, tokens) or (len(shape) == 2 and shape[0] == rows * tokens)

    def _ended(self, stream: Stream, by: str) -> None:
        self._end(stream, Fate(by, "", stream.via))

    def _end(self, stream: Stream, fate: Fate) -> None:
        columns = stream.present
        if bool(columns.any()):
            self.products[stream.source].meet(fate, columns)

    def _unresolved(self, streams: Iterable[Stream]) -> list[Stream]:
        """Leave out products that are known to be critical through and through."""
        return [
            stream for stream in streams if not bool(self.products[stream.source].exposed.all())
        ]

    def _note_activation(
        self, function: str, running: _Running, given: list[Stream], out: Tensor
    ) -> None:
        for stream in given:
            if stream.ended in (None, NORM):
                self.activations.setdefault(
                    (running.module, stream.source, function),
                    Activated(
                        function=function,
                        module=running.module,
                        source=stream.source,
                        is_output=False,
                        widths=(out.shape[-1], int(stream.present.sum())),
                        by_token=self._has_a_vector_a_token(running),
                    ),
                )

    def _reach(self, stream: Stream, linear: str) -> None:
        for activated in self.activations.values():
            if activated.source == stream.source and activated.function == stream.ended:
                activated.reaches.add(linear)

    def _left(self, running: _Running, module: nn.Module, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        # Hooks run while operations are followed; looking at labels is not one of them.
        with _disable_current_modes():
            if is_activation(module):
                self._activated(type(module).__name__, running, output)
            else:
                self._returned_by(running.module, output)
            if running.tensors == 1 and running.given == tuple(output.shape):
                self._returned_activated(running.module, output)

    def _returned_activated(self, module: str, output: Tensor) -> None:
        if module in self._multiplying:
            return
        held = {(stream.source, stream.ended) for stream in self._known.read(output)}
        for activated in self.activations.values():
            if activated.module == module and (activated.source, activated.function) in held:
                activated.is_output = True

    def _activated(self, name: str, running: _Running, output: Tensor) -> None:
        """An activation that is written out ends paths as one that torch knows does."""
        streams = self._known.read(output)
        self._note_activation(name, running, streams, output)
        self._known.erase(output)
        for stream in streams:
            if stream.ended is None:
                self._ended(stream, name)
        self._known.add(output, [replace(each, ended=each.ended or name) for each in streams])

    def _returned_by(self, module: str, output: Tensor) -> None:
        rows, tokens = self._batch
        is_by_row = output.dim() > 2 and output.shape[0] == rows
        is_flat = output.dim() == 2 and output.shape[0] == rows * tokens
        for stream in self._known.read(output) if is_by_row or is_flat else ():
            product = self.products[stream.source]
            if (
                product.module == module
                and not product.experts
                and not stream.via
                and stream.labels is not None
                and output.shape[-1] == product.width
                and bool((stream.labels != NOTHING).all())
            ):
                product.is_output = True


class _Functions(TorchFunctionMode):
    """Keeps the numbers of lists that are used as indices, and knows when attention is computed."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__getitem__:
            args = (args[0], constants_in_index(args[1]))
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self._tracer.in_attention = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._tracer.in_attention = False


@dataclass(frozen=True)
class _Running:
    """A module that runs, the shape of the first numbers that it was given, and how many."""

    module: str
    given: tuple[int, ...] | None
    tensors: int


class _Watch:
    """Knows which modules run, by hooks that it takes away again."""

    def __init__(
        self,
        model: nn.Module,
        running: list[_Running],
        left: Callable[[_Running, nn.Module, Any], None],
    ) -> None:
        self._model = model
        self._running = running
        self._left = left
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self._model.named_modules():
            entering = self._entering(name)
            self._handles.append(module.register_forward_pre_hook(entering, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leaving))

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _entering(self, name: str) -> Callable[..., None]:
        def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = [
                tuple(each.shape) for each in tensors_in((args, kwargs)) if each.is_floating_point()
            ]
            self._running.append(_Running(name, given[0] if given else None, len(given)))

        return entering

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        self._left(self._running.pop(), module, output)


def _operands(name: str, inputs: list[Tensor]) -> list[Tensor]:
    """The two factors of a product among its inputs: a bias comes before or after them."""
    if name in ("addmm", "baddbmm", "addmv"):
        return inputs[1:3]
    return inputs[:2]


def _matrices(parameter: Tensor, product: Product) -> int:
    """How many matrices of the product's size a parameter holds, if more than one."""
    count = parameter.numel() // max(product.width * product.in_features, 1)
    return count if count > 1 else 0


def _blurred(streams: list[Stream], tensor: Tensor) -> list[Stream]:
    return [
        stream
        if stream.labels is not None and stream.labels.shape == tensor.shape
        else stream.blurred()
        for stream in streams
    ]
