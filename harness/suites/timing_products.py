"""Measurements of the kernels suite: packed and full-precision products by layer shape.

Each shape of a linear layer in the model's blocks is measured once with random codes of the cell's
scheme, through the module that the model runs. The contenders take turns in one process, on copies
of the weight that together exceed the last-level cache (cuda_ext.bench); the read bandwidth of the
device is measured in the same turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from cuda_ext.bench import Contender, copies_for, last_level_cache, measure
from harness.records.busyness import Watch, said_busy, with_note
from harness.records.record import Metric
from harness.suites.base import SuiteContext, SuiteResult
from harness.suites.shapes import not_one_scheme, task_name
from harness.suites.timing import conditions, paired_ratio, summarise
from quant.blocks import LINEAR_TYPES
from quant.embedding import looked_up
from quant.factored import FactoredLinear
from quant.linear import QuantLinear
from quant.measure.dummy import layer_shape, random_packed
from quant.measure.roofline import READ_BYTES
from quant.scheme import Scheme

FULL, PACKED = "full", "packed"


class Batches(Protocol):
    """Batch sizes (rows of activations), and seconds of measurement per shape and batch."""

    batches: list[int]
    seconds: float


@dataclass(frozen=True)
class Shape:
    """A layer shape, and the number of layers that have it."""

    inputs: int
    outputs: int
    layers: int


def run(context: SuiteContext, config: Batches) -> SuiteResult:
    """Measure ms, GB/s, share of the read bandwidth and speed-up for every shape and batch.

    A full-precision cell has only the full-precision product. Raises ValueError for a model without
    linear layers in its blocks, and for one whose layers have several schemes.
    """
    layers = layers_of(context.model)
    if not layers:
        raise ValueError(
            f"{type(context.model).__name__} has no linear layers to measure; leave "
            "suite.kernels out for this model."
        )
    scheme = _single_scheme(layers)
    found = shapes_of(layers)
    metrics: list[Metric] = []
    dtype = getattr(torch, context.dtype)
    for done, shape in enumerate(found):
        context.progress(done, len(found), f"{shape.inputs} x {shape.outputs}")
        weights = _Weights(shape, scheme, context, dtype)
        for batch in config.batches:
            contenders, watch = weights.contenders(batch), Watch()
            times = measure(contenders, config.seconds, context.device)
            made = list(_metrics(context, shape, batch, times, weights))
            metrics += with_note(made, said_busy(watch.usage()))
    context.progress(len(found), len(found), "kernels")
    return SuiteResult(metrics)


def _single_scheme(layers: list[nn.Module]) -> Scheme | None:
    """The scheme of the packed layers; None if there are none."""
    found = dict.fromkeys(each.scheme for each in layers if isinstance(each, QuantLinear))
    factored = any(isinstance(each, FactoredLinear) for each in layers)
    reason = not_one_scheme([each.name for each in found], factored)
    if reason is not None:
        raise ValueError(f"{reason}.")
    return next(iter(found), None)


def layers_of(model: Any) -> list[nn.Module]:
    """The linear layers of a model, packed or not, except its output layer."""
    outside = {model.get_output_embeddings(), *looked_up(model)}
    kinds = (*LINEAR_TYPES, QuantLinear, FactoredLinear)
    return [each for each in model.modules() if isinstance(each, kinds) and each not in outside]


def shapes_of(layers: list[nn.Module]) -> list[Shape]:
    """The distinct shapes, in the order of the model."""
    counts = Counter(layer_shape(layer) for layer in layers)
    return [Shape(inputs, outputs, count) for (inputs, outputs), count in counts.items()]


class _Weights:
    """Copies of a weight, full precision and packed, made once for all batches."""

    def __init__(
        self, shape: Shape, scheme: Scheme | None, context: SuiteContext, dtype: torch.dtype
    ) -> None:
        self._shape, self._dtype = shape, dtype
        self._device, cache = torch.device(context.device), last_level_cache(context.device)
        self._generator = torch.Generator(self._device).manual_seed(context.seed)
        self.bytes = {FULL: shape.inputs * shape.outputs * dtype.itemsize}
        self._full = [self._random() for _ in range(copies_for(self.bytes[FULL], cache))]
        self._packed: list[QuantLinear] = []
        if scheme is not None:
            first = self._pack(scheme, context.kernel)
            self.bytes[PACKED] = sum(buffer.nbytes for buffer in first.buffers())
            more = range(1, copies_for(self.bytes[PACKED], cache))
            self._packed = [first, *(self._pack(scheme, context.kernel) for _ in more)]
        self.reader = _reader(context.device)

    @property
    def way(self) -> str:
        """The kernel of packed products, and whether it dequantizes first."""
        return self._packed[0].way

    def contenders(self, batch: int) -> list[Contender]:
        """Contenders: a read, and the full-precision and packed products of `batch` rows."""
        x = torch.randn(
            batch, self._shape.inputs, device=self._device, generator=self._generator
        ).to(self._dtype)
        full = [_full_step(x, weight) for weight in self._full]
        found = [self.reader, Contender(FULL, full, self.moved(FULL, batch))]
        if self._packed:
            packed = [_packed_step(x, layer) for layer in self._packed]
            found.append(Contender(PACKED, packed, self.moved(PACKED, batch)))
        return found

    def moved(self, name: str, batch: int) -> int:
        """Bytes that one product moves: the weight, input and output activations."""
        ends = self._shape.inputs + self._shape.outputs
        return self.bytes[name] + batch * ends * self._dtype.itemsize

    def _random(self) -> Tensor:
        weight = torch.empty(
            self._shape.outputs, self._shape.inputs, dtype=self._dtype, device=self._device
        )
        return weight.normal_(0, self._shape.inputs**-0.5, generator=self._generator)

    def _pack(self, scheme: Scheme, kernel: str) -> QuantLinear:
        packed = random_packed(scheme, self._shape.inputs, self._shape.outputs, self._generator)
        return QuantLinear(packed, scheme, self._shape.inputs, None, kernel)


def _reader(device: str) -> Contender:
    """A read of an array larger than all caches (quant.measure.roofline)."""
    kind = torch.device(device).type
    array = torch.ones(READ_BYTES.get(kind, READ_BYTES["cpu"]) // 4, device=device)
    return Contender("read", [array.sum], array.nbytes)


def _full_step(x: Tensor, weight: Tensor) -> Callable[[], object]:
    return lambda: functional.linear(x, weight)


def _packed_step(x: Tensor, layer: QuantLinear) -> Callable[[], object]:
    return lambda: layer(x)


def _metrics(
    context: SuiteContext,
    shape: Shape,
    batch: int,
    times: dict[str, list[float]],
    weights: _Weights,
) -> Iterator[Metric]:
    task = task_name(shape.inputs, shape.outputs, batch)
    shared = conditions(context.device, context.dtype) | {"layers": str(shape.layers)}
    read = weights.reader.bytes / min(times["read"]) / 1e6
    yield _metric("read_bandwidth", task, read, "GB/s", len(times["read"]), shared, higher=True)
    for name in weights.bytes:
        notes = shared | {"kernel": weights.way if name == PACKED else "torch"}
        median, quantiles = summarise(times[name])
        rate = weights.moved(name, batch) / median / 1e6
        n = len(times[name])
        yield _metric(f"{name}_ms", task, median, "ms", n, notes, quantiles)
        yield _metric(f"{name}_gb_per_s", task, rate, "GB/s", n, notes, higher=True)
        yield _metric(f"{name}_share", task, rate / read, "fraction", n, notes, higher=True)
    if PACKED in weights.bytes:
        notes = shared | {"kernel": weights.way}
        ratio, quantiles = summarise(paired_ratio(times[FULL], times[PACKED]))
        n = len(times[FULL])
        yield _metric("packed_speedup", task, ratio, "ratio", n, notes, quantiles, higher=True)


def _metric(
    name: str,
    task: str,
    value: float,
    unit: str,
    n: int,
    notes: dict[str, str],
    quantiles: dict[str, float] | None = None,
    higher: bool = False,
) -> Metric:
    return Metric(
        name=name,
        task=task,
        value=value,
        unit=unit,
        n=n,
        n_unit="repeats",
        higher_is_better=higher,
        quantiles=quantiles,
        notes=notes,
    )
