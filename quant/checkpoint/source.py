"""Block sources that read checkpoints on disk: full precision, and quantized artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from cuda_ext.ops import resolve_kernel
from quant.blocks import find_blocks
from quant.calibrate.source import Weights
from quant.checkpoint.layers import (
    Tensors,
    missing_tensor,
    operator_bits,
    quantized_layers,
    scheme_of,
    stored_bits,
)
from quant.checkpoint.loader import (
    read_format,
    replace_layer,
    require_kind,
    require_tensors,
    runnable,
)
from quant.checkpoint.matching import (
    keep_computed,
    match,
    model_names,
    parameters_and_buffers,
    tensor_of,
    untie_as_stored,
)
from quant.checkpoint.names import names_of
from quant.checkpoint.operators import tensor_names
from quant.checkpoint.skeleton import build_causal_lm, build_skeleton
from quant.checkpoint.tensors import TensorReader
from quant.checkpoint.writer import layer_shape
from quant.errors import ArtifactError
from quant.experts import fused_parts
from quant.input_operator import detach
from quant.levels.base import Levels
from quant.memory.heaps import keep_freed_memory, own_copy, own_zeros, trim_heap
from quant.parts import Part
from quant.transforms.base import Transform


class SkeletonSource:
    """A model on the meta device whose tensors are read by name, the blocks one at a time.

    read(name) returns a tensor by its name in the model, on the CPU, in the dtype that the model
    has there; only one thread calls it at a time. Everything outside the blocks is read
    immediately.
    """

    reads = True
    _reader: TensorReader  # opened by the subclass, closed here

    def __init__(
        self,
        model: PreTrainedModel,
        read: Callable[[str], Tensor],
        device: torch.device | str = "cpu",
    ) -> None:
        keep_freed_memory()
        self.model, self.device = model, torch.device(device)
        self.blocks = find_blocks(model)
        self.tensor = read
        self._meta: dict[str, nn.Parameter] = {}
        self._of_block: list[list[list[str]]] = [[] for _ in self.blocks.modules]
        resident: list[list[str]] = []
        for names in parameters_and_buffers(model):
            index = self._block_of(names)
            (resident if index is None else self._of_block[index]).append(names)
        for names in resident:
            self._set(names, read(names[0]))
        for module in model.modules():  # buffers that the model computes, such as frequencies
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__()
        trim_heap()

    def fetch(self, index: int) -> Weights:
        return {names[0]: self.tensor(names[0]) for names in self._of_block[index]}

    def attach(self, index: int, weights: Weights) -> None:
        for names in self._of_block[index]:
            if names[0] in weights:
                self._set(names, weights[names[0]])

    def blank(self, index: int) -> None:
        like = {names[0]: tensor_of(self.model, names[0]) for names in self._of_block[index]}
        # On the CPU, zero pages that are only read take no memory.
        self.attach(
            index, {name: own_zeros(t.shape, t.dtype, self.device) for name, t in like.items()}
        )

    def release(self, index: int) -> None:
        detach(self.blocks.modules[index])
        for names in self._of_block[index]:
            for name in names:
                if name in self._meta:
                    module, attribute = _owner(self.model, name)
                    module._parameters[attribute] = self._meta[name]

    def _block_of(self, names: list[str]) -> int | None:
        """Return the block that has all of these (tied) names; None outside or across blocks."""
        owners = set()
        for name in names:
            rest = name.removeprefix(f"{self.blocks.name}.")
            owners.add(int(rest.split(".")[0]) if rest != name else None)
        return owners.pop() if len(owners) == 1 else None

    def _set(self, names: list[str], value: Tensor) -> None:
        value = value.to(self.device)
        shared = nn.Parameter(value, requires_grad=False) if value.is_floating_point() else value
        for name in names:
            module, attribute = _owner(self.model, name)
            if attribute in module._buffers:
                module._buffers[attribute] = value
                continue
            present = module._parameters[attribute]
            assert present is not None
            if present.is_meta:
                self._meta[name] = present
            module._parameters[attribute] = shared  # type: ignore[assignment]


class CheckpointSource(SkeletonSource):
    """A full-precision Hugging Face folder of safetensors files; a context manager.

    The model equals AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options), tensor by
    tensor: names are mapped, dtypes cast and weights tied in the same way. Raises ArtifactError for
    a folder of PyTorch .bin files (with the command that converts them) and for tensors that are
    missing or have another shape.
    """

    def __init__(
        self,
        folder: str | Path,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        self.folder = Path(folder)
        advice = f"Copy {folder} again from where it came from."
        model = build_causal_lm(self.folder, dtype, options, advice)
        self._reader = TensorReader(self.folder, mapped=False, advice=advice)
        self._reader.__enter__()
        try:
            self._stored = stored_names(model, self._reader.names, advice)
            self._parts = {  # of the experts' tensors those that the files hold fused
                name: part
                for name, part in fused_parts(model).items()
                if name in self._stored
                and len(self._reader.shape(self._stored[name])) > tensor_of(model, name).dim()
            }
            self._check(model)
            keep_computed(model, self._stored)
            untie_as_stored(model, self._stored, self._read_mapped)
            for names in parameters_and_buffers(model):
                held = [name for name in names if name in self._stored]
                for name in names if held else ():
                    self._stored.setdefault(name, self._stored[held[0]])
            self._dtypes = _dtypes(model, dtype)
            super().__init__(model, self._read_stored, device)
        except BaseException:
            self._reader.__exit__()
            raise
        if (self.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                self.folder, local_files_only=True
            )

    def _read_stored(self, name: str) -> Tensor:
        # Always a copy, whose memory is aligned: the speed of a product and its order of summation
        # may depend on the alignment.
        stored, part = self._stored[name], self._parts.get(name)
        if part is not None:
            return own_copy(part.of(self._reader.row(stored, part.expert)), self._dtypes[name])
        return own_copy(self._reader.mapped(stored), self._dtypes[name])

    def _read_mapped(self, name: str) -> Tensor:
        return self._reader.mapped(self._stored[name])

    def _check(self, model: PreTrainedModel) -> None:
        """Check that the files have every tensor of the model, with the right shape, and no others.

        Buffers that an older version did not store keep their computed values.
        """
        shapes = {name: self._reader.shape(name) for name in self._reader.names}
        fault = match(model, shapes).fault(type(model).__name__)
        if fault is not None:
            raise ArtifactError(f"{self.folder}: {fault}")


class ArtifactSource(SkeletonSource):
    """A quantized checkpoint whose blocks run packed weights; a context manager.

    The model equals that of `quant.load` with the same arguments; the same errors are raised.
    """

    def __init__(
        self,
        folder: str | Path,
        kernel: str = "auto",
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        verify_files: bool = True,
        transforms: Sequence[Transform] = (),
        levels: Sequence[str | Part | Levels] = (),
        **options: Any,
    ) -> None:
        self.folder = Path(folder)
        resolve_kernel(kernel, device)
        self._kernel, self._dtype = kernel, dtype
        found = read_format(self.folder, verify_files=verify_files, levels=levels)
        self._format = runnable(found, transforms, self.folder)
        self._reader = TensorReader(self.folder, mapped=False)
        self._reader.__enter__()
        try:
            model = build_skeleton(self.folder, dtype, options)
            self._reader.rename(names_of(model).to_model)
            self._layers = quantized_layers(self._reader, self._format)
            require_tensors(model, self._reader, self._format, self._layers)
            held = {f"{layer}.weight" for layer in self._layers}
            keep_computed(model, held | set(self._reader.names))
            untie_as_stored(model, self._reader.names, self._reader.mapped)
            inside = f"{find_blocks(model).name}."
            for layer in self._layers:
                if not layer.startswith(inside):  # the head
                    self._pack(model, self._reader, layer, torch.device(device))
            super().__init__(model, self._read_plain, device)
        except BaseException:
            self._reader.__exit__()
            raise
        self._linears: dict[str, nn.Module] = {}

    def fetch(self, index: int) -> Weights:
        packed = self._layers_of(index)
        taken = tuple(f"{layer}." for layer in packed)
        weights = {
            f"{layer}.{part}": self._reader.read(f"{layer}.{part}")
            for layer in packed
            for part in (*self._layers[layer], "bias", *self._operator(layer))
            if f"{layer}.{part}" in self._reader.names
        }
        for names in self._of_block[index]:
            if not names[0].startswith(taken):
                weights[names[0]] = self._read_plain(names[0])
        return weights

    def attach(self, index: int, weights: Weights) -> None:
        super().attach(index, weights)
        fetched = _Fetched(self._reader, weights)
        for layer in self._layers_of(index):
            # Zeros that `blank` made have the names of the model alone.
            if not all(f"{layer}.{part}" in weights for part in self._layers[layer]):
                continue
            self._linears[layer] = self.model.get_submodule(layer)
            self._pack(self.model, fetched, layer, self.device)

    def release(self, index: int) -> None:
        for layer in self._layers_of(index):
            if layer in self._linears:
                parent, _, child = layer.rpartition(".")
                setattr(self.model.get_submodule(parent), child, self._linears.pop(layer))
        super().release(index)

    def layer_bits(self) -> dict[str, tuple[int, float]]:
        """Return the weights of every quantized layer and their stored bits, by its name."""
        found = {}
        for name in self._layers:
            outputs, inputs = layer_shape(self.model.get_submodule(name), name)
            scheme = scheme_of(self._reader, self._format, name)
            bits = stored_bits(
                self._reader, self._format, name, self._layers[name], scheme, (outputs, inputs)
            )
            found[name] = (outputs * inputs, bits)
        return found

    def operator_bits(self) -> int:
        """Return the stored bits of all operators."""
        return operator_bits(self._reader, self._format)

    def _pack(
        self, model: PreTrainedModel, reader: Tensors, layer: str, device: torch.device
    ) -> None:
        replace_layer(
            model, reader, self._format, layer, self._layers[layer], self._kernel, device,
            self._dtype,
        )  # fmt: skip

    def _operator(self, layer: str) -> list[str]:
        return tensor_names(self._format.operators.get(layer, ()))

    def _layers_of(self, index: int) -> list[str]:
        return [n for n in self._layers if n.startswith(f"{self.blocks.block_name(index)}.")]

    def _read_plain(self, name: str) -> Tensor:
        if name not in self._reader.names:
            tied = next((t for t in self._tied(name) if t in self._reader.names), None)
            if tied is None:
                raise missing_tensor(self._reader, name)
            name = tied
        tensor, expected = self._reader.read(name), tensor_of(self.model, name)
        if tensor.shape != expected.shape:
            raise ArtifactError(
                f"{self._reader.file_of(name)}: {name} is {list(tensor.shape)}, but config.json "
                f"makes it {list(expected.shape)}. {self._reader.advice}"
            )
        require_kind(self._reader, name, tensor, expected.dtype)
        return tensor.to(self._dtype) if tensor.is_floating_point() and self._dtype else tensor

    def _tied(self, name: str) -> list[str]:
        return next(group for group in parameters_and_buffers(self.model) if name in group)


class _Fetched:
    """Tensors of one block that were already read, with the interface of their reader."""

    def __init__(self, reader: TensorReader, tensors: Weights) -> None:
        self.folder, self.names, self.file_of = reader.folder, set(tensors), reader.file_of
        self.read = self.mapped = tensors.__getitem__
        self.nbytes = reader.nbytes


def stored_names(model: PreTrainedModel, stored: Iterable[str], advice: str = "") -> dict[str, str]:
    """Map names of the model's parameters and buffers to their names in the files.

    Stored names that belong to nothing are left out. Raises ArtifactError for tensors that
    transformers makes from several stored ones.
    """
    found: dict[str, str] = {}
    for renamed, name, together in model_names(model, stored):
        if together and renamed:
            raise ArtifactError(
                f"{renamed} of {type(model).__name__} is put together from several stored tensors "
                f"(such as {name}), which cannot be read block by block; use another model. "
                f"{advice}"
            )
        if renamed:
            found[renamed] = name
    return found


def _dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtype of every tensor after loading: dtype, or float32 where its class insists."""
    exact = list(model._get_dtype_plan(dtype))
    return {
        name: torch.float32
        if any(part in name.split(".") for part in exact) and tensor.is_floating_point()
        else tensor.dtype
        for name, tensor in model.state_dict().items()
    }


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute
