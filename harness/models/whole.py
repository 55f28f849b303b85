"""Whether a model and its files are of one another: the tensors of both, compared in the plan.

Names and shapes decide, by the rules of whoever loads them (quant.checkpoint.matching), so only the
headers of the files are read; transformers' own loader reads every value, also on the meta device.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path

from cuda_ext.cache import cache_root, write_atomically
from harness.errors import ModelError
from harness.models.model import QuantizedModel, StoredModel
from harness.models.streaming import skeleton
from harness.records.hashes import digest
from quant.errors import ArtifactError
from quant.parts import Part

# Raise it when the rules of quant.checkpoint.matching refuse what they allowed.
VERSION = 1

_log = logging.getLogger("harness")


def require_whole(model: StoredModel | QuantizedModel, levels: Part | None = None) -> None:
    """ModelError that names tensors which only the model or only its files have, or of other shape.

    The tokenizer is loaded too, to hear of it now if it cannot be.
    levels  of a quantized model, besides the built-in ones.

    That nothing is wrong is kept in the folder shapes of the cache, for the fingerprint of the
    files: it is found once, because the model has to be built for it.
    """
    kept = _kept(model.fingerprint)
    if kept.is_file():
        return
    fault = _fault(model, levels)
    if fault is not None:
        raise ModelError(fault)
    model.tokenizer()
    try:
        write_atomically(kept, "")
    except OSError as error:
        _log.info("tensors of %s will be compared again: %s", model.name, error)


def _kept(fingerprint: str) -> Path:
    key = digest(["whole", VERSION, version("transformers"), fingerprint])
    return cache_root() / "shapes" / f"{key[:32]}.whole"


def _fault(model: StoredModel | QuantizedModel, levels: Part | None) -> str | None:
    """The sentence about what is wrong; None where nothing is."""
    folder, config = model.folder, model.config
    quantized = isinstance(model, QuantizedModel)
    try:
        built = skeleton(folder, config.dtype, quantized, config.trust_remote_code)
        if quantized:
            from quant.checkpoint.loader import require_whole as require_whole_checkpoint

            require_whole_checkpoint(folder, built, () if levels is None else (levels,))
            return None
        from quant.checkpoint.matching import differences

        fault = differences(built, folder).fault(type(built).__name__)
    except ArtifactError as error:
        return str(error)
    return None if fault is None else f"{folder}: {fault}"
