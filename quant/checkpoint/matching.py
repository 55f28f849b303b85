"""Compare the tensors in a model's files with those of the model: differing names, broken ties.

A missing tensor would stay random, and an unexpected one means that another model was stored; both
are errors that name the tensor. Harmless differences are listed for the record: tied weights,
buffers that the model computes, and tensors that its class ignores.
"""

from __future__ import annotations

import contextlib
import logging
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from quant.checkpoint.files import weight_files
from quant.checkpoint.names import names_of
from quant.checkpoint.tensors import TensorReader
from quant.coverage import pattern
from quant.embedding import QuantEmbedding
from quant.errors import ArtifactError
from quant.experts import fused_parts
from quant.factored import PackedLinear
from quant.head import is_embeddings, is_head, tied
from quant.input_operator import KeptChange

log = logging.getLogger(__name__)

TIED, COMPUTED, IGNORED = "tied to", "computed by the model", "ignored by the model's class"
MARK = "a mark of its converter"
APART = "stored with other values than"
# Buffers that the model computes and some versions of transformers stored: rotary frequencies,
# positions, causal masks. The last are called bias, so their shape [1, 1, n, n] is checked too.
_COMPUTED = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias)$")
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")
_MARK = re.compile(r"(^|\.)decoder\.version$")  # fairseq's, in early OPT checkpoints


LISTED = 3  # names in an error; the rest are counted


@dataclass(frozen=True)
class Differences:
    """Names that only the model (missing) or only the files (unexpected) have.

    mismatched  stored shapes of names that both have, if they differ from the model's.
    harmless    the reason for each difference that changes nothing.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    harmless: Mapping[str, str] = field(default_factory=dict)
    mismatched: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def fault(self, kind: str) -> str | None:
        """Return why a folder cannot be loaded as a model of class `kind`; None if it can.

        It is the end of a sentence that begins with the folder.
        """
        shapes = [f"{name} {list(shape)}" for name, shape in self.mismatched.items()]
        for names, what in (
            (self.missing, f"the files hold no values for {{}} of {kind}"),
            (shapes, "the files hold {}, which is another shape than config.json makes"),
            (self.unexpected, f"the files hold {{}}, which {kind} does not have"),
        ):
            if names:
                more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
                said = what.format(", ".join(sorted(names)[:LISTED]) + more)
                return (
                    f"{said}: config.json and weights are not of one whole causal language model; "
                    "save the whole model (AutoModelForCausalLM), or fetch or copy its files again."
                )
        return None

    def summary(self) -> dict[str, str]:
        """Return the harmless differences, one for all blocks: model.layers.*.inv_freq."""
        found: dict[str, tuple[str, int]] = {}
        for name, reason in self.harmless.items():
            general = pattern(name)
            found[general] = (reason, found.get(general, (reason, 0))[1] + 1)
        return {
            name: reason if count == 1 else f"{reason} ({count} tensors)"
            for name, (reason, count) in sorted(found.items())
        }


def model_names(model: PreTrainedModel, stored: Iterable[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield (name in the model, name in the files, combined) by the conventions of transformers.

    Keys are renamed, and the prefix of the base model is added or removed. `combined` means that
    the model's tensor is made from several stored ones. The first name is "" for a stored tensor
    that belongs to nothing. A stored tensor of all experts is yielded once for each tensor of an
    expert (quant.experts).
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    inside: dict[str, list[str]] = {}  # of a fused tensor those of its experts in the model
    for part_name, part in fused_parts(model).items():
        inside.setdefault(part.fused, []).append(part_name)
    known = {**state, **{fused: state[names[0]] for fused, names in inside.items()}}
    for name in sorted(stored):
        if inside:  # split experts: a tensor that transformers combines is also one tensor here
            alone, _ = rename_source_key(name, renamings, [], prefix, known)
            if alone in inside or alone in state:
                yield from ((mine, name, False) for mine in inside.get(alone, [alone]))
                continue
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], prefix, state)
        yield renamed if renamed in state else "", name, pattern is not None


def compare(
    model: PreTrainedModel,
    held: Collection[str],
    left: Iterable[str],
    shape_of: Callable[[str], tuple[int, ...]],
) -> Differences:
    """Divide differing names into harmful and harmless ones.

    held  names of the model's parameters and buffers that the files have.
    left  names in the files that belong to nothing in the model; shape_of returns their shapes.
    """
    missing, unexpected, harmless = [], [], {}
    buffers = {name for name, _ in model.named_buffers()}
    ignored = _patterns(model, "_keys_to_ignore_on_load_missing")
    for names in parameters_and_buffers(model):
        present = [name for name in names if name in held]
        for name in (name for name in names if name not in held):
            if present:
                harmless[name] = f"{TIED} {present[0]}"
            # A parameter that is in no file would be random, whatever its class says.
            elif name in buffers and ignored(name):
                harmless[name] = IGNORED
            elif name in buffers and (_COMPUTED.search(name) or _MASK.search(name)):
                harmless[name] = COMPUTED
            else:
                missing.append(name)
    ignored = _patterns(model, "_keys_to_ignore_on_load_unexpected")
    for name in left:
        if name in buffers or _COMPUTED.search(name) or _is_mask(name, shape_of):
            harmless[name] = COMPUTED
        elif ignored(name):
            harmless[name] = IGNORED
        elif _MARK.search(name):
            harmless[name] = MARK
        else:
            unexpected.append(name)
    for name, source in _ties_of_class(model).items():
        if {name, source} <= set(held) and not _same(model, name, source):
            harmless[name] = f"{APART} {source}, so not tied"
    return Differences(tuple(missing), tuple(unexpected), harmless)


def differences(model: PreTrainedModel, folder: Path) -> Differences:
    """Return the differences between the files of `folder` and the model, loaded or a skeleton.

    Only names and shapes are compared, so only file headers are read.
    """
    with contextlib.ExitStack() as stack:
        if weight_files(folder).pickled:
            shapes = _pickled_shapes(folder)
        else:
            advice = f"Copy {folder} again from where it came from."
            reader = stack.enter_context(TensorReader(folder, advice=advice))
            reader.rename(names_of(model).to_model)
            shapes = {name: reader.shape(name) for name in reader.names}
    kinds = PackedLinear | QuantEmbedding
    packed = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, kinds))
    return match(model, {n: shape for n, shape in shapes.items() if not n.startswith(packed)})


def match(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> Differences:
    """Return the differences between a model and files with tensors of these names and shapes."""
    pairs = list(model_names(model, shapes))
    left = [name for mine, name, _ in pairs if not mine]
    found = compare(model, {mine for mine, _, _ in pairs}, left, shapes.__getitem__)
    parts, mismatched = fused_parts(model), {}
    for mine, name, together in pairs:
        if mine and not together:
            expected, stored = tensor_of(model, mine).shape, shapes[name]
            if mine in parts and len(stored) > len(expected):  # of all experts together
                stored = tuple(parts[mine].of(torch.empty(stored[1:], device="meta")).shape)
            if stored != tuple(expected):
                mismatched[name] = shapes[name]
    return replace(found, mismatched=mismatched)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, without their values if it is from torch 1.6 or later."""
    mapped = zipfile.is_zipfile(path)
    state: dict[str, Tensor] = torch.load(path, map_location="meta", weights_only=True, mmap=mapped)
    return state


def _pickled_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder).paths:
        try:
            found |= {name: tuple(tensor.shape) for name, tensor in _unpickled(path).items()}
        except Exception as error:  # whatever damage makes of a pickle
            said = " ".join(str(error).split())[:150]
            raise ArtifactError(
                f"{path} holds no pickled weights that can be read ({type(error).__name__}"
                f"{f': {said}' if said else ''}). Copy {folder} again from where it came from."
            ) from error
    return found


def parameters_and_buffers(model: nn.Module) -> Iterator[list[str]]:
    """Yield names of parameters and persistent buffers outside packed layers; tied ones together.

    Tensors of operators are left out, because they are not part of the model's class.
    """
    groups: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear | KeptChange):
            continue
        here: dict[str, Tensor | None] = dict(module._parameters)
        here |= {
            n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set
        }
        for name, tensor in here.items():
            if tensor is not None:
                groups.setdefault(id(tensor), []).append(f"{path}.{name}" if path else name)
    return iter(groups.values())


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer with this full name."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    held = module._parameters.get(attribute)  # getattr would count as reading the weight (survey)
    return getattr(module, attribute) if held is None else held


def untie_as_stored(
    model: PreTrainedModel, held: Collection[str], read: Callable[[str], Tensor]
) -> list[str]:
    """Untie tensors whose stored values differ from what they are tied to, as transformers does.

    held  names of the model's tensors that the files have; read gives their values.

    Returns the names that now have their own parameter: stored values win over config.json.
    """
    untied = []
    for names in list(parameters_and_buffers(model)):
        first, *others = [name for name in names if name in held] or [""]
        for name in others:
            dtype = tensor_of(model, name).dtype
            values, other = read(first).to(dtype), read(name).to(dtype)
            if values.shape == other.shape and torch.equal(values, other):
                continue
            log.warning(
                "config.json ties %s and %s, but the files hold different values: not tied.",
                first, name,
            )  # fmt: skip
            path, _, attribute = name.rpartition(".")
            present = tensor_of(model, name)
            alone = nn.Parameter(present.detach(), requires_grad=False)
            model.get_submodule(path)._parameters[attribute] = alone
            getattr(model, "all_tied_weights_keys", {}).pop(name, None)
            untied.append(name)
    return untied


def keep_computed(model: PreTrainedModel, held: Collection[str]) -> None:
    """Keep the computed values of buffers that no file has, and do not read them."""
    buffers = {name for name, _ in model.named_buffers()}
    for names in list(parameters_and_buffers(model)):
        if names[0] in buffers and not any(name in held for name in names):
            path, _, attribute = names[0].rpartition(".")
            model.get_submodule(path)._non_persistent_buffers_set.add(attribute)


def ties_hold(model: PreTrainedModel, quantized: Collection[str] = ()) -> bool:
    """Whether everything that the model's configuration ties is tied.

    quantized  layers that are stored packed: a packed head is no longer tied, and packed embeddings
               that it is tied to are its matrix too.
    """
    packed = {f"{layer}.weight" for layer in quantized}
    return all(
        name not in packed and _same(model, name, source)
        for name, source in _ties_of_class(model).items()
    )


def say_untied(config: dict[str, Any]) -> None:
    """Set a config.json to say that the head is stored separately from the embedding."""
    config["tie_word_embeddings"] = False
    nested = config.get("text_config")
    if isinstance(nested, dict) and "tie_word_embeddings" in nested:
        nested["tie_word_embeddings"] = False


def _ties_of_class(model: PreTrainedModel) -> dict[str, str]:
    """Return tied tensors (target to source) of class and configuration, whatever is stored."""
    return dict(model.get_expanded_tied_weights_keys(all_submodels=True))


def _same(model: PreTrainedModel, name: str, source: str) -> bool:
    try:
        return tensor_of(model, name) is tensor_of(model, source)
    except AttributeError:  # a packed layer has no such weight
        layers = (each.removesuffix(".weight") for each in (name, source))
        return is_head(next(layers)) and is_embeddings(next(layers)) and tied(model)


def _patterns(model: PreTrainedModel, attribute: str) -> Callable[[str], bool]:
    patterns = list(getattr(model, attribute, None) or ())
    return lambda name: any(re.search(pattern, name) for pattern in patterns)


def _is_mask(name: str, shape_of: Callable[[str], tuple[int, ...]]) -> bool:
    return bool(_MASK.search(name)) and shape_of(name)[:2] == (1, 1)
