"""Build a model without weights: parameters on the meta device, buffers with their values.

Fused experts are split (quant.experts) in every skeleton.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from quant.checkpoint.files import copyable
from quant.checkpoint.folder import read_json, remake
from quant.errors import ArtifactError
from quant.experts import unfuse
from quant.pruning import PRUNED
from quant.pruning.cut import smaller_layers


def build_skeleton(
    folder: Path, dtype: torch.dtype | None, options: dict[str, Any]
) -> PreTrainedModel:
    """Build the unquantized model of folder/config.json with its parameters on the meta device.

    Buffers that the model computes (rotary frequencies, masks) have the values that
    `from_pretrained` gives them in dtype (None: config.json's). options are passed to transformers,
    for example attn_implementation; trust_remote_code=True runs the Python files of the folder.

    Raises ArtifactError for a config that transformers cannot read.
    """
    options, trust = _trust(options)
    config = _read_config(folder, remake(folder), trust)
    make = _model_class(folder, config, trust)
    with _no_foreign_code(folder), parameters_on_meta():
        model = make(config, dtype=dtype or config.dtype, **options)
        unfuse(model)
        shrink(model)
    result: PreTrainedModel = model.eval()
    return result


def build_from(like: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model of a changed configuration of `like`, with its class, dtype and attention."""
    with parameters_on_meta():
        model = type(like)._from_config(
            config, dtype=like.dtype, attn_implementation=like.config._attn_implementation
        )
        unfuse(model)
        shrink(model)
    model.generation_config = like.generation_config
    result: PreTrainedModel = model.eval()
    return result


def shrink(model: PreTrainedModel) -> None:
    """Give the layers that pruning made smaller their shapes; their parameters are on meta."""
    try:
        smaller = smaller_layers(model.config)
        modules = {name: model.get_submodule(name) for name in smaller}
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"config.json: {PRUNED} does not say the shapes of layers of {type(model).__name__} "
            f"({_brief(error)}); copy the artifact again from where it came from."
        ) from error
    for name, (outputs, inputs) in smaller.items():
        module = modules[name]
        if not isinstance(module, nn.Linear):
            raise ArtifactError(f"{name} of {type(model).__name__} is no nn.Linear to be pruned.")
        parent, _, child = name.rpartition(".")
        like = module.weight
        made = nn.Linear(
            inputs, outputs, module.bias is not None, device=like.device, dtype=like.dtype
        )
        setattr(model.get_submodule(parent), child, made.requires_grad_(False))


def build_causal_lm(
    folder: Path, dtype: torch.dtype, options: dict[str, Any], advice: str
) -> PreTrainedModel:
    """Build the skeleton of the causal LM that AutoModelForCausalLM.from_pretrained would load.

    As `build_skeleton`, but also if config.json names the base model without its head. advice is
    the next step at the end of errors. Raises ArtifactError for a quantized model too.
    """
    options, trust = _trust(options)
    config = _read_config(folder, advice, trust, unquantized=True)
    try:
        with _no_foreign_code(folder), parameters_on_meta():
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust, **options
            )
            unfuse(model)
    except ValueError as error:
        where = folder / "config.json"
        raise ArtifactError(
            f"{where} describes no causal language model: {_brief(error)}. {advice}"
        ) from error
    result: PreTrainedModel = model.eval()
    return result


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Create the parameters of modules built inside on the meta device; buffers are real."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # A parameter that is already on meta may be tied, so it must stay the same object.
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
            # transformers leaves it alone: torch draws numbers for a tensor without any in Python,
            # which was two thirds of the time for a model.
            param._is_hf_initialized = True  # type: ignore[attr-defined]
        register(module, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def local_code(folder: Path) -> list[Path]:
    """Return the Python files of a model with its own code, which determine what it computes.

    Raises ArtifactError if the configuration names code of another repository, because the hashes
    of this folder do not cover that code.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        for place in _texts(read_json(folder / name).get("auto_map")):
            if "--" in place:
                raise ArtifactError(
                    f"{folder / name}: auto_map names code of another repository ({place}): copy "
                    "its files into the folder and name them there."
                )
    return copyable(folder, (path.name for path in folder.glob("*.py")))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _trust(options: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the options without trust_remote_code, and its value; only True means trust."""
    others = {name: value for name, value in options.items() if name != "trust_remote_code"}
    return others, options.get("trust_remote_code") is True


@contextlib.contextmanager
def _no_foreign_code(folder: Path) -> Iterator[None]:
    """If transformers refuses to run a model's code, raise an error with the key that allows it."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ArtifactError(refusal_of_code(folder)) from error


def refusal_of_code(folder: Path) -> str:
    """Return the error text for a model that needs its own Python files to be read."""
    return (
        f"{folder} needs its own Python code, which is not run by default: read its .py files, and "
        "if you trust them add model.trust_remote_code=true (to bitsweep export "
        "--trust-remote-code, in Python trust_remote_code=True)."
    )


def _read_config(
    folder: Path, advice: str, trust: bool, unquantized: bool = False
) -> PreTrainedConfig:
    if trust:
        local_code(folder)
    try:
        with _no_foreign_code(folder):
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust
            )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ArtifactError(
            f"{folder / 'config.json'} does not describe a model that transformers "
            f"{transformers.__version__} knows: {_brief(error)}. {advice}"
        ) from error
    if unquantized and getattr(config, "quantization_config", None) is not None:
        raise ArtifactError(
            f"{folder / 'config.json'} has a quantization_config: the model is already quantized. "
            "Start from the full-precision model."
        )
    # With a quantization_config, transformers would load its own quantizer.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _brief(error: Exception) -> str:
    """Return transformers' message without its long advice and lists of classes."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(". ")


def _model_class(folder: Path, config: PreTrainedConfig, trust: bool) -> Any:
    names = config.architectures or []
    own = trust and "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if not names or own:
        return functools.partial(AutoModelForCausalLM.from_config, trust_remote_code=trust)
    found = getattr(transformers, names[0], None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ArtifactError(
            f"{folder / 'config.json'}: architectures={names} is not a model of transformers "
            f"{transformers.__version__}; use the version that the model was made with."
        )
    return found._from_config
