"""Replay a model block by block, exactly as its own forward pass runs the blocks.

First the model's forward pass runs with every block replaced by a stub that records its arguments
(masks, positions, rotary embeddings, alibi, ...). Then each block is called with its own arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from quant.calibrate.activations import Activations
from quant.calibrate.source import BlockSource, as_source, blocks_in_place, each_block
from quant.calibrate.structure import (
    BlockStructure,
    ModelStructure,
    evaluation,
    head_on_few,
    learn_structure,
    run_model,
)
from quant.errors import ModelStructureError
from quant.tiling import CHECKED_LOGITS

# Tensors of one shape that are kept for the comparison (one mask per layer type, ...).
_POOL_DEPTH = 8
# Streamed and plain logits come from the same operators on the same numbers, so they are bit-equal
# if the operators are deterministic. The tolerance is for devices where they are not.
_TOLERANCE_ULPS = 4
# Tokens on which the structure is learned: the whole window would take as long as one in 64 of the
# windows that calibrate takes in all.
_LEARNED_TOKENS = 64
# Numbers compared at a time: differences are float64, and five of them are held.
_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Call:
    """Arguments of one block for one batch, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Capture:
    """The inputs of the blocks: hidden states before block 0, and every block's other arguments.

    hidden  per batch, [batch, tokens, hidden size], in the store that was passed to `capture`.
    calls   [block][batch]; equal tensors are stored once, so masks and positions take the memory of
            one batch, however many batches there are.
    reference  as hidden, but of the full-precision model; None if nobody needs it. Before block 0
               both are the same.
    window  [block]: the arguments for the first window of the first batch alone; empty if nobody
            needs them.
    """

    hidden: Activations
    calls: list[list[Call]]
    reference: Activations | None = None
    window: list[Call] = field(default_factory=list)


def capture(
    model: PreTrainedModel,
    model_structure: ModelStructure,
    batches: Iterable[Tensor],
    store: Activations | None = None,
    reference: Activations | None = None,
) -> Capture:
    """Run everything before and around the blocks on batches [batch, tokens] of token ids.

    The blocks do not run, so they need no weights: each records its arguments and passes the hidden
    states on. The hidden states at the input of block 0 are appended to `store` (None: a list), and
    to `reference` if that is given.
    """
    kept: Activations = [] if store is None else store
    result = Capture(kept, [[] for _ in model_structure.structures], reference)
    pool = _TensorPool()

    def recorder(index: int) -> Callable[..., Any]:
        structure = model_structure.structures[index]

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, call = _split(structure, args, kwargs)
            if index == 0:
                result.hidden.append(hidden)
                if reference is not None:
                    reference.append(hidden)
            result.calls[index].append(Call(pool.share(call.args), pool.share(call.kwargs)))
            if index == len(model_structure.structures) - 1:
                raise _BlocksPassed  # the norm and the head after the blocks are not needed
            return structure.output_with(hidden)

        return forward

    forwards = [recorder(index) for index in range(len(model_structure.structures))]
    with evaluation(model), forwards_replaced(model_structure.blocks.modules, forwards):
        for batch in batches:
            pool.next_batch()
            try:
                run_model(model, batch)
            except _BlocksPassed:
                continue
    return result


def run_block(block: nn.Module, structure: BlockStructure, call: Call, hidden: Tensor) -> Tensor:
    """Return the output hidden states of a block for `hidden`, called as the model calls it."""
    args, kwargs = list(call.args), dict(call.kwargs)
    if isinstance(structure.hidden_argument, int):
        args[structure.hidden_argument] = hidden
    else:
        kwargs[structure.hidden_argument] = hidden
    return structure.hidden_of(block(*args, **kwargs))


def streamed_logits(
    model: PreTrainedModel | BlockSource,
    tokens: Tensor,
    model_structure: ModelStructure | None = None,
) -> Tensor:
    """Return logits [(batch,) tokens, vocabulary] of ids [(batch,) tokens], block after block."""
    source = as_source(model)
    batch = tokens if tokens.dim() == 2 else tokens[None]
    model_structure = model_structure or observe(source, batch[0])
    (logits,) = stream_logits(source, model_structure, [batch], [])
    return logits if tokens.dim() == 2 else logits[0]


def stream_logits(
    source: BlockSource,
    model_structure: ModelStructure,
    batches: Sequence[Tensor],
    store: Activations,
    done: Callable[[int], None] = lambda _: None,
) -> Iterator[Tensor]:
    """Yield logits [batch, tokens, vocabulary] of every batch of ids [batch, tokens], in order.

    All batches run through a block before the next block is read; `store`, empty at first, holds
    their hidden states in between. done(blocks) is called after every block.
    """
    model = source.model
    captured = capture(model, model_structure, batches, store)
    with evaluation(model), closing(each_block(source)) as blocks:
        for index in blocks:
            block, structure = (
                model_structure.blocks.modules[index],
                model_structure.structures[index],
            )
            for position, call in enumerate(captured.calls[index]):
                store[position] = run_block(block, structure, call, store[position])
            captured.calls[index].clear()
            done(index + 1)
    for position, batch in enumerate(batches):
        yield logits_after_blocks(model, model_structure, batch, store[position])


def observe(source: BlockSource, window: Tensor) -> ModelStructure:
    """Learn how the model calls its blocks on window [tokens], without reading block weights.

    Some tokens of it are enough; what depends on their number shows in check_streaming.
    """
    with blocks_in_place(source, blank=True):
        return learn_structure(source.model, window[:_LEARNED_TOKENS])


def check_streaming(
    model: PreTrainedModel | BlockSource,
    window_a: Tensor,
    window_b: Tensor,
    inspect: Callable[[int], None] = lambda _: None,
) -> ModelStructure:
    """Learn the structure on window_a [tokens], check it on window_b [tokens], and return it.

    Streamed logits must equal those of a plain forward pass within 4 units in the last place of the
    largest logit (they run the same operators and are normally identical), and so must the inputs
    of the head. Logits are those of the last positions only, inputs of the head those of all. Both
    passes run side by side, so that every block is read once; inspect(index) is called when block
    `index` has its weights.

    Raises ModelStructureError, with the largest difference, if they differ more.
    """
    source = as_source(model)
    model_structure = observe(source, window_a)
    for what, streamed, plain in _both_results(source, model_structure, window_b, inspect):
        difference, scale = _largest_difference(streamed, plain)
        allowed = _TOLERANCE_ULPS * torch.finfo(plain.dtype).eps * scale
        if not difference <= allowed:
            raise ModelStructureError(
                f"{type(source.model).__name__}: {what} of the block-by-block replay differ by up "
                f"to {difference:.3g} from a plain forward pass (allowed {allowed:.3g}), so "
                "calibration would see wrong inputs; the blocks depend on more than their recorded "
                "arguments. Report the model class; method=rtn needs no replay."
            )
    return model_structure


def _largest_difference(streamed: Tensor, plain: Tensor) -> tuple[float, float]:
    """Return the largest difference of numbers [tokens, n], and the largest plain number.

    Places where the plain numbers are not finite are skipped: NaN from the model itself is not an
    error of the replay.
    """
    difference = scale = 0.0
    rows = max(1, _AT_ONCE // plain.shape[-1])
    for one, other in zip(streamed.split(rows), plain.split(rows), strict=True):
        finite = torch.isfinite(other)
        if finite.any():
            scale = max(scale, other[finite].abs().max().item())
            apart = (one.double() - other.double())[finite].abs().max().item()
            # `not <=` keeps a NaN that only the streamed logits have.
            difference = apart if not apart <= difference else difference
    return difference, scale


def _both_results(
    source: BlockSource,
    model_structure: ModelStructure,
    window: Tensor,
    inspect: Callable[[int], None],
) -> list[tuple[str, Tensor, Tensor]]:
    """Return (what, streamed, plain) results of window [tokens] in one pass: logits of its last
    positions [positions, vocabulary], and inputs of the head [tokens, hidden] if it is a module.
    """
    model, batch = source.model, window[None]
    captured = capture(model, model_structure, [batch])
    hidden = captured.hidden[0]
    replaying = False

    def follow(index: int) -> Callable[..., None]:
        def after(block: nn.Module, *_: Any) -> None:
            nonlocal hidden, replaying
            if replaying:  # the replay runs the block's hooks too
                return
            inspect(index)
            replaying = True
            hidden = run_block(
                block, model_structure.structures[index], captured.calls[index][0], hidden
            )
            replaying = False

        return after

    with head_on_few(model, CHECKED_LOGITS) as inputs:
        with blocks_in_place(source), evaluation(model):
            blocks = enumerate(model_structure.blocks.modules)
            handles = [block.register_forward_hook(follow(index)) for index, block in blocks]
            try:
                plain = run_model(model, batch).logits[0]
            finally:
                for handle in handles:
                    handle.remove()
        streamed = logits_after_blocks(model, model_structure, batch, hidden)[0]
    if len(inputs) != 2:
        return [("logits", streamed, plain)]
    whole, replayed = (each.flatten(0, -2) for each in inputs)
    return [("inputs of the head", replayed, whole), ("logits", streamed, plain)]


class _BlocksPassed(Exception):
    """Stops a capturing forward pass after the last block."""


def _split(
    structure: BlockStructure, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Call]:
    slot = structure.hidden_argument
    if isinstance(slot, int):
        return args[slot], Call((*args[:slot], None, *args[slot + 1 :]), kwargs)
    return kwargs[slot], Call(args, {k: v for k, v in kwargs.items() if k != slot})


class _TensorPool:
    """Replaces equal tensors by one shared tensor."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[Tensor]] = {}
        # The blocks of one pass mostly get the same object, whose numbers are compared only once.
        # The object is kept with its replacement, so that its id is not reused.
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def next_batch(self) -> None:
        """Forget the object ids of the last pass; the tensors stay."""
        self._seen.clear()

    def share(self, value: Any) -> Any:
        """Return the same structure with every tensor replaced by an equal tensor of the pool."""
        if isinstance(value, Tensor):
            if id(value) not in self._seen:
                self._seen[id(value)] = (value, self._shared(value))
            return self._seen[id(value)][1]
        if isinstance(value, dict):
            return {key: self.share(part) for key, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self.share(part) for part in value)
        if isinstance(value, Cache):
            raise ModelStructureError(
                f"a block received a {type(value).__name__} although use_cache=False, and a replay "
                "would append to it twice; this model cannot be calibrated, so use method=rtn."
            )
        return value

    def _shared(self, tensor: Tensor) -> Tensor:
        known = self._known.setdefault((tensor.shape, tensor.dtype, tensor.device), [])
        for other in known:
            if other is tensor or (not tensor.is_meta and torch.equal(other, tensor)):
                return other
        if len(known) < _POOL_DEPTH:
            known.append(tensor)
        return tensor


@contextmanager
def forwards_replaced(
    modules: Iterable[nn.Module], forwards: Sequence[Callable[..., Any]]
) -> Iterator[None]:
    """Replace the forward functions of modules; models can still read the modules' attributes."""
    before: list[Any] = [module.__dict__.get("forward") for module in modules]
    try:
        for module, forward in zip(modules, forwards, strict=True):
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, original in zip(modules, before, strict=True):
            if original is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = original


def logits_after_blocks(
    model: PreTrainedModel, model_structure: ModelStructure, batch: Tensor, hidden: Tensor
) -> Tensor:
    """Run the part of the model after its blocks (norm, head, soft capping) on their output."""
    last = len(model_structure.structures) - 1

    def stand_in(index: int) -> Callable[..., Any]:
        structure = model_structure.structures[index]

        def forward(*args: Any, **kwargs: Any) -> Any:
            passed = hidden if index == last else _split(structure, args, kwargs)[0]
            return structure.output_with(passed)

        return forward

    forwards = [stand_in(index) for index in range(last + 1)]
    with evaluation(model), forwards_replaced(model_structure.blocks.modules, forwards):
        result: Tensor = run_model(model, batch).logits
        return result
