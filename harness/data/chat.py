"""Chat templates of tokenizers, read from their files without importing transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.data.texts import ProtocolError
from harness.errors import ConfigError

DEFAULT = "default"  # of several templates by name


def template_of(folder: Path) -> str | None:
    """The chat template of the tokenizer in a folder, as transformers reads it; None without one.

    A file of its own (chat_template.jinja) counts before the key of tokenizer_config.json.
    """
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    found: Any = None
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            read = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found = found or (read.get("chat_template") if isinstance(read, dict) else None)
    if isinstance(found, list):  # several, by name
        found = {each.get("name"): each.get("template") for each in found}.get(DEFAULT)
    return found if isinstance(found, str) else None


def template_hash(folder: Path) -> str:
    """sha256 of the chat template of a folder; of "" without one."""
    return hashlib.sha256((template_of(folder) or "").encode()).hexdigest()


def as_message(tokenizer: Any, text: str) -> str:
    """A text as the one message of a user, in the tokenizer's chat template."""
    message = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(message, tokenize=False))


def require_documents(protocol: str, of_documents: bool) -> None:
    """Raise ProtocolError for a protocol whose windows are not made of single documents."""
    if not of_documents:
        raise ProtocolError(
            f"calib.chat_template=true puts documents into messages, and the windows of {protocol} "
            "are not made of single documents: use calib=documents, calib=c4 or calib=embedded, or "
            "leave it out"
        )


def require_template(folder: Path | None, asked: str, model: str) -> None:
    """Raise ConfigError if a tokenizer has no chat template; folder None: it is not here yet.

    asked  the setting that needs it, for the message.
    """
    if folder is not None and template_of(folder) is None:
        raise ConfigError(
            f"{asked} needs a chat template, and the tokenizer of model={model} has none: leave it "
            "out, or use the instruction-tuned version of the model."
        )
