"""Compare the tensors of a model with those of its files, before anything is loaded.

Names and shapes are compared by the rules of the loaders (quant.checkpoint.matching), and only the
headers of the files are read.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import version
from pathlib import Path

from cuda_ext.cache import cache_root, write_atomically
from harness.data.specials import Specials, spelled
from harness.errors import ModelError
from harness.models.model import QuantizedModel, StoredModel
from harness.models.streaming import skeleton
from harness.records.hashes import digest
from quant.errors import ArtifactError
from quant.parts import Part

# Raise it if the rules of quant.checkpoint.matching, or those on tokenizers, become stricter.
VERSION = 2

_log = logging.getLogger("harness")


def require_whole(model: StoredModel | QuantizedModel, levels: Part | None = None) -> None:
    """Raise ModelError, with names, for missing, unexpected or differently shaped tensors.

    levels  a user's module of levels for a quantized model, besides the built-in ones.

    Loads the tokenizer too, so that its errors show in the plan. A good result is cached (folder
    `shapes`, by the fingerprint of the files), because the check has to build the model.
    """
    kept = _kept(model.fingerprint)
    if kept.is_file():
        return
    fault = _fault(model, levels)
    if fault is not None:
        raise ModelError(fault)
    _require_one_bos(model)
    try:
        write_atomically(kept, "")
    except OSError as error:
        _log.info("tensors of %s will be compared again: %s", model.name, error)


def _require_one_bos(model: StoredModel | QuantizedModel) -> None:
    """Raise ModelError for a tokenizer that puts BOS twice before every text.

    Every window would begin otherwise than the model was trained on.
    """
    tokenizer = model.tokenizer()
    found = Specials.of(tokenizer)
    if found.bos is not None and found.before.count(found.bos) > 1:
        raise ModelError(
            f"model={model.name}: its tokenizer puts {spelled(tokenizer, found.bos)} "
            f"{found.before.count(found.bos)} times before every text: correct the post_processor "
            "in tokenizer.json (or add_bos_token in tokenizer_config.json), so that it is added "
            "once."
        )


_version = cache(version)  # it reads the package's metadata: 5 ms, for every cell


def _kept(fingerprint: str) -> Path:
    key = digest(["whole", VERSION, _version("transformers"), fingerprint])
    return cache_root() / "shapes" / f"{key[:32]}.whole"


def _fault(model: StoredModel | QuantizedModel, levels: Part | None) -> str | None:
    """A sentence on the first fault; None if there is none."""
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
