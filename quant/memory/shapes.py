"""Shapes of models, kept on the disk once they are known.

To find the shape of a model transformers builds it without weights, which takes seconds, most of
them for imports. It depends on config.json, the dtype and the version of transformers alone, so it
is kept under these in the folder shapes of the cache (cuda_ext.cache), as JSON. A file that is
damaged is written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cuda_ext.cache import cache_root, write_atomically
from quant.coverage import Coverage
from quant.memory.plan import ModelShape

# Raise it when quant.memory.plan.model_shape finds another shape, or when other facts are kept.
VERSION = 3

_log = logging.getLogger("quant")


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model from its config.json.

    coverage                 of its blocks' matrices by linear layers, as far as it shows before the
                             model runs.
    max_position_embeddings  tokens that it was made for, whatever its own config calls them; None:
                             it does not say.
    sdpa                     whether it can run with torch's scaled_dot_product_attention.
    """

    shape: ModelShape
    model_type: str
    max_position_embeddings: int | None
    coverage: Coverage
    sdpa: bool = True


def cached_facts(
    folder: Path, dtype: str, quantized: bool, make: Callable[[], ModelFacts]
) -> ModelFacts:
    """What make() finds for the model in `folder`, from the disk if it was found before.

    quantized  whether the folder is read as a quantized checkpoint; such a model may be built
               otherwise from the same config.json.
    """
    try:
        config = (folder / "config.json").read_bytes()
    except OSError:
        return make()  # which says what is wrong with the folder
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
        _log.info("the shape of %s will be found again: %s not written (%s)", folder, file, error)
    return facts


def _parse(found: Any) -> ModelFacts:
    """ValueError, TypeError, KeyError or AttributeError for what asdict of facts would not make."""
    shape, positions = found["shape"], found["max_position_embeddings"]
    covered = found["coverage"]
    if not isinstance(found["model_type"], str):
        raise TypeError("model_type is no text")
    if type(found["sdpa"]) is not bool:
        raise TypeError("sdpa is neither true nor false")
    layers = tuple((_count(outputs), _count(inputs)) for outputs, inputs in shape["layers"])
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
        ),
        model_type=found["model_type"],
        max_position_embeddings=None if positions is None else _count(positions),
        coverage=Coverage(
            _count(covered["quantized"]),
            {str(name): _count(value) for name, value in covered["kept"].items()},
            int(covered["kept_bits"]),
        ),
        sdpa=found["sdpa"],
    )


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no count")
    return value
