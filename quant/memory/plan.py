"""Plan the memory of a run before anything is loaded.

Every figure is an upper bound computed from shapes: what is always in memory plus the phase that
adds most. `python -m benchmarks.scaling` and tests compare the bounds with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quant.arithmetic import PORTABLE, resolve_arithmetic
from quant.errors import ModelStructureError, QuantizationError
from quant.head import AT_ONCE, SOLVER, find_head
from quant.memory.compiled import PRODUCT_BYTES, product_shapes
from quant.memory.hessians import hessian_bytes, memo_bytes
from quant.memory.limits import PLACES, Limits
from quant.memory.transforms import operator_bytes, rotation_bytes, transform_bytes
from quant.scheme import Scheme
from quant.tiling import CHECKED_LOGITS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from quant.config import QuantizationConfig

# Usable share of free memory; allocators round up and leave holes.
USABLE = 0.95
WORST, FREE = "at most at one time", "may be taken"
ON_DEVICE, IN_HOST, ON_DISK = "device", "host", "disk"
IN_BLOCK = ("collect", "factor", "solve", "transform")  # phases
POSITIONS_AT_ONCE = 512  # harness.suites.scoring converts so many logits to float32 at a time


class MemoryPlanError(QuantizationError):
    """The work needs more memory than is available."""


@dataclass(frozen=True)
class ModelShape:
    """The properties of a model that determine its memory use.

    layers         (outputs, inputs) of the linear layers of the largest block.
    block_bytes    bytes of the largest block, in its dtype (or packed).
    outside_bytes  bytes of everything outside the blocks; tied tensors count once.
    routed         (inputs, number of layers that share it) of each Hessian of the experts in the
                   largest block, in stages that are collected in one pass each: the gates and ups
                   of a mixture, then its downs.
    head           (outputs, inputs) of the head, if it can be quantized (quant.head).
    head_bytes     bytes of its weight in outside_bytes that no other tensor shares; 0 if tied.
    """

    layers: tuple[tuple[int, int], ...]
    blocks: int
    block_bytes: int
    outside_bytes: int
    hidden: int
    vocabulary: int
    itemsize: int
    routed: tuple[tuple[tuple[int, int], ...], ...] = ()
    head: tuple[int, int] | None = None
    head_bytes: int = 0

    def with_head(self, scheme: Scheme | None) -> ModelShape:
        """Return the shape of the model with a head that has this scheme; None changes nothing."""
        if scheme is None or self.head is None:
            return self
        outside = self.outside_bytes - self.head_bytes + _stored(scheme, *self.head)
        return replace(self, outside_bytes=outside, head_bytes=_stored(scheme, *self.head))

    def with_own_head(self) -> ModelShape:
        """Return the shape of the model with a head that shares no weight with the embeddings."""
        own = 0 if self.head is None or self.head_bytes else math.prod(self.head) * self.itemsize
        outside, head = self.outside_bytes + own, self.head_bytes + own
        return replace(self, outside_bytes=outside, head_bytes=head)

    @property
    def whole_bytes(self) -> int:
        return self.blocks * self.block_bytes + self.outside_bytes

    @property
    def parameters(self) -> int:
        """Number of parameters of the model, as if all blocks were as large as the largest."""
        return self.whole_bytes // self.itemsize

    @property
    def widest(self) -> int:
        """The largest number of features in a block."""
        return max(max(layer) for layer in self.layers)


@dataclass(frozen=True)
class Item:
    """One line of a plan: what, how many bytes, where, and in which phases (empty: always)."""

    name: str
    bytes: int
    where: str
    phases: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryPlan:
    """What will be in memory and where; activations is one of quant.memory.limits.PLACES."""

    items: tuple[Item, ...]
    limits: Limits
    activations: str

    def needed(self, where: str) -> int:
        """Return the peak bytes: items of all phases plus those of the largest phase."""
        here = [item for item in self.items if item.where == where]
        phases: dict[str, int] = {}
        for item in here:
            for phase in item.phases:
                phases[phase] = phases.get(phase, 0) + item.bytes
        always = sum(item.bytes for item in here if not item.phases)
        return always + max(phases.values(), default=0)

    def free(self, where: str) -> int | None:
        """Return the bytes that may be used; None if unknown or if there is no such place."""
        found: int | None = getattr(self.limits, where)
        return None if found is None else int(found * USABLE)

    def lacking(self) -> str | None:
        """Return the first place that is too small; None if everything fits."""
        for where in (ON_DEVICE, IN_HOST, ON_DISK):
            free = self.free(where)
            if free is not None and self.needed(where) > free:
                return where
        return None

    def rows(self) -> Iterator[tuple[str, str, int]]:
        """Yield the lines of a table (what, where, bytes), with sums and free bytes at the end."""
        for item in self.items:
            if item.bytes:
                yield item.name, item.where, item.bytes
        for where in (ON_DEVICE, IN_HOST, ON_DISK):
            if self.needed(where):
                yield WORST, where, self.needed(where)
                if (free := self.free(where)) is not None:
                    yield FREE, where, free


def model_shape(model: PreTrainedModel) -> ModelShape:
    """Return the shape of a model, which may be a skeleton."""
    from quant.blocks import find_blocks, linear_layers, weight_matrix
    from quant.experts import routed_groups

    blocks = find_blocks(model)
    largest = max(blocks.modules, key=lambda block: _bytes(list(block.parameters())))
    inside = {id(tensor) for tensor in blocks.modules.parameters()}
    outside = [tensor for tensor in model.parameters() if id(tensor) not in inside]
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    linears = linear_layers(largest)
    layers = [weight_matrix(module).shape for module in linears.values()]
    routed = [
        tuple((int(weight_matrix(linears[group[0]]).shape[1]), len(group)) for group in stage)
        for stage in routed_groups(largest)
    ]
    try:
        head = find_head(model)[1]
    except ModelStructureError:
        head = None
    return ModelShape(
        layers=tuple((int(outputs), int(inputs)) for outputs, inputs in layers),
        blocks=len(blocks),
        block_bytes=_bytes(list(largest.parameters())),
        outside_bytes=_bytes(outside),
        hidden=int(model.config.get_text_config(decoder=True).hidden_size),
        vocabulary=table.shape[0],
        itemsize=table.element_size(),
        routed=tuple(routed),
        head=None if head is None else (head.out_features, head.in_features),
        head_bytes=0 if head is None or head.weight is table else _bytes([head.weight]),
    )


def plan_quantization(
    shape: ModelShape,
    config: QuantizationConfig,
    tokens: int,
    window: int,
    limits: Limits,
    activations: str = "auto",
) -> MemoryPlan:
    """Plan the memory of quantizing with `tokens` calibration tokens in windows of up to `window`.

    limits.device None: blocks run on the CPU. activations "auto" selects the fastest place with
    enough room. Raises MemoryPlanError, with the figures, if no place has.
    """
    shape = shape if config.residual is None else shape.with_own_head()
    items = list(_quantization_items(shape, config, window, limits.device is not None))
    tokens = tokens if config.needs_calibration else 0
    wide = arithmetic_of(shape, config, limits.device is not None) == PORTABLE
    itemsize = 8 if wide else shape.itemsize
    streams = 2 if config.solver.needs_reference else 1
    if config.needs_calibration and config.sequential:
        here = IN_HOST if limits.device is None else ON_DEVICE
        most = streams * memo_bytes(shape.layers, tokens, itemsize)
        items.append(Item("outputs of a block, between stages", most, here, IN_BLOCK))
    return _place(items, streams * tokens * shape.hidden * itemsize, limits, activations)


def arithmetic_of(shape: ModelShape, config: QuantizationConfig, on_gpu: bool) -> str:
    """Resolve the arithmetic of a configuration for this model."""
    device = "cuda" if on_gpu else "cpu"
    return resolve_arithmetic(config.arithmetic, device, shape.parameters)


def plan_evaluation(
    shape: ModelShape,
    tokens: int,
    window: int,
    batch: int,
    limits: Limits,
    activations: str = "auto",
) -> MemoryPlan:
    """Plan the memory of streamed logits of `tokens` tokens, in batches of `batch` windows."""
    on_gpu = limits.device is not None
    here = ON_DEVICE if on_gpu else IN_HOST
    at_once, largest = batch * window, max(map(math.prod, shape.layers))
    items = [
        *_weights(shape, on_gpu),
        Item("a batch inside a block", _inside(shape, at_once), here, ("blocks",)),
        Item("the largest layer, dequantized", 4 * largest, here, ("blocks",)),
        Item("logits of a batch", _logits(shape, at_once), here, ("head",)),
    ]
    return _place(items, tokens * shape.hidden * shape.itemsize, limits, activations)


def fits_whole(shape: ModelShape, window: int, batch: int, limits: Limits) -> bool:
    """Whether all weights fit in memory with a batch of `batch` windows; True if unknown."""
    beside = max(_inside(shape, batch * window), _logits(shape, batch * window))
    needed = shape.whole_bytes + beside
    known = [free for free in (limits.device, limits.host) if free is not None]
    return all(needed <= free * USABLE for free in known)


def size(count: int) -> str:
    """Format a number of bytes for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _quantization_items(
    shape: ModelShape, config: QuantizationConfig, window: int, on_gpu: bool
) -> Iterator[Item]:
    here = ON_DEVICE if on_gpu else IN_HOST
    yield from _weights(shape, on_gpu)
    yield from _quantized(shape, config.scheme)
    yield from _operators(shape, config, here)
    memory = config.solver.memory
    wide = arithmetic_of(shape, config, on_gpu) == PORTABLE
    number = 8 if wide else 4
    numbers = max(memory.weights * m * n + memory.prepared * n * n for m, n in shape.layers)
    numbers += memory.beside + max(config.scheme.search_numbers(n) for _, n in shape.layers)
    numbers *= number if config.solver.needs_calibration else 4
    yield Item("the largest layer in the solver", numbers, here, ("solve",))
    yield from _head(shape, config.scheme.head, here)
    if not config.needs_calibration:
        return
    if not on_gpu and config.kernel != "reference" and not wide:
        compiled = product_shapes(shape.layers, mixture=bool(shape.routed))
        yield Item("kernels that oneDNN compiles", compiled * PRODUCT_BYTES, IN_HOST)
    inputs, at_once = [inputs for _, inputs in shape.layers], max(window, config.batch_tokens)
    held = hessian_bytes(inputs, shape.routed, number, config.sequential)
    preparing = number * memory.preparing * max(inputs) ** 2
    yield Item("Hessians of a block (q, k, v share one)", held, here, IN_BLOCK[1:])
    yield Item("the largest factorization", preparing, here, ("factor",))
    yield Item("Hessians of a block, being collected", held, here, IN_BLOCK[:1])
    if config.solver.needs_reference:  # the full-precision model beside the quantized one
        yield Item("drifts of a block's inputs", held, here, IN_BLOCK)
        seen = number * at_once * sum(inputs)
        yield Item("a batch of inputs in full precision", seen, here, ("collect",))
        if config.sequential:
            yield Item("the block in full precision", shape.block_bytes, here, IN_BLOCK)
    inside = _inside(shape, at_once)
    if wide:  # torch's attention and functions use more than our operators (measured: 1.4)
        inside = inside * 3 * number // (2 * max(shape.itemsize, 4))
    yield Item("a batch inside a block", inside, here, ("collect",))
    yield Item("product of the widest inputs", number * max(inputs) ** 2, here, ("collect",))
    if wide:
        largest = number * max(map(math.prod, shape.layers))
        yield Item("the largest layer, in float64", largest, here, ("collect",))
    checked = 2 * _logits(shape, min(window, CHECKED_LOGITS))
    yield Item("logits that are compared", checked, here, ("check",))
    if config.residual is not None:
        yield Item("a layer rotated, in float64", rotation_bytes(shape.layers), here, ("collect",))
        yield Item("embeddings and head, until checked", shape.outside_bytes, here, ("check",))
    if config.transforms:
        # The outputs of all modules are kept while the block is observed.
        yield Item("a batch inside a block, watched", _inside(shape, at_once), here, ("collect",))
        tried = transform_bytes(shape.layers, config.transforms, number, _inside(shape, at_once))
        yield Item("what a transform chooses from and tries", tried, here, ("transform",))


def _quantized(shape: ModelShape, scheme: Scheme) -> Iterator[Item]:
    """Yield the items of the block being solved and of the one before, being packed and written."""
    codes = [outputs * inputs for outputs, inputs in shape.layers]  # a byte each
    stored = [int(n * m * scheme.bits_per_weight(n) / 8) for m, n in shape.layers]
    held = sum(codes) + sum(stored) - sum(codes) * scheme.bits // 8  # with their grids
    # Measured: the stored bytes, plus the largest layer once more.
    packed = sum(stored) + max(stored)
    beside = max(0, shape.block_bytes - sum(codes) * shape.itemsize)
    yield Item("quantized weights of a block", held, IN_HOST, ("factor", "solve"))
    yield Item("the block before it, being written", held + packed + beside, IN_HOST, IN_BLOCK)


def _head(shape: ModelShape, scheme: Scheme | None, here: str) -> Iterator[Item]:
    """Yield the items of the head, which is rounded last, some rows at a time, and then packed."""
    if scheme is None or shape.head is None:
        return
    count = math.prod(shape.head)
    at_once = int(min(count, AT_ONCE) * 4 * SOLVER.memory.weights)
    yield Item("rows of the head in the solver", at_once, here, ("head",))
    held = count + 2 * _stored(scheme, *shape.head)  # a byte per code; packed and being packed
    yield Item("quantized weights of the head", held, IN_HOST, ("head",))


def _stored(scheme: Scheme, outputs: int, inputs: int) -> int:
    """Bytes of a packed layer."""
    return math.ceil(outputs * inputs * scheme.bits_per_weight(inputs) / 8)


def _operators(shape: ModelShape, config: QuantizationConfig, here: str) -> Iterator[Item]:
    """Yield the operators that transforms may keep in front of a block's layers, one per layer."""
    count = operator_bytes(shape.layers, config.transforms)
    yield Item("operators in front of a block's layers", count, here)
    yield Item("operators of the block before it", count, IN_HOST)


def _weights(shape: ModelShape, on_gpu: bool) -> Iterator[Item]:
    if on_gpu:
        yield Item("weights of a block", shape.block_bytes, ON_DEVICE)
        yield Item("weights of the next block, read ahead", shape.block_bytes, IN_HOST)
        yield Item("embeddings, norm and head", shape.outside_bytes, ON_DEVICE)
    else:
        yield Item("weights of two blocks, one read ahead", 2 * shape.block_bytes, IN_HOST)
        yield Item("embeddings, norm and head", shape.outside_bytes, IN_HOST)


def _inside(shape: ModelShape, tokens: int) -> int:
    """Bytes of a block's intermediate values for `tokens` tokens; attention is tiled."""
    return tokens * (4 * shape.hidden + 3 * shape.widest) * max(shape.itemsize, 4)


def _logits(shape: ModelShape, tokens: int) -> int:
    """Bytes of the logits, and of the part that is float32 at a time for the likelihood."""
    some = min(tokens, POSITIONS_AT_ONCE)
    return shape.vocabulary * (tokens * shape.itemsize + 2 * some * 4)


def _place(items: list[Item], nbytes: int, limits: Limits, wish: str) -> MemoryPlan:
    """Add the activations at the requested place, or at the fastest place with room."""
    places = [wish] if wish != "auto" else [p for p in PLACES if p != "cuda" or limits.device]
    where = {"cuda": ON_DEVICE, "cpu": IN_HOST, "disk": ON_DISK}
    base = MemoryPlan(tuple(items), limits, places[0])
    plans = [
        replace(
            base,
            items=(*items, Item("activations between blocks", nbytes, where[place])),
            activations=place,
        )
        for place in places
    ]
    for plan in plans:
        if plan.lacking() is None:
            return plan
    raise MemoryPlanError(_refusal(plans[-1]))


def _refusal(plan: MemoryPlan) -> str:
    where = plan.lacking()
    assert where is not None
    free = plan.free(where)
    assert free is not None
    parts = sorted((i for i in plan.items if i.where == where), key=lambda i: -i.bytes)
    listed = ", ".join(f"{item.name} {size(item.bytes)}" for item in parts[:4])
    name = {ON_DEVICE: "memory of the device", IN_HOST: "host memory", ON_DISK: "the disk"}[where]
    advice = {
        ON_DEVICE: "use a larger device, model.dtype=bfloat16, or runtime=cpu",
        IN_HOST: "free some, raise the limit of the process, use model.dtype=bfloat16 or fewer "
        "calibration tokens, or keep them elsewhere (runtime.activations=disk)",
        ON_DISK: "free some space, or use fewer calibration tokens (calib.sequences)",
    }[where]
    return (
        f"this needs {size(plan.needed(where))} of {name} and {size(free)} may be taken "
        f"({listed}): {advice}."
    )


def _bytes(tensors: Sequence[Tensor]) -> int:
    unique = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())
