"""What a configuration says of texts: which documents of a file, and what calibrates a solver."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class DocumentsConfig:
    """Which documents of a local file the protocols for documents take: `count` from `start` on."""

    start: int = 0  # documents are counted from 0
    count: int | None = None  # None: to the end of the file
    separator: str = "<|endoftext|>"  # between documents of a text file; JSON lines need none


@dataclass
class CalibConfig:
    """What the solver sees. protocol: the way text becomes windows (harness/data/protocols.py)."""

    name: str = MISSING
    protocol: str = MISSING
    path: str | None = None  # a local file or folder instead of the hub
    sequences: int = 128
    length: int | None = 2048  # tokens a sequence; None: the model's context
    seed: int = 0
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
