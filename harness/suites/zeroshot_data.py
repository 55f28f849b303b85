"""The data sets of lm-eval's tasks: whether they are here, locked, or can be downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.data import hub, lock

Configs = Sequence[Mapping[str, Any]]  # of a task or group: its YAML files


def unavailable(name: str, configs: Configs) -> str | None:
    """Why a task's data set is not available; None if it is, or can be downloaded.

    The hub may be switched off (HF_HUB_OFFLINE) or refuse the data set. Raises LockError for locked
    data that are missing or others.
    """
    from huggingface_hub import constants

    root = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    for wanted in filter(None, map(_wanted, configs)):
        locked = lock.snapshot(hub.need(wanted))
        if locked is not None:
            lock.require_made(locked[0], root)
            continue
        dataset = wanted.repository
        places = (
            root / dataset.replace("/", "___").lower(),
            root / dataset.replace("/", "___"),
            Path(constants.HF_HUB_CACHE) / f"datasets--{dataset.replace('/', '--')}",
        )
        if os.path.isdir(dataset) or any(place.is_dir() for place in places):
            continue
        if hub.offline():
            return missing(name, dataset)
        refused = hub.ask(hub.Wanted(hub.DATASET, dataset)).refused
        if refused is not None:
            return missing(name, dataset, refused)
    return None


def commits(configs: Configs) -> str:
    """The commits of the data of a task in the lock, with commas; "" if they are in none."""
    needed = filter(None, map(_wanted, configs))
    found = (held.revision for each in needed if (held := lock.held(each)))
    return ",".join(dict.fromkeys(found))


@contextmanager
def as_locked(configs: Configs) -> Iterator[None]:
    """Context: the package `datasets` asks nobody for the data of a task, if they are locked."""
    found = [_wanted(config) for config in configs]
    if not found or any(each is None or lock.held(each) is None for each in found):
        yield
        return
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def dataset_of(config: Mapping[str, Any]) -> str:
    """ "OWNER/NAME@COMMIT PART" of a task's data, COMMIT "main" without a lock; "" if local."""
    wanted = _wanted(config)
    if wanted is None:
        return ""
    held = lock.held(wanted)
    commit = held.revision if held else "main"
    return f"{wanted.repository}@{commit} {wanted.part or ''}".strip()


def _wanted(config: Mapping[str, Any]) -> hub.Wanted | None:
    """The data set of a task; None for one of local files."""
    dataset, part = config.get("dataset_path"), config.get("dataset_name")
    if not isinstance(dataset, str) or dataset in ("json", "csv", "text", "parquet"):
        return None
    return hub.Wanted(hub.DATASET, dataset, part=part)


def missing(name: str, dataset: str, refused: tuple[str, str] | None = None) -> str:
    """Return the message for a task whose data set is not available.

    refused  (reason, next step) if the hub refused it.
    """
    why, step = "", "check the network and, if it is gated, your access to it"
    if hub.offline():
        step = "unset HF_HUB_OFFLINE on a machine with a network"
    if refused is not None:
        why, step = f", because {refused[0]}", refused[1]
    return (
        f"the data of task {name} (dataset {dataset}) are not on this machine and could not be "
        f"downloaded{why}; {step}, or give a jsonl file: suite.zeroshot.files.{name}=<file>"
    )
