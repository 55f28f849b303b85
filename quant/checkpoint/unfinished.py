"""Read the progress of an interrupted quantization from its working folder.

The folder is that of quant.checkpoint.partial. Nothing is written or verified here; the run that
resumes decides how many of these blocks it uses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from quant.checkpoint.folder import working_folder
from quant.checkpoint.partial import note_file

# Stages that a resumed run repeats: with calibration it runs the finished blocks again
# (quant.calibrate.stream).
_DONE_AGAIN = ("structure", "capture", "read", "forward", "resume")


@dataclass(frozen=True)
class FinishedBlock:
    """One finished block: its layers, and the seconds of work that are not repeated on resuming."""

    layers: int
    seconds: float


def finished_blocks(target: str | Path) -> list[FinishedBlock]:
    """Return the consecutive blocks, from block 0 on, that earlier runs finished for `target`."""
    folder = working_folder(Path(target))
    found: list[FinishedBlock] = []
    while True:
        try:
            note = json.loads(note_file(folder, len(found)).read_text(encoding="utf-8"))
            again = _DONE_AGAIN if note["layers"][0]["tokens"] else ()
            kept = [cost["seconds"] for cost in note["stages"] if cost["name"] not in again]
            found.append(FinishedBlock(len(note["layers"]), sum(kept)))
        except (OSError, ValueError, LookupError, TypeError):
            return found
