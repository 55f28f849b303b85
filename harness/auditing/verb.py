"""The verb `bitsweep audit`: one cell with the suite audit, and what its record says in full."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.auditing.findings import by_kind, claim_of, contradicting, layers_of
from harness.auditing.page import page
from harness.cell.cells import ResolvedCell
from harness.config.kept import cells_of
from harness.config.schema import Cell, ModelConfig
from harness.errors import ConfigError
from harness.models import gguf
from harness.records.store import file_name, write_atomically
from harness.report.render import to_csv, to_rich
from harness.run.launch import fetch_all, run_cells
from harness.run.screen import open_console

FAILED, CONTRADICTED = 1, 3
SUITE = "audit"


@dataclass(frozen=True)
class Request:
    """What is audited, against what; the arguments of the verb by their names.

    checkpoint  folder of the quantized model, or a GGUF file.
    base      folder or GGUF file of the full-precision model, or a name of conf/model.
    calib     name of conf/calib; text is the file of one that takes a file.
    evaluate  a text on which the whole model is compared too; evaluate_text is its file.
    results   folder of records and page.
    """

    checkpoint: Path
    base: str
    calib: str
    text: Path | None
    sequences: int | None
    length: int | None
    evaluate: str | None
    evaluate_text: Path | None
    results: Path


def audit(asked: Request) -> int:
    """Audit a checkpoint, print its layers by kind, write page and table.

    Returns the exit status: 0; 1 if the audit failed; 3 if layers contradict what the files claim.
    Raises BitsweepError for a request that is impossible.
    """
    if not asked.checkpoint.exists():
        raise ConfigError(
            f"there is no checkpoint {asked.checkpoint.absolute()}: name the folder of a quantized "
            f"model, or a {gguf.SUFFIX} file."
        )
    file = asked.checkpoint.suffix == gguf.SUFFIX and asked.checkpoint.is_file()
    if file and not _types(asked.checkpoint):
        raise ConfigError(
            f"{asked.checkpoint} is not quantized: all of its weights are of "
            f"{', '.join(gguf.FLOATS)}. Name a file of few bits."
        )
    cell = _cell(asked)
    (found,) = fetch_all([cell])  # the folder of a GGUF file is made, unless it is refused
    assert isinstance(found, ResolvedCell)  # it is here, or it is an error
    if not found.quantized and not file:
        raise ConfigError(
            f"{asked.checkpoint} is not quantized: its config.json has no quantization_config. "
            "Name the folder of a quantized model."
        )
    ran = run_cells([cell])
    record = found.find(SUITE)
    if record is None or record.status != "ok":
        return ran.status or FAILED
    path = found.store.record_path(found.identity, found.keys.cell, SUITE, record.key)
    layers = layers_of(record, path.parent)
    notes = claim_of(record)
    claim = notes["claim"]
    table = by_kind(layers, record.cell.model)
    place = asked.results / "reports" / f"audit-{file_name(record.cell.model)}"
    write_atomically(place / "audit.html", page(record, layers))
    write_atomically(place / "audit.csv", to_csv(table))
    screen = open_console()
    screen.print(to_rich(table, screen.width))
    if "said" in notes:
        screen.print(f"{notes['said']}.", highlight=False, markup=False, soft_wrap=True)
    against = contradicting(layers, claim)
    if against:
        first = ", ".join(layer["name"] for layer in against[:3])
        more = f" and {len(against) - 3} more" if len(against) > 3 else ""
        print(
            f"bitsweep: the files of {asked.checkpoint} name {claim}, but {len(against)} of "
            f"{len(layers)} layers are plain rounding: {first}{more}.",
            file=sys.stderr,
        )
    screen.print(f"\npage: {place / 'audit.html'}", highlight=False, markup=False, soft_wrap=True)
    return CONTRADICTED if against else ran.status


def _cell(asked: Request) -> Cell:
    words = ["model=local", "method=none", "scheme=w16", f"suite={SUITE}", f"calib={asked.calib}"]
    (cell,) = cells_of(words, False)
    config = cell.config
    config.model.path = str(asked.checkpoint)
    config.model.name = asked.checkpoint.absolute().name
    config.paths.results = str(asked.results)
    config.name = f"audit-{config.model.name}"
    if asked.text is not None:
        config.calib.path = str(asked.text)
    if asked.sequences is not None:
        config.calib.sequences = asked.sequences
    if asked.length is not None:
        config.calib.length = asked.length
    settings: dict[str, Any] = {
        **config.suite[SUITE],
        "base": str(_base(asked.base)),
        "calib": dataclasses.asdict(config.calib),
    }
    if asked.evaluate is not None:
        file = asked.evaluate_text
        settings["protocols"] = [asked.evaluate]
        settings["paths"] = {} if file is None else {asked.evaluate: str(file)}
    return replace(cell, config=replace(config, suite={SUITE: settings}))


def _base(given: str) -> Path:
    """The folder of the base: itself, or that of a name in conf/model."""
    folder = Path(given).expanduser()
    if folder.is_dir():
        return folder
    if folder.suffix == gguf.SUFFIX and folder.is_file():
        return _of_file(folder)
    if given.startswith((".", "/", "~")):
        raise ConfigError(
            f"--base {given} is not a folder or {gguf.SUFFIX} file: give one with config.json and "
            "weights."
        )
    from harness.models.model import StoredModel, find_model

    (cell,) = cells_of([f"model={given}"], False)
    found = find_model(cell.config.model, download=True)
    if not isinstance(found, StoredModel):
        raise ConfigError(
            f"--base {given} has no full-precision weights: name the model that the checkpoint was "
            "made from, or its folder."
        )
    return found.folder


def _of_file(path: Path) -> Path:
    """The folder that is made of a GGUF file, once; ConfigError for one of few bits."""
    rounded = _types(path)
    if rounded:
        raise ConfigError(
            f"--base {path} is quantized itself (it has {', '.join(rounded)}): name a file of "
            f"{', '.join(gguf.FLOATS[:3])}, or the folder of the full-precision model."
        )
    config = ModelConfig(name=path.name, source="local", path=str(path))
    made = gguf.local_folder(config, path, make=True)
    assert made is not None
    return made


def _types(path: Path) -> list[str]:
    """The types of few bits in a GGUF file; ArtifactError for a file that cannot be read."""
    from quant.checkpoint.gguf.file import read_gguf

    return gguf.rounded({"weights": read_gguf(path).weights_by_kind()})
