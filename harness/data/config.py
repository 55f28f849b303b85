"""Configuration of texts: the documents of a file, and the calibration."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class DocumentsConfig:
    """The documents that document protocols take from a local file: `count` from `start` on."""

    start: int = 0  # documents are counted from 0
    count: int | None = None  # None: to the end of the file
    separator: str = "<|endoftext|>"  # between documents of a text file; JSON lines need none


@dataclass
class CalibConfig:
    """The calibration text. protocol: how it becomes windows (harness/data/protocols.py)."""

    name: str = MISSING
    protocol: str = MISSING
    path: str | None = None  # a local file or folder instead of the hub
    sequences: int = 128
    length: int | None = 2048  # tokens per sequence; None: the model's context
    seed: int = 0
    chat_template: bool = False  # each document as a user's message in the tokenizer's template
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
