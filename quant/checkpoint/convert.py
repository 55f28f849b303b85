"""Convert a folder of pytorch_model*.bin files to safetensors, which can be read tensor by tensor.

  python -m quant.checkpoint.convert FOLDER OUT

A .bin file is a pickle and can only be read completely. Each .bin file becomes one safetensors
file, so that only one is in memory at a time. Names, dtypes and values do not change.
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

# Files that are copied too: no other weights, no code, nothing that is not part of the model.
BESIDE = ("config.json", "generation_config.json", *QUANTIZATION_FILES, *TOKENIZER_FILES)


def convert(folder: str | Path, out: str | Path, *, code: bool = False) -> Path:
    """Write the model of `folder` to `out` as safetensors files, with configuration and tokenizer.

    Tensors that share memory are written once if the model ties them (embeddings). If the files
    have another head than the one that config.json ties, the new config.json unties it. `out`
    appears complete or not at all. code=True copies the model's own Python files too.

    Raises ArtifactError if `folder` is missing, a file or without .bin files, if `out` is a file or
    not empty, and for a .bin file that is missing or not a state dict.
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
    """Return the model without weights; None if transformers does not know it (no known ties)."""
    from quant.checkpoint.skeleton import build_skeleton

    try:
        return build_skeleton(folder, None, {})
    except ArtifactError:
        return None


def _apart(model: PreTrainedModel | None, name: str, other: str) -> bool:
    """Whether the model has two tensors where a file has one, so that both must be written."""
    from quant.checkpoint.matching import model_names, parameters_and_buffers

    if model is None:
        return True
    names = {mine for mine, _, _ in model_names(model, (name, other)) if mine}
    return len(names) == 2 and not any(names <= set(tied) for tied in parameters_and_buffers(model))


def _say_what_is_tied(folder: Path, model: PreTrainedModel) -> None:
    """Correct config.json if it ties tensors that have different values in the files."""
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
    """Return the tensors of one file; of those that share memory and are tied, only the first."""
    entries: list[Entry] = []
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in _state_dict(path).items():
        if name in placed:
            raise ArtifactError(f"{path} contains {name}, which another file contains too.")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        first = seen.setdefault(key, name)
        if tensor.numel() and first != name and not _apart(model, name, first):
            continue
        make = functools.partial(_alone, tensor)
        entries.append(Entry(name, tuple(tensor.shape), tensor.dtype, make))
    return entries


def _state_dict(path: Path) -> dict[str, Tensor]:
    # Memory-mapped, so that tensors are read while they are written; files from before torch 1.6
    # are not zip archives and cannot be mapped.
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
            f"{path} is not a plain state dict (names to tensors); save one with "
            "torch.save(model.state_dict(), ...)."
        )
    return state


def _alone(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file; name a folder that does not exist yet.")
    if out.is_dir() and any(out.iterdir()):
        raise ArtifactError(
            f"{out} is not empty ({min(out.iterdir()).name}, ...) and is not overwritten; name a "
            "folder that does not exist yet."
        )


def _bin_files(folder: Path) -> list[Path]:
    """Return the .bin files of a model; ArtifactError if there are none or some are missing."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ArtifactError(
            f"{folder} {what}; name the folder of the model, with config.json and its "
            "pytorch_model*.bin files."
        )
    chosen = weight_files(folder)
    if not chosen.pickled:
        raise ArtifactError(f"{folder} already has safetensors files; use it unchanged.")
    return chosen.paths


def main() -> int:
    """Run the command; return 0, or 2 after printing one sentence."""
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
