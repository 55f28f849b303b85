"""Make a Hugging Face folder of a GGUF file: config.json, safetensors in float32, tokenizer."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.checkpoint.folder import replace_folder
from quant.checkpoint.gguf.architecture import Placed
from quant.checkpoint.gguf.config import config as make_config
from quant.checkpoint.gguf.config import not_understood
from quant.checkpoint.gguf.families import architecture
from quant.checkpoint.gguf.file import GgufFile, read_gguf
from quant.checkpoint.gguf.place import place
from quant.checkpoint.gguf.tokenizer import token_ids, tokenizer_files
from quant.checkpoint.tensors import Entry, write_tensors
from quant.errors import ArtifactError

# Raise it when the same file gives another folder.
VERSION = 2
# In the folder: what its weights were in the file.
ORIGIN = "gguf.json"
SHARD_BYTES = 4 * 2**30


def unpack(
    path: str | Path,
    out: str | Path,
    *,
    sha256: str | None = None,
    done: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Write the model of a GGUF file to the folder `out`, which appears complete or not at all.

    Weights are the dequantized values, float32: multiples of float16 scales are not exact in
    float16. gguf.json in the folder says what the file held; `sha256` of the file is kept there.
    done(tensors, total) is called after every tensor.

    Raises ArtifactError, before anything is written, for a file that cannot be read, an
    architecture or tokenizer that is not known, tensors that are missing, unexpected or of another
    shape than the metadata says, and a disk that is too small; for values that are not finite, the
    folder is removed again.
    """
    file, out = read_gguf(Path(path)), Path(out)
    config, placed, texts = _read(file)
    entries = [_entry(file, name, each) for name, each in placed.items()]
    total = len(entries)
    entries = [_counted(entry, index, total, done) for index, entry in enumerate(entries, 1)]
    origin = {
        "version": VERSION,
        "file": file.path.name,
        "sha256": sha256,
        "architecture": file.architecture,
        "weights": file.weights_by_kind(),
        "bits_per_weight": round(file.bits_per_weight, 4),
        "kinds": {kind: asdict(each) for kind, each in file.kinds().items()},
        "tensor_bytes": file.tensor_bytes,
        "file_bytes": file.path.stat().st_size,
        "not_understood": not_understood(file, architecture(file)),
    }
    texts = {"config.json": config, **texts, ORIGIN: origin}
    written = {name: json.dumps(text, indent=1, ensure_ascii=False) for name, text in texts.items()}
    needed = sum(entry.nbytes for entry in entries) + sum(4 * len(t) for t in written.values())
    with replace_folder(out, needed) as partial:
        write_tensors(partial, entries, SHARD_BYTES)
        for name, text in written.items():
            (partial / name).write_text(text + "\n", encoding="utf-8")
    return out


def check(path: str | Path | GgufFile) -> GgufFile:
    """The parsed file; ArtifactError if `unpack` would refuse it. Reads no values."""
    file = path if isinstance(path, GgufFile) else read_gguf(Path(path))
    _read(file)
    return file


def _read(file: GgufFile) -> tuple[dict[str, Any], dict[str, Placed], dict[str, dict[str, Any]]]:
    """config.json, tensors by name, tokenizer files by name."""
    how = architecture(file)
    config = make_config(file, how)
    placed = place(file, how, config)
    for tensor in file.tensors.values():
        tensor.require_readable()
    texts = tokenizer_files(file)
    return {**config, **token_ids(file), "dtype": "float32"}, placed, texts


def _entry(file: GgufFile, name: str, placed: Placed) -> Entry:
    stored = file.tensors[placed.stored]

    def make() -> Tensor:
        values = stored.values(placed.rows)
        if not math.isfinite(values.sum()):
            raise ArtifactError(
                f"{file.path} has values in {stored.name} that are no finite numbers: it is "
                "damaged; download it again."
            )
        return values if placed.change is None else placed.change(values)

    return Entry(name, placed.shape, torch.float32, make)


def _counted(entry: Entry, index: int, total: int, done: Callable[[int, int], None]) -> Entry:
    @functools.wraps(entry.make)
    def make() -> Tensor:
        values = entry.make()
        done(index, total)
        return values

    return Entry(entry.name, entry.shape, entry.dtype, make)
