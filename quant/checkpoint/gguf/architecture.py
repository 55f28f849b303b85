"""The architectures that are read from GGUF files, by the names that llama.cpp gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quant.checkpoint.gguf.file import GgufFile


@dataclass(frozen=True)
class Architecture:
    """How to read one architecture.

    name     general.architecture in the file.
    config   config.json of a file, without its dtype and tokens.
    tensors  name in the Hugging Face folder -> tensor of the file, of every tensor of the file;
             ArtifactError for one that is missing or has no place.
    """

    name: str
    config: Callable[[GgufFile], dict[str, Any]]
    tensors: Callable[[GgufFile], Mapping[str, Placed]]


@dataclass(frozen=True)
class Placed:
    """A tensor of the file, by its name, and what is done to its values."""

    stored: str
    change: Callable[[Tensor], Tensor] | None = None
