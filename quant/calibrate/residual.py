"""Rotate the residual stream of a model: what writes it, its norms, and what reads them.

With an orthogonal R, hidden states h between the blocks become h R. Writers (embeddings, the last
layers of sub-blocks) get outputs y R: W' = R^T W, b' = b R. Norms lose their weight g and bias c,
which readers take in: W' = W diag(g) R, b' = b + W c. A norm without g computes the same in the
rotated coordinates: |h R| = |h|, and a norm that subtracts the mean is given an R that keeps it.
A head that was tied to the embeddings gets a weight of its own (QuaRot, arXiv 2404.00456,
section 4; SliceGPT, 2401.15024).

Nothing is known by name. A norm is what makes the input of layers; the other layers with as many
outputs as the stream has features write it. Every block, the embeddings and the head are then
compared with the originals on one window, in float64, and the model is refused, and left as it
was, if one differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.blocks import Blocks, linear_layers, require_sound, weight_matrix
from quant.calibrate.capture import Call, capture, logits_after_blocks, observe, run_block
from quant.calibrate.head import own_head
from quant.calibrate.layers import LayerResult
from quant.calibrate.neighbours import Maker, Names, Neighbours, find_neighbours, memory_of
from quant.calibrate.residual_weights import (
    Norm,
    Roles,
    bias_of,
    gain_of,
    kept,
    restored,
    rotate_weights,
    wide,
)
from quant.calibrate.source import BlockSource, Weights, each_block
from quant.calibrate.structure import BlockStructure, evaluation
from quant.calibrate.wide import WideCalls, wide_buffers
from quant.errors import ModelStructureError
from quant.experts import routed_groups
from quant.transforms.base import Change, Transform
from quant.transforms.foreseen import no_rotation
from quant.transforms.notes import applied_note, unapplied_note

_TOKENS = 64
NO_SUM = (
    "its hidden states before the first block are no sum of rows of its embeddings ({} in between)"
)


class RotatedSource:
    """A source whose blocks are rotated as they get their weights."""

    def __init__(
        self, source: BlockSource, transform: Transform, change: Change, roles: Sequence[Roles]
    ) -> None:
        self.model, self.blocks = source.model, source.blocks
        self.device, self.reads = source.device, source.reads
        self.fetch, self.blank, self.release = source.fetch, source.blank, source.release
        self._source, self._transform, self._change, self._roles = source, transform, change, roles

    def attach(self, index: int, weights: Weights) -> None:
        self._source.attach(index, weights)
        if self.reads:  # a model in memory has rotated blocks already
            rotate_weights(self.model, self._roles[index], self._change)

    def noted(self, layer: LayerResult) -> LayerResult:
        """Return a layer's result with a note of the rotation before those of other transforms."""
        name = self._transform.name
        if layer.name in self._roles[layer.block].layers:
            note = applied_note(name, "the residual stream")
        else:
            note = unapplied_note(name, "it has no part in the residual stream")
        return replace(layer, transforms=[note, *layer.transforms])


def rotated(
    source: BlockSource, transform: Transform, options: Any, window: Tensor
) -> RotatedSource:
    """Rotate the residual stream of a model, and check all of it on window [tokens].

    Everything outside the blocks, and a model in memory, is rotated in place; blocks that are read
    one by one are rotated when they have been read. The check reads every block once.

    Raises ModelStructureError that says what cannot be rotated; the model then computes what it
    did, perhaps with a head that is no longer tied.
    """
    assert transform.residual is not None
    refuse: Refuse = partial(_refused, source.model, transform)
    require_alone(source.model, refuse)
    tokens = window[None, :_TOKENS]
    structure = observe(source, tokens[0])
    model, structures = source.model, structure.structures
    with evaluation(model), wide_buffers(model):
        with norms_running(source.model, source.blocks) as running, WideCalls():
            captured = capture(model, structure, [tokens])
        require_plain(running, refuse)
        hidden, width = captured.hidden[0], captured.hidden[0].shape[-1]

        def after(hidden: Tensor) -> Tensor:
            with WideCalls():
                return logits_after_blocks(model, structure, tokens, hidden)

        outside, keeps_mean = _outside(source, width, partial(after, hidden), refuse)
        change = transform.residual(width, keeps_mean, options)
        start, roles = hidden, []
        with closing(each_block(source)) as blocks:
            for index in blocks:
                trial = _Trial(source, index, structures[index], captured.calls[index][0], change)
                hidden, found = trial.run(hidden, refuse)
                roles.append(found)
        logits = after(start)
        own_head(model)
        with restored(model, outside):
            rotate_weights(model, outside, change)
            with WideCalls():
                begin = capture(model, structure, [tokens]).hidden[0]
            if not _close(begin, change.inputs(start), start, model.dtype):
                raise refuse(NO_SUM.format("an operation comes"))
            if not _close(after(change.inputs(start)), logits, logits, model.dtype):
                raise refuse(f"its logits changed when {outside.norms[0].readers[0]} was rotated")
        if not source.reads:
            for each in roles:
                rotate_weights(model, each, change)
    return RotatedSource(source, transform, change, roles)


Refuse = Callable[[str], ModelStructureError]


def _refused(model: PreTrainedModel, transform: Transform, why: str) -> ModelStructureError:
    said = no_rotation(type(model).__name__, why)
    return ModelStructureError(f"transform {transform.name} {said}.")


@dataclass(frozen=True)
class _Trial:
    """Finds the roles in one block, and checks them; a block in memory is left as it was."""

    source: BlockSource
    index: int
    structure: BlockStructure
    call: Call
    change: Change

    def run(self, hidden: Tensor, refuse: Refuse) -> tuple[Tensor, Roles]:
        """Return the block's output for `hidden` in its own coordinates, and its roles."""
        model, block = self.source.model, self.source.blocks.modules[self.index]
        name = self.source.blocks.block_name(self.index)
        require_sound(block, name)

        def forward(hidden: Tensor) -> Tensor:
            with WideCalls():
                return run_block(block, self.structure, self.call, hidden)

        with normed_layers(block) as norm_after:
            found = find_neighbours(block, self.structure.groups, partial(forward, hidden))
        expected = found.output
        makers, writers = stream_parts(block, name, found, norm_after, hidden.shape[-1], refuse)
        read = {layer for names in makers for layer in names}
        roles = Roles(
            tuple(_norm(name, maker, names, refuse) for names, maker in makers.items()),
            tuple(f"{name}.{writer}" for writer in writers),
        )
        with nullcontext() if self.source.reads else restored(model, roles, always=True):
            rotate_weights(model, roles, self.change)
            moved = forward(self.change.inputs(hidden))
        if not _close(moved, self.change.inputs(expected), expected - hidden, model.dtype):
            raise refuse(
                f"{name} computes something else when its readers ({', '.join(sorted(read))}) and "
                f"writers ({', '.join(writers)}) are rotated"
            )
        return expected, roles


def _outside(
    source: BlockSource, width: int, logits: Callable[[], Tensor], refuse: Refuse
) -> tuple[Roles, bool]:
    """Return the roles outside the blocks, and whether the last norm subtracts the mean."""
    model, inside = source.model, set(source.blocks.modules.modules())
    head, maker = head_norm(model, width, logits, refuse)
    tables = tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and module not in inside
        and module.weight.shape[1] == width
    )
    with WideCalls():
        x, found = maker.args[0], maker.output
        shifted = maker.module(x + x.abs().mean(), *maker.args[1:], **maker.kwargs)
    keeps_mean = _close(shifted, found, found, torch.float32)
    return Roles((_norm("", maker, (head,), refuse),), tables), keeps_mean


def head_norm(
    model: PreTrainedModel, width: int, logits: Callable[[], Tensor], refuse: Refuse
) -> tuple[str, Maker]:
    """Return the name of the head and the norm that makes its input; the weights may be on meta."""
    head: nn.Module | None = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise refuse("its head is no linear layer")
    name = next(name for name, module in model.named_modules() if module is head)
    maker = find_neighbours(model, [(name,)], logits).makers[(name,)]
    if isinstance(maker, str):
        raise refuse(f"no norm feeds its head {name} alone ({maker})")
    if not _is_norm(maker.module, width):
        raise refuse(f"no norm feeds its head {name} alone ({maker.name} makes its input)")
    return name, maker


def stream_parts(
    block: nn.Module,
    name: str,
    found: Neighbours,
    norm_after: Mapping[str, str],
    width: int,
    refuse: Refuse,
) -> tuple[dict[Names, Maker], list[str]]:
    """Return the norms of a block with their readers, and the layers that write the stream.

    No value is looked at. name is the block's; norm_after is that of `normed_layers`.
    """
    if routed_groups(block):
        raise refuse(
            f"{name} computes something else when it is rotated, because the router of its mixture "
            "of experts reads the stream and is no layer that is quantized"
        )
    makers = {
        names: maker
        for names, maker in found.makers.items()
        if isinstance(maker, Maker) and _is_norm(maker.module, width)
    }
    read = {layer for names in makers for layer in names}
    writers = [
        layer
        for layer, module in linear_layers(block).items()
        if layer not in read and weight_matrix(module).shape[0] == width
    ]
    for writer in writers:
        if writer in norm_after:
            raise refuse(
                f"{name}.{norm_after[writer]} normalizes the output of {writer} before it "
                "is added to the stream"
            )
    if not makers:
        reasons = {f"{n[0]}: {m}" for n, m in found.makers.items() if isinstance(m, str)}
        raise refuse(f"no norm of {name} feeds its layers alone ({'; '.join(sorted(reasons))})")
    return makers, writers


def _norm(block: str, maker: Maker, readers: Sequence[str], refuse: Refuse) -> Norm:
    """Return the norm that makes the input of these layers (names in the block)."""
    prefix = f"{block}." if block else ""
    module: Any = maker.module
    weight, bias = module.weight.detach(), bias_of(module)
    held = [each for each in (weight, bias) if each is not None]
    for neutral in (1.0, 0.0):
        with kept(held):
            gain, shift = gain_of(module, neutral), 0 if bias is None else wide(bias).clone()
            weight.fill_(neutral)
            if bias is not None:
                bias.zero_()
            with WideCalls():
                plain = module(*maker.args, **maker.kwargs)
            alike = _close(plain * gain + shift, maker.output, maker.output, torch.float64)
        if alike:
            return Norm(prefix + maker.name, tuple(prefix + each for each in readers), neutral)
    raise refuse(f"{prefix}{maker.name} does not multiply what it normalizes by its weight alone")


def require_plain(running: Sequence[str], refuse: Refuse) -> None:
    """Refuse a model with a norm between its embeddings and its blocks (`norms_running`)."""
    if running:
        raise refuse(NO_SUM.format(f"{', '.join(running)} comes"))


def require_alone(model: PreTrainedModel, refuse: Refuse) -> None:
    """Refuse a model in which modules share parameters, other than its head and embeddings."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            other = owners.setdefault(id(parameter), name) if parameter is not None else name
            if other != name and module not in ends:
                raise refuse(f"{name} and {other} share parameters")


def _is_norm(module: nn.Module, width: int | None = None) -> bool:
    """Whether a module has the parameters of a norm: a weight and perhaps a bias, [width]."""
    own = dict(module.named_parameters())
    if "weight" not in own or not own.keys() <= {"weight", "bias"}:
        return False
    width = own["weight"].numel() if width is None else width
    return all(each.shape == (width,) for each in own.values())


@contextmanager
def norms_running(model: PreTrainedModel, blocks: Blocks) -> Iterator[list[str]]:
    """Yield a list that gets the names of the norms outside the blocks that run."""
    inside, found = set(blocks.modules.modules()), []
    handles = [
        module.register_forward_hook(lambda *_, name=name: found.append(name))
        for name, module in model.named_modules()
        if module not in inside and _is_norm(module)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def normed_layers(block: nn.Module) -> Iterator[dict[str, str]]:
    """Yield a mapping that gets, for a layer whose output is normalized, the norm's name."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # kept, so that an address is not reused
    found: dict[str, str] = {}

    def leave(_: nn.Module, __: Any, output: Tensor, name: str) -> None:
        outputs[memory_of(output)] = name, output

    def enter(_: nn.Module, args: tuple[Any, ...], name: str) -> None:
        made = outputs.get(memory_of(args[0])) if args else None
        if made is not None:
            found[made[0]] = name

    handles = [
        module.register_forward_hook(partial(leave, name=name))
        for name, module in linear_layers(block).items()
    ]
    for name, module in block.named_modules():
        if _is_norm(module):
            handles.append(module.register_forward_pre_hook(partial(enter, name=name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _close(found: Tensor, expected: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Whether float64 results are equal within the rounding of parameters to a dtype.

    Rotated parameters round otherwise than the original ones; a part that was not rotated moves a
    result by as much as the part contributes.
    """
    apart, size = torch.linalg.vector_norm(found - expected), torch.linalg.vector_norm(scale)
    return bool(apart <= torch.finfo(dtype).eps ** 0.5 * size)  # false for NaN
