"""Cache of model shapes on disk.

To find the shape of a model, transformers builds it without weights, which takes seconds, most of
them for imports. The shape depends only on config.json, the dtype and the version of transformers,
so it is stored as JSON under these in the folder `shapes` of the cache (cuda_ext.cache). A damaged
file is written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from cuda_ext.cache import cache_root, write_atomically
from quant.coverage import Coverage
from quant.memory.plan import ModelShape
from quant.pruning.units import Columns, Heads

U = TypeVar("U", Columns, Heads)

# Increase it when quant.memory.plan.model_shape or the fields of ModelFacts change.
VERSION = 5
NOT_FOUND = "its blocks were not looked at"

_log = logging.getLogger("quant")


@dataclass(frozen=True)
class ModelFacts:
    """What the config.json of a model determines.

    coverage                 of its blocks' matrices by linear layers, as far as it is known before
                             the model runs.
    max_position_embeddings  context length, whatever its config calls it; None if it does not say.
    sdpa                     whether it can run with torch's scaled_dot_product_attention.
    columns, heads           of every block, or why they cannot be removed (quant.pruning.units).
    """

    shape: ModelShape
    model_type: str
    max_position_embeddings: int | None
    coverage: Coverage
    sdpa: bool = True
    columns: Columns | str = NOT_FOUND
    heads: Heads | str = NOT_FOUND


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
    head = shape["head"]
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
        ),
        model_type=found["model_type"],
        max_position_embeddings=None if positions is None else _count(positions),
        coverage=Coverage(
            _count(covered["quantized"]),
            {str(name): _count(value) for name, value in covered["kept"].items()},
            int(covered["kept_bits"]),
        ),
        sdpa=found["sdpa"],
        columns=_unit(Columns, found["columns"]),
        heads=_unit(Heads, found["heads"]),
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
