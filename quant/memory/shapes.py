"""Shapes of models: what determines their memory use, and a cache of it on disk.

To find the shape of a model, transformers builds it without weights, which takes seconds, most of
them for imports. The shape depends only on config.json, the dtype and the version of transformers,
so it is stored as JSON under these in the folder `shapes` of the cache (cuda_ext.cache). A damaged
file is written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cuda_ext.cache import cache_root, write_atomically
from quant.allocation import AskedScheme
from quant.coverage import Coverage
from quant.errors import ModelStructureError
from quant.head import find_embeddings, find_head, one_matrix
from quant.pruning.units import Columns, Heads
from quant.scheme import Scheme
from quant.transforms.foreseen import Input

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

U = TypeVar("U", Columns, Heads)

# Increase it when model_shape or the fields of ModelFacts change.
VERSION = 7
NOT_FOUND = "its blocks were not looked at"

_log = logging.getLogger("quant")


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
    table          (tokens, width) of the token embeddings, if they can be quantized.
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
    table: tuple[int, int] | None = None

    @property
    def tied(self) -> bool:
        """Whether the head, if it can be quantized, multiplies by the embeddings."""
        return self.head is not None and not self.head_bytes

    def serves_head(self, scheme: AskedScheme) -> bool:
        """Whether the packed embeddings of this scheme are the head too."""
        return self.tied and one_matrix(scheme)

    def packed_outside(self, scheme: AskedScheme | None) -> ModelShape:
        """Return the shape of the model with the head and the embeddings of a scheme packed."""
        outside, head_bytes = self.outside_bytes, self.head_bytes
        if scheme is not None and scheme.embeddings is not None and self.table is not None:
            outside -= math.prod(self.table) * self.itemsize
            outside += stored_bytes(scheme.embeddings, *self.table)
        own = None if scheme is None or self.serves_head(scheme) else scheme.head
        if own is not None and self.head is not None:
            head_bytes = stored_bytes(own, *self.head)
            outside += head_bytes - self.head_bytes
        return replace(self, outside_bytes=outside, head_bytes=head_bytes)

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
class ModelFacts:
    """What the config.json of a model determines.

    coverage                 of its blocks' matrices by linear layers, as far as it is known before
                             the model runs.
    max_position_embeddings  context length, whatever its config calls it; None if it does not say.
    sdpa                     whether it can run with torch's scaled_dot_product_attention.
    linears                  (outputs, inputs) of the linear layers in its blocks, by full name; of
                             fused experts the layers are not known before they are unfused.
    columns, heads           of every block, or why they cannot be removed (quant.pruning.units).
    inputs                   of layers, one of every sort, as transforms will find them; empty if
                             that cannot be seen without weights (quant.calibrate.foreseen).
    stream                   why the residual stream cannot be rotated; None if nothing is seen.
    """

    shape: ModelShape
    model_type: str
    max_position_embeddings: int | None
    coverage: Coverage
    sdpa: bool = True
    linears: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    columns: Columns | str = NOT_FOUND
    heads: Heads | str = NOT_FOUND
    inputs: tuple[Input, ...] = ()
    stream: str | None = None


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
    head, embeddings = _found(find_head, model), _found(find_embeddings, model)
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
        table=None if embeddings is None else (table.shape[0], table.shape[1]),
    )


def _found(find: Callable[[PreTrainedModel], tuple[str, Any]], model: PreTrainedModel) -> Any:
    try:
        return find(model)[1]
    except ModelStructureError:
        return None


def stored_bytes(scheme: Scheme, outputs: int, inputs: int) -> int:
    """Bytes of a packed layer."""
    return math.ceil(outputs * inputs * scheme.bits_per_weight(inputs) / 8)


def cached_facts(
    folder: Path, dtype: str, quantized: bool, make: Callable[[], ModelFacts]
) -> ModelFacts:
    """Return the facts of the model in `folder` from the cache, or call make() and cache them.

    quantized  whether the folder is read as a quantized checkpoint; such a model may be built
               differently from the same config.json.
    """
    try:
        config = (folder / "config.json").read_bytes()
    except OSError:
        return make()  # its error says what is wrong with the folder
    known = [str(VERSION), version("transformers"), dtype, str(quantized)]
    key = hashlib.sha256("\n".join([*known, hashlib.sha256(config).hexdigest()]).encode())
    file = cache_root() / "shapes" / f"{key.hexdigest()[:32]}.json"
    try:
        return _parse(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there yet, or damaged
        facts = make()
    try:
        write_atomically(file, json.dumps(asdict(facts)) + "\n")
    except OSError as error:
        _log.info("the shape of %s is not cached: %s cannot be written (%s)", folder, file, error)
    return facts


def _parse(found: Any) -> ModelFacts:
    """Parse cached facts; ValueError, TypeError, KeyError or AttributeError if they are invalid."""
    shape, positions = found["shape"], found["max_position_embeddings"]
    covered = found["coverage"]
    if not isinstance(found["model_type"], str):
        raise TypeError("model_type is no text")
    if type(found["sdpa"]) is not bool:
        raise TypeError("sdpa is neither true nor false")
    layers = tuple((_count(outputs), _count(inputs)) for outputs, inputs in shape["layers"])
    head, table = shape["head"], shape["table"]
    if not layers:
        raise ValueError("no layers")
    names = ("blocks", "block_bytes", "outside_bytes", "hidden", "vocabulary", "itemsize")
    return ModelFacts(
        shape=ModelShape(
            layers=layers,
            **{name: _count(shape[name]) for name in names},
            routed=tuple(
                tuple((_count(inputs), _count(layers)) for inputs, layers in stage)
                for stage in shape["routed"]
            ),
            head=None if head is None else (_count(head[0]), _count(head[1])),
            head_bytes=int(shape["head_bytes"]),
            table=None if table is None else (_count(table[0]), _count(table[1])),
        ),
        model_type=found["model_type"],
        max_position_embeddings=None if positions is None else _count(positions),
        coverage=Coverage(
            _count(covered["quantized"]),
            {str(name): _count(value) for name, value in covered["kept"].items()},
            int(covered["kept_bits"]),
        ),
        sdpa=found["sdpa"],
        linears={
            str(name): (_count(outputs), _count(inputs))
            for name, (outputs, inputs) in found["linears"].items()
        },
        columns=_unit(Columns, found["columns"]),
        heads=_unit(Heads, found["heads"]),
        inputs=tuple(Input(**each) for each in found["inputs"]),
        stream=found["stream"],
    )


def _unit(kind: type[U], value: Any) -> U | str:
    if isinstance(value, str):
        return value
    fields: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each for name, each in value.items()
    }
    return kind(**fields)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no count")
    return value


def _bytes(tensors: Sequence[Tensor]) -> int:
    unique = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())
