"""Which model and which text a name stands for. Names of conf/ and the hub need the harness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.extras import require
from quant.checkpoint.card import Origin, origin_of
from quant.checkpoint.folder import read_json
from quant.errors import CalibrationError, QuantizationError

USUAL_WINDOW = 2048  # tokens, as in the paper; contexts of today are far longer


@dataclass(frozen=True)
class Found:
    """A folder of full-precision weights, the dtype to read it in, and what is known of it."""

    folder: Path
    dtype: torch.dtype
    origin: Origin


def find_model(model: str | Path, dtype: torch.dtype | None) -> Found:
    """The folder of a model: itself, or that of a name in conf/model or on the hub."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Found(folder, dtype or _stored_dtype(folder), origin_of(folder))
    if isinstance(model, Path) or model.startswith((".", "/", "~")):
        raise QuantizationError(f"{model} is not a folder: give one with config.json and weights.")
    require("harness", f"bitsweep.quantize({model!r}, ...), which is no folder here,")
    from harness.config.kept import cells_of
    from harness.errors import ConfigError
    from harness.models.model import StoredModel
    from harness.models.model import find_model as find
    from harness.run.cards import origin_of_model

    hub = "/" in model
    (cell,) = cells_of(["model=hub", f"model.id={model}"] if hub else [f"model={model}"], False)
    found = find(cell.config.model, download=True)
    if not isinstance(found, StoredModel):
        raise ConfigError(
            f"{model} has no full-precision weights to quantize: name another model, or a folder."
        )
    wanted = _stored_dtype(found.folder) if hub else getattr(torch, found.config.dtype)
    return Found(found.folder, dtype or wanted, origin_of_model(found))


def windows_of(
    calibration: str | Path | Sequence[Tensor],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    sequences: int,
    length: int | None,
    seed: int,
) -> list[Tensor]:
    """Calibration windows: those that were given, or cut from the text that was named."""
    if not isinstance(calibration, str | Path):
        return list(calibration)
    if tokenizer is None:
        raise CalibrationError(
            f"calibration={str(calibration)!r} is text, which a model in memory has no tokenizer "
            "for: add tokenizer=..., or give windows of token ids."
        )
    require("harness", f"calibration={str(calibration)!r}, a text,")
    from harness.config.kept import cells_of
    from harness.data import protocols, vocabulary

    name = calibration if isinstance(calibration, str) else "text"
    (cell,) = cells_of([f"calib={name}", f"calib.sequences={sequences}", f"seed={seed}"], False)
    config = cell.config.calib
    if config.protocol == "none":
        raise CalibrationError(
            f"calibration={name!r} has no text: name another, such as 'embedded' or 'c4', or use a "
            "method that needs none (method='rtn')."
        )
    if isinstance(calibration, Path):
        config.path = str(calibration)
    own = protocols.stated_length(model.config)
    config.length = length or min(USUAL_WINDOW, own or USUAL_WINDOW)
    reader = _tokenizer(tokenizer)
    whole = not any(each.is_meta for each in model.parameters())
    found = protocols.calibration_windows(
        config,
        reader,
        own or config.length,
        load_model=(lambda: model) if whole else None,
    )
    vocabulary.check_windows(found, reader, model)
    return found.windows


def _tokenizer(given: PreTrainedTokenizerBase | str | Path) -> Any:
    if isinstance(given, PreTrainedTokenizerBase):
        return given
    from harness.config.schema import ModelConfig
    from harness.models.folders import load_tokenizer

    return load_tokenizer(Path(given), ModelConfig(name=str(given), source="local"))


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that config.json names; float32 where it names none."""
    if not (folder / "config.json").is_file():
        raise QuantizationError(
            f"{folder} has no config.json, so it is not a Hugging Face model folder: point to the "
            "folder that save_pretrained wrote."
        )
    config = read_json(folder / "config.json")
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        named = getattr(torch, str(part.get("dtype") or part.get("torch_dtype")), None)
        if isinstance(named, torch.dtype):
            return named
    return torch.float32
