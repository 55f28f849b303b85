"""Operators in front of layers: how checkpoints in Bitsweep's own formats describe them.

A reader that does not know operators would multiply with the right weights and get wrong products.
A model with operators therefore has a quantization_config with a quant_method of its own, which
contains the quantization_config of its layers:

    {"quant_method": "bitsweep_operators",
     "layers": {"quant_method": "gptq", ...},
     "operators": {"model.layers.0.mlp.down_proj":
         [{"transform": "equalize", "version": 1, "module": "quant.transforms.equalize",
           "tensors": ["scale"]}]}}

The tensors are stored under their layer: `down_proj.input_operator.0.scale`. A transform that
rounds inputs has its "options" there, too, because they, not tensors, say to how many bits. No
module is imported because a checkpoint names it: the caller passes the specs of external
transforms.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from quant import transforms as package
from quant.checkpoint.files import are_texts
from quant.errors import ArtifactError
from quant.transforms.base import Transform

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant.input_operator import InputOperator, KeptChange

METHOD = "bitsweep_operators"
# transformers only warns about an unknown quant_method and loads what it can read; an unusual file
# name makes it stop.
STEM = "bitsweep-operators"


@dataclass(frozen=True)
class StoredChange:
    """One change of an operator, as described in config.json.

    module   module of a built-in transform; None for an external one.
    tensors  names of the tensors that define it.
    spec     the transform, once it is found (`find_transforms`).
    options  of a transform that rounds, as in config.json, and as its own type once it is found;
             None for others.
    """

    transform: str
    version: int
    module: str | None
    tensors: tuple[str, ...]
    spec: Transform | None = None
    options: Any = None


Operators = Mapping[str, tuple[StoredChange, ...]]


def stored_operators(model: nn.Module, layers: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Return config.json's description of the operators of those `layers` that have one."""
    from quant.input_operator import operator_of

    found = {}
    for layer in layers:
        operator = operator_of(model.get_submodule(layer))
        if operator is not None:
            found[layer] = [_say(each) for each in operator.changes()]
    return found


def wrap(layers: Mapping[str, Any], operators: Mapping[str, Any]) -> dict[str, Any]:
    """Return the quantization_config of a model; `layers` is the one of its layers."""
    if not operators:
        return dict(layers)
    return {"quant_method": METHOD, "layers": dict(layers), "operators": dict(operators)}


def unwrap(config: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], Operators]:
    """Return the quantization_config of the layers, and the operators by layer; ArtifactError."""
    if config.get("quant_method") != METHOD:
        return config, {}
    layers, operators = config.get("layers"), config.get("operators")
    if not isinstance(layers, Mapping) or layers.get("quant_method") == METHOD:
        raise ArtifactError(f"{where}.layers is not the quantization_config of layers.")
    if not isinstance(operators, Mapping) or not operators:
        raise ArtifactError(f"{where}.operators is empty, although quant_method is {METHOD}.")
    return layers, {
        name: _read(said, f"{where}.operators.{name}") for name, said in operators.items()
    }


def _read(said: Any, where: str) -> tuple[StoredChange, ...]:
    """Parse the changes of one operator; ArtifactError names the invalid configuration."""
    try:
        changes = tuple(
            StoredChange(**{**each, "tensors": tuple(each["tensors"])}) for each in said
        )
    except (TypeError, KeyError) as error:
        raise ArtifactError(
            f"{where} cannot be read ({error}); it lists transform, version, module and tensors "
            "of every change."
        ) from error
    texts = [text for each in changes for text in (each.transform, *each.tensors)]
    texts += [each.module for each in changes if each.module is not None]
    if (
        not changes
        or any(each.spec is not None or type(each.version) is not int for each in changes)
        or not are_texts(texts)
    ):
        raise ArtifactError(f"{where}={said!r} lists no changes of a transform that can be read.")
    return changes


def find_transforms(operators: Operators, given: Sequence[Transform], where: str) -> Operators:
    """Return the operators with their transforms: built-in ones, or those in `given`.

    Raises ArtifactError that names a transform that is unknown or has another version.
    """
    found: dict[tuple[str, int, str | None], Transform] = {}

    def find(stored: StoredChange) -> StoredChange:
        key = (stored.transform, stored.version, stored.module)
        if key not in found:
            found[key] = _find(stored, given, where)
        spec = found[key]
        return replace(stored, spec=spec, options=_options(spec, stored.options, where))

    return {layer: tuple(map(find, changes)) for layer, changes in operators.items()}


def tensor_names(changes: Sequence[StoredChange]) -> list[str]:
    """Return the names of an operator's tensors, relative to its layer."""
    from quant.input_operator import NAME

    return [f"{NAME}.{i}.{name}" for i, each in enumerate(changes) for name in each.tensors]


def build(
    changes: Sequence[StoredChange], read: Callable[[str], Tensor], inputs: int, layer: str
) -> InputOperator:
    """Return the operator of a layer with `inputs` inputs; read(name) returns a stored tensor.

    Raises ArtifactError if the transform cannot be made from the tensors.
    """
    import torch

    from quant.input_operator import NAME, InputOperator, KeptChange

    made = []
    for index, each in enumerate(changes):
        assert each.spec is not None  # set by find_transforms
        try:
            tensors = {name: read(f"{layer}.{NAME}.{index}.{name}") for name in each.tensors}
            made.append(KeptChange(each.spec, tensors, each.options))
            shape = made[-1](torch.zeros(1, inputs)).shape
        except (ArtifactError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a transform of anybody comes upon
            raise ArtifactError(
                f"{layer}.{NAME}.{index}: transform {each.transform} cannot be made of its tensors "
                f"({' '.join(str(error).split())}); the file is damaged, or of another version."
            ) from error
        if shape != (1, inputs):
            raise ArtifactError(
                f"{layer}.{NAME}.{index}: transform {each.transform} makes {shape[-1]} of {inputs} "
                "inputs; the file is damaged, or config.json belongs to another model."
            )
    return InputOperator(made)


def read_operators(
    said: Mapping[str, Any],
    transforms: Sequence[Transform],
    tensors: Mapping[str, Tensor],
    inputs: Mapping[str, int],
    where: str,
) -> dict[str, InputOperator]:
    """Build the operators that `stored_operators` described, by layer, from named tensors."""
    operators = {layer: _read(changes, where) for layer, changes in said.items()}
    return {
        layer: build(changes, tensors.__getitem__, inputs[layer], layer)
        for layer, changes in find_transforms(operators, transforms, where).items()
    }


def summary(operators: Mapping[str, Collection[StoredChange]]) -> str:
    """Summarise operators for messages: "equalize in front of 14 layers, such as q_proj"."""
    names = ", ".join(sorted({each.transform for said in operators.values() for each in said}))
    some = "1 layer" if len(operators) == 1 else f"{len(operators)} layers"
    return f"{names} in front of {some}, such as {next(iter(operators))}"


def grids_of(operators: Operators) -> str:
    """The grids to which found transforms round inputs, as names of schemes have them; "": none."""
    found = set()
    for each in (each for said in operators.values() for each in said):
        assert each.spec is not None  # set by find_transforms
        if each.spec.rounds:
            found.add(each.spec.tag(each.options))
    return "+".join(sorted(found))


def _say(kept: KeptChange) -> dict[str, Any]:
    transform = kept.transform
    module = f"{package.__name__}.{transform.name}"
    said = {
        "transform": transform.name,
        "version": transform.version,
        "module": module if _built_in(module) == transform else None,
        "tensors": tuple(kept.tensors()),
    }
    return said if not transform.rounds else said | {"options": asdict(kept.options)}


def _options(spec: Transform, said: Any, where: str) -> Any:
    """Return the options of a transform that rounds; None for others. Raises ArtifactError."""
    if not spec.rounds:
        return None
    try:
        return spec.options(**said)
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"{where}: transform {spec.name} rounds inputs, and its options={said!r} cannot be "
            f"read ({error}); the file is damaged, or of another version."
        ) from error


def _find(stored: StoredChange, given: Sequence[Transform], where: str) -> Transform:
    if stored.module is None:
        spec = next((each for each in given if each.name == stored.transform), None)
        advice = "give its spec: quant.load(folder, transforms=[TRANSFORM])"
    else:
        spec = _built_in(stored.module)
        advice = "use the version of Bitsweep that made it"
    if spec is None or spec.rebuild is None:
        known = stored.module or f"{stored.transform}, which is not Bitsweep's own,"
        raise ArtifactError(
            f"{where}: the transform {known} stands in front of its layers and is not known here; "
            f"{advice}."
        )
    if spec.version != stored.version:
        raise ArtifactError(
            f"{where} was made by version {stored.version} of transform {spec.name}, and this is "
            f"version {spec.version}, which may read its tensors otherwise: quantize again."
        )
    return spec


def _built_in(module: str) -> Transform | None:
    """Return a built-in transform by its module; nothing else is ever imported."""
    folder, _, name = module.rpartition(".")
    known = {each.name for each in pkgutil.iter_modules(package.__path__)}
    if folder != package.__name__ or name not in known:
        return None
    spec = getattr(importlib.import_module(module), "TRANSFORM", None)
    return spec if isinstance(spec, Transform) else None
