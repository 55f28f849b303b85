"""Plan the memory of a run before anything is loaded.

Figures are upper bounds from shapes: what is always in memory, and the phase that adds most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from quant.allocation import AskedScheme
from quant.arithmetic import PORTABLE, resolve_arithmetic
from quant.budget import AnyScheme
from quant.errors import QuantizationError
from quant.head import AT_ONCE, SOLVER
from quant.memory.choice import choice_items
from quant.memory.compiled import PRODUCT_BYTES, product_shapes
from quant.memory.hessians import hessian_bytes, memo_bytes
from quant.memory.limits import PLACES, Limits
from quant.memory.quantized import quantized_bytes, search_numbers
from quant.memory.shapes import ModelShape, stored_bytes
from quant.memory.transforms import (
    operator_bytes,
    pruning_bytes,
    rotation_bytes,
    rounding_bytes,
    transform_bytes,
)
from quant.tiling import CHECKED_LOGITS

if TYPE_CHECKING:
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
        Item("a batch inside a block", inside_bytes(shape, at_once), here, ("blocks",)),
        Item("the largest layer, dequantized", 4 * largest, here, ("blocks",)),
        Item("logits of a batch", _logits(shape, at_once), here, ("head",)),
    ]
    return _place(items, tokens * shape.hidden * shape.itemsize, limits, activations)


def fits_whole(shape: ModelShape, window: int, batch: int, limits: Limits) -> bool:
    """Whether all weights fit in memory with a batch of `batch` windows; True if unknown."""
    beside = max(inside_bytes(shape, batch * window), _logits(shape, batch * window))
    known = [free for free in (limits.device, limits.host) if free is not None]
    return all(shape.whole_bytes + beside <= free * USABLE for free in known)


def plan_suite(items: Sequence[Item], limits: Limits, advice: str) -> MemoryPlan:
    """Plan the memory of a measurement of a model that is in memory as a whole.

    Raises MemoryPlanError, with the figures and the advice, if it does not fit.
    """
    plan = MemoryPlan(tuple(items), limits, "none")
    if plan.lacking() is not None:
        raise MemoryPlanError(_refusal(plan, advice))
    return plan


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
    yield from _quantized(shape, config.scheme.every)
    yield from _operators(shape, config, here)
    memory = config.solver.memory
    wide = arithmetic_of(shape, config, on_gpu) == PORTABLE
    number = 8 if wide else 4
    numbers = max(memory.weights * m * n + memory.prepared * n * n for m, n in shape.layers)
    numbers += memory.beside + search_numbers(shape.layers, config.scheme.every)
    numbers *= number if config.solver.needs_calibration else 4
    yield Item("the largest layer in the solver", numbers, here, ("solve",))
    yield from _outside(shape, config.scheme, here)
    if not config.needs_calibration:
        return
    if not on_gpu and config.kernel != "reference" and not wide:
        compiled = product_shapes(shape.layers, mixture=bool(shape.routed))
        yield Item("kernels that oneDNN compiles", compiled * PRODUCT_BYTES, IN_HOST)
    inputs, at_once = [inputs for _, inputs in shape.layers], max(window, config.batch_tokens)
    held = hessian_bytes(inputs, shape.routed, number, config.sequential)
    preparing = number * memory.preparing * max(inputs) ** 2
    yield Item("Hessians of a block (q, k, v share one)", held, here, IN_BLOCK[1:])
    choosing = (config.scheme, shape.layers, shape.hidden, partial(_logits, shape), number)
    yield from (Item(name, n, here, phases) for name, n, phases in choice_items(*choosing))
    yield Item("the largest factorization", preparing, here, ("factor",))
    yield Item("Hessians of a block, being collected", held, here, IN_BLOCK[:1])
    if config.solver.needs_reference:  # the full-precision model beside the quantized one
        yield Item("drifts of a block's inputs", held, here, IN_BLOCK)
        seen = number * at_once * sum(inputs)
        yield Item("a batch of inputs in full precision", seen, here, ("collect",))
        if config.sequential or config.rounding is not None:
            yield Item("the block in full precision", shape.block_bytes, here, IN_BLOCK)
    inside = inside_bytes(shape, at_once) + rounding_bytes(config.transforms, at_once * max(inputs))
    if wide:  # torch's attention and functions use more than our operators (measured: 1.4)
        inside = inside * 3 * number // (2 * max(shape.itemsize, 4))
    yield Item("a batch inside a block", inside, here, ("collect",))
    yield Item("product of the widest inputs", number * max(inputs) ** 2, here, ("collect",))
    if wide:
        largest = number * max(map(math.prod, shape.layers))
        yield Item("the largest layer, in float64", largest, here, ("collect",))
    checked = 2 * _logits(shape, min(window, CHECKED_LOGITS))
    yield Item("logits that are compared", checked, here, ("check",))
    streams = (shape.blocks + 4) * number * window * shape.hidden
    pruning = pruning_bytes(config.pruning, shape.layers, shape.whole_bytes, streams, inside)
    yield from (Item(what, count, here, ("prune",)) for what, count in pruning)
    if config.residual is not None:
        yield Item("a layer rotated, in float64", rotation_bytes(shape.layers), here, ("collect",))
        yield Item("embeddings and head, until checked", shape.outside_bytes, here, ("check",))
    if config.after_pruning:
        chosen, watched = config.after_pruning, inside_bytes(shape, at_once)
        # The outputs of all modules are kept while the block is observed.
        yield Item("a batch inside a block, watched", watched, here, ("collect",))
        tried = transform_bytes(shape.layers, chosen, number, watched)
        yield Item("what a transform chooses from and tries", tried, here, ("transform",))


def _quantized(shape: ModelShape, schemes: Sequence[AnyScheme]) -> Iterator[Item]:
    """Yield the items of the block being solved and of the one before, being packed and written."""
    held, packed = quantized_bytes(shape.layers, schemes)
    beside = max(0, shape.block_bytes - sum(map(math.prod, shape.layers)) * shape.itemsize)
    yield Item("quantized weights of a block", held, IN_HOST, ("factor", "solve"))
    yield Item("the block before it, being written", held + packed + beside, IN_HOST, IN_BLOCK)


def _outside(shape: ModelShape, scheme: AskedScheme, here: str) -> Iterator[Item]:
    """Yield the items of embeddings and head, which are rounded some rows at a time and packed.

    The embeddings are the first, and what they become is kept until all is written; the head is
    the last.
    """
    if scheme.embeddings is not None and shape.table is not None:
        packed = stored_bytes(scheme.embeddings, *shape.table)
        yield Item("packed embeddings", packed, IN_HOST)
        if shape.tied and not shape.serves_head(scheme):
            own = math.prod(shape.table) * shape.itemsize
            yield Item("the head, no longer tied", own, here)
        yield from _rounded(shape.table, packed, "embeddings", here)
    if scheme.head is not None and shape.head is not None and not shape.serves_head(scheme):
        yield from _rounded(shape.head, stored_bytes(scheme.head, *shape.head), "head", here)


def _rounded(matrix: tuple[int, int], stored: int, what: str, here: str) -> Iterator[Item]:
    count = math.prod(matrix)
    at_once = int(min(count, AT_ONCE) * 4 * SOLVER.memory.weights)
    yield Item(f"rows of the {what} in the solver", at_once, here, (what,))
    held = count + 2 * stored  # a byte per code; packed and being packed
    yield Item(f"quantized weights of the {what}", held, IN_HOST, (what,))


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


def inside_bytes(shape: ModelShape, tokens: int) -> int:
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


def _refusal(plan: MemoryPlan, otherwise: str | None = None) -> str:
    """The sentence of a plan that does not fit; otherwise: what to do, if not the usual."""
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
        f"({listed}): {otherwise or advice}."
    )
