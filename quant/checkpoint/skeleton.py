"""A model without weights: parameters on the meta device, computed buffers with their values.

Fused experts are taken apart (quant.experts), in every skeleton alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from quant.checkpoint.folder import remake
from quant.errors import ArtifactError
from quant.experts import unfuse


def build_skeleton(
    folder: Path, dtype: torch.dtype | None, options: dict[str, Any]
) -> PreTrainedModel:
    """The model that folder/config.json describes, unquantized, with its parameters on meta.

    Buffers that the model computes for itself (rotary frequencies, masks) have their values, made
    as `from_pretrained` makes them in dtype (None: config.json's). options go to transformers, for
    example attn_implementation. Raises ArtifactError for a config that transformers cannot read.
    """
    config = _read_config(folder, remake(folder))
    with parameters_on_meta():
        model = _model_class(folder, config)(config, dtype=dtype or config.dtype, **options)
        unfuse(model)
    return model.eval()


def build_causal_lm(
    folder: Path, dtype: torch.dtype, options: dict[str, Any], advice: str
) -> PreTrainedModel:
    """The skeleton of the causal LM that AutoModelForCausalLM.from_pretrained(folder) would load.

    As `build_skeleton`, also where config.json names the base model without its head. advice is the
    next step that errors end with. Raises ArtifactError for a quantized model too.
    """
    config = _read_config(folder, advice, unquantized=True)
    try:
        with parameters_on_meta():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
            unfuse(model)
    except ValueError as error:
        raise ArtifactError(
            f"{folder / 'config.json'} describes no causal language model: {error}. {advice}"
        ) from error
    return model.eval()


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built inside have every parameter on the meta device; their buffers stay real."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # One that is on meta already may be tied: it must stay the same object.
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
        register(module, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _read_config(folder: Path, advice: str, unquantized: bool = False) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ArtifactError(
            f"{folder / 'config.json'} does not describe a model that transformers "
            f"{transformers.__version__} knows: {error}. {advice}"
        ) from error
    if unquantized and getattr(config, "quantization_config", None) is not None:
        raise ArtifactError(
            f"{folder / 'config.json'} has a quantization_config: the model is quantized already. "
            "Start from the full-precision model."
        )
    # Otherwise transformers would look for its own quantizer.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _model_class(folder: Path, config: PreTrainedConfig) -> Any:
    names = config.architectures or []
    if not names:
        return AutoModelForCausalLM.from_config
    found = getattr(transformers, names[0], None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ArtifactError(
            f"{folder / 'config.json'}: architectures={names} is not a model of transformers "
            f"{transformers.__version__}; use the version that the model was made with."
        )
    return found._from_config
