"""Convert a folder of pytorch_model*.bin files to safetensors, which can be read by name.

  python -m quant.checkpoint.convert FOLDER OUT

A .bin file is a pickle: only all of it can be read. Each one becomes one safetensors file, so that
no more than one of them is in memory. Names, dtypes and values stay as they are.
"""

from __future__ import annotations

import argparse
import functools
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.checkpoint.files import (
    QUANTIZATION_FILES,
    TOKENIZER_FILES,
    copy_files,
    copyable,
    weight_files,
)
from quant.checkpoint.folder import make_room, read_json, sync, writing
from quant.checkpoint.tensors import (
    STANDARD_STEM,
    Entry,
    TensorReader,
    shard_names,
    write_index,
    write_shard,
)
from quant.errors import ArtifactError, QuantizationError

# What is copied along: no other weights, no code, nothing that is not the model's.
BESIDE = ("config.json", "generation_config.json", *QUANTIZATION_FILES, *TOKENIZER_FILES)


def convert(folder: str | Path, out: str | Path, *, code: bool = False) -> Path:
    """Write the model of `folder` to `out` as safetensors files; configuration and tokenizer too.

    Tensors that share memory are written once if the model ties them, such as embeddings; where
    the files hold another head than config.json ties, the new config.json says so. OUT appears
    whole or not at all; code copies the model's own Python files too.

    Raises ArtifactError for a folder that is missing, a file or without .bin files, for an OUT that
    is a file or holds something, and naming a file that is missing or no state dict.
    """
    folder, out = Path(folder), Path(out).absolute()
    files = _bin_files(folder)
    _check_out(out)
    own = [path.name for path in folder.glob("*.py")] if code else []
    beside = copyable(folder, (*BESIDE, *own))
    needed = sum(path.stat().st_size for path in (*files, *beside))
    model = _model(folder)
    partial = out.with_name(f".{out.name}.converting")
    try:
        with writing(out, needed):
            make_room(out, needed)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _write(files, partial, model)
            copy_files(beside, partial)
            if model is not None:
                _say_what_is_tied(partial, model)
            for path in (*partial.iterdir(), partial):
                sync(path)
            if out.exists():
                out.rmdir()
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _model(folder: Path) -> PreTrainedModel | None:
    """The model without its weights; None where transformers knows none, so nothing says ties."""
    from quant.checkpoint.skeleton import build_skeleton

    try:
        return build_skeleton(folder, None, {})
    except ArtifactError:
        return None


def _apart(model: PreTrainedModel | None, name: str, other: str) -> bool:
    """Whether the model has two tensors where a file has one: then it needs both."""
    from quant.checkpoint.matching import model_names, parameters_and_buffers

    if model is None:
        return True
    names = {mine for mine, _, _ in model_names(model, (name, other)) if mine}
    return len(names) == 2 and not any(names <= set(tied) for tied in parameters_and_buffers(model))


def _say_what_is_tied(folder: Path, model: PreTrainedModel) -> None:
    """Correct config.json where it ties what the files hold with other values."""
    from quant.checkpoint.matching import model_names, say_untied, untie_as_stored

    with TensorReader(folder, mapped=False) as reader:
        stored = {mine: name for mine, name, _ in model_names(model, reader.names) if mine}
        untied = untie_as_stored(model, stored, lambda name: reader.mapped(stored[name]))
    if not untied:
        return
    config = read_json(folder / "config.json")
    say_untied(config)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write(files: list[Path], out: Path, model: PreTrainedModel | None) -> None:
    placed: dict[str, str] = {}
    total = 0
    for path, name in zip(files, shard_names(STANDARD_STEM, len(files)), strict=True):
        entries = _entries(path, placed, model)
        write_shard(out / name, entries)
        placed |= {entry.name: name for entry in entries}
        total += sum(entry.nbytes for entry in entries)
    if len(files) > 1:
        write_index(out, STANDARD_STEM, placed, total)


def _entries(path: Path, placed: dict[str, str], model: PreTrainedModel | None) -> list[Entry]:
    """The tensors of one file; of those that are one tensor, in the model too, the first."""
    entries: list[Entry] = []
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in _state_dict(path).items():
        if name in placed:
            raise ArtifactError(f"{path} holds {name}, which another file holds too.")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        first = seen.setdefault(key, name)
        if tensor.numel() and first != name and not _apart(model, name, first):
            continue
        make = functools.partial(_alone, tensor)
        entries.append(Entry(name, tuple(tensor.shape), tensor.dtype, make))
    return entries


def _state_dict(path: Path) -> dict[str, Tensor]:
    # Mapped, so that tensors come from the disk as they are written; files from before torch 1.6
    # are no zip archives and cannot be.
    mapped = zipfile.is_zipfile(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(
            f"{path} cannot be read as a state dict of tensors: {reason}. Copy it again from where "
            "it came from."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ArtifactError(
            f"{path} holds no plain state dict (names to tensors); save one with "
            "torch.save(model.state_dict(), ...)."
        )
    return state


def _alone(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file; name a folder that is not there yet.")
    if out.is_dir() and any(out.iterdir()):
        raise ArtifactError(
            f"{out} holds something already ({min(out.iterdir()).name}, ...), which is not "
            "overwritten; name a folder that is not there yet."
        )


def _bin_files(folder: Path) -> list[Path]:
    """The .bin files of a model; ArtifactError for a folder that has none or not all of them."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ArtifactError(
            f"{folder} {what}; name the folder of the model, with config.json and its "
            "pytorch_model*.bin files."
        )
    chosen = weight_files(folder)
    if not chosen.pickled:
        raise ArtifactError(f"{folder} holds safetensors already; use it as it is.")
    return chosen.paths


def main() -> int:
    """The command; 0, or 2 with one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m quant.checkpoint.convert",
        description="Convert a folder of pytorch_model*.bin files to safetensors.",
    )
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument("out", type=Path, help="the new folder")
    options = parser.parse_args()
    try:
        convert(options.folder, options.out)
    except QuantizationError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
