"""The part of an export that makes one file of a model, with its card beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quant.checkpoint.card import Content, Count, Origin, card, is_sealed
from quant.checkpoint.folder import replace_file
from quant.checkpoint.one_file import FileFormat, WholeModel
from quant.errors import ArtifactError

_CARD = ".README.md"


def card_of_file(target: Path) -> Path:
    """Return the path of the card beside a file: model.gguf has model.README.md."""
    return target.with_name(f"{target.stem}{_CARD}")


def refuse_target(format: FileFormat, target: Path, overwrite: bool) -> None:
    """Raise ArtifactError for a target that is no name of such a file, or must not be replaced."""
    if target.suffix != format.suffix:
        raise ArtifactError(
            f"{target}: {format.title} is one file, whose name ends in {format.suffix}; write to "
            f"{target.name}{format.suffix}."
        )
    beside = card_of_file(target)
    if target.exists() and (not target.is_file() or not format.ours(target)):
        raise ArtifactError(
            f"{target} exists and was not written by Bitsweep, so it is not replaced; choose "
            "another name or remove it."
        )
    if beside.exists() and not is_sealed(beside.read_text(encoding="utf-8", errors="replace")):
        raise ArtifactError(
            f"{beside} exists and is no model card as Bitsweep wrote it, so it is not replaced; "
            "choose another name or move it away."
        )
    if not overwrite and target.exists():
        raise ArtifactError(
            f"{target} was already written by Bitsweep and is not overwritten by default: choose "
            "another name, or add --overwrite (in Python overwrite=True) to replace it."
        )


def write_file(
    format: FileFormat,
    target: Path,
    model: WholeModel,
    architecture: str,
    origin: Origin,
    on_note: Callable[[str], None] | None,
) -> tuple[str, ...]:
    """Write a model to the file `target`, whole or not at all; return the notes of its readers.

    Raises ArtifactError, before anything is written, for what the file cannot hold.
    """
    for layer in model.layers.values():
        reason = format.refuses(layer.scheme, layer.stored)
        if reason is not None:
            raise ArtifactError(f"{layer.stored.name} {reason}")
    planned = format.plan(model)
    for note in planned.notes if on_note is not None else ():
        assert on_note is not None
        on_note(note)
    stored = [layer.stored for layer in model.layers.values()]
    text = card(
        Content(
            architecture=architecture,
            format=format,
            scheme=model.scheme,
            layers=len(stored),
            weights=sum(each.outputs * each.inputs for each in stored),
            count=Count(planned.packed, planned.others, planned.other_bytes),
            method=model.method,
            producer=model.producer,
            notes=planned.notes,
        ),
        origin,
    )
    with replace_file(target, planned.nbytes) as partial:
        planned.write(partial)
    with replace_file(card_of_file(target), len(text)) as partial:
        partial.write_text(text, encoding="utf-8")
    return planned.notes
