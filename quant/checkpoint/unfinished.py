"""What an interrupted quantization left in its working folder, for those who watch the next one.

The folder is that of quant.checkpoint.partial; it is only read here, and nothing is checked: the
run that continues decides how many of these blocks it takes over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from quant.checkpoint.folder import working_folder
from quant.checkpoint.partial import note_file

# What a run that continues does again: with calibration it runs the finished blocks once more
# (quant.calibrate.stream).
_DONE_AGAIN = ("structure", "capture", "read", "forward", "resume")


@dataclass(frozen=True)
class FinishedBlock:
    """One block that is there: its layers, and the seconds of its work that need no repeating."""

    layers: int
    seconds: float


def finished_blocks(target: str | Path) -> list[FinishedBlock]:
    """The blocks, from the first on, that earlier runs noted as finished for the artifact."""
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
