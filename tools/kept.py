"""Where the repository keeps the records of experiments that its documentation quotes."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def folder_of(experiment: str) -> Path:
    """The folder of an experiment's records: methods/equal_bytes has methods-equal-bytes."""
    name = experiment.replace("/", "-").replace("_", "-")
    return REPOSITORY / "results" / "reference" / name
