"""Say what a GGUF file holds: types of tensors, bits per weight, and whether it can be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.checkpoint.gguf.config import not_understood
from quant.checkpoint.gguf.families import architecture
from quant.checkpoint.gguf.file import GgufFile, Kind, read_gguf
from quant.checkpoint.gguf.unpack import check
from quant.errors import ArtifactError


@dataclass(frozen=True)
class Description:
    """What a GGUF file holds.

    architecture     its general.architecture; name its general.name, "" if it has none.
    tokenizer        kind and cut: "gpt2, cut as smollm".
    kinds            tensors, weights and bytes by type, most weights first.
    bits_per_weight  stored bits of all tensors for each weight, scales included.
    file_bytes       size of the file: tensors, metadata and tokenizer.
    not_understood   keys of the architecture that are not read and not known to be harmless.
    refused          why the file cannot be read as a model; None if it can.
    """

    architecture: str
    name: str
    tokenizer: str
    kinds: Mapping[str, Kind]
    bits_per_weight: float
    file_bytes: int
    not_understood: list[str]
    refused: str | None


def describe(path: str | Path) -> Description:
    """Describe a file without reading values; ArtifactError if it is no GGUF file, or damaged."""
    path = Path(path)
    file = read_gguf(path)
    refused, odd = None, []
    try:
        check(file)
        odd = not_understood(file, architecture(file))
    except ArtifactError as error:
        refused = str(error)
    return Description(
        architecture=file.architecture,
        name=str(file.metadata.get("general.name", "")),
        tokenizer=_tokenizer(file),
        kinds=file.kinds(),
        bits_per_weight=file.bits_per_weight,
        file_bytes=path.stat().st_size,
        not_understood=odd,
        refused=refused,
    )


def _tokenizer(file: GgufFile) -> str:
    kind, cut = (file.metadata.get(f"tokenizer.ggml.{each}") for each in ("model", "pre"))
    tokens = len(file.metadata.get("tokenizer.ggml.tokens", ()))
    return f"{kind or 'none'}, cut as {cut or 'not said'}, {tokens:,} tokens"
