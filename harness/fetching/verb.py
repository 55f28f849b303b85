"""The verb: what a plan needs is asked for, fits the disk, is brought, verified and locked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cell.cells import PendingCell
from harness.cell.resolve import resolve
from harness.config.schema import Cell
from harness.data import hub, lock
from harness.data.hub import Wanted
from harness.data.lock import Lock, Locked, LockedFile
from harness.fetching.download import bring, missing_bytes, require_room
from harness.fetching.offers import FetchError, Offer, explained, find_offer
from harness.records.hashes import file_sha256
from harness.records.store import disk_errors, write_atomically
from harness.run.launch import resolve_all
from quant.memory.plan import size

if TYPE_CHECKING:
    from rich.console import Console

OK, FAILED = 0, 1


def fetch(cells: Sequence[Cell], update: bool = False) -> int:
    """Bring all that the cells need and write the lock of their results folder.

    update  take what the hub has now, instead of the commits of an earlier lock.

    What cannot be brought is named, and the rest is brought: the exit status is 1. Raises
    BitsweepError for cells that cannot run, and before the first download for a disk that is too
    small.
    """
    if hub.offline():
        raise FetchError("HF_HUB_OFFLINE is set, so nothing can be brought: unset it.")
    file = Path(cells[0].config.paths.results) / lock.NAME
    earlier = lock.read(file)
    screen = _console()
    with lock.ignored():
        _make_models(cells)
        needed = hub.needed()
        code = {cell.config.model.id for cell in cells if cell.config.model.trust_remote_code}
        offers, troubles = _offers(needed, None if update else earlier, code)
        require_room(offers)
        if offers or not troubles:
            screen.print(_said(offers), highlight=False, markup=False, soft_wrap=True)
        entries, more = _brought(offers)
    kept = {} if earlier is None else dict(earlier.entries)
    moved = [text for wanted, new in entries.items() if (text := _moved(kept.get(wanted), new))]
    done = [_line(entry) for entry in entries.values()]
    if entries or not (troubles or more):
        with disk_errors(file):
            write_atomically(file, Lock(file, {**kept, **entries}).text())
        done.append(f"locked in {file}: runs with these results read it, offline")
    for line in (*moved, *done):
        screen.print(line, highlight=False, markup=False, soft_wrap=True)
    for trouble in (*troubles, *more):
        print(f"bitsweep: {trouble}", file=sys.stderr)
    if troubles or more:
        return FAILED
    # Now as a run does, from the lock: windows that do not fit, say.
    lacking = [reason for cell in resolve_all(cells) for reason in cell.absent.values()]
    for reason in dict.fromkeys(lacking):
        print(f"bitsweep: {reason}", file=sys.stderr)
    return OK


def _make_models(cells: Sequence[Cell]) -> None:
    """Resolve all cells, which notes what they need, and make models that are not of the hub."""
    for cell, found in zip(cells, resolve_all(cells), strict=True):
        if isinstance(found, PendingCell) and found.model.wanted is not None:
            resolve(cell.config, cell.folder, download=True)


def _offers(
    needed: Sequence[Wanted], earlier: Lock | None, code: set[str | None]
) -> tuple[list[Offer], list[FetchError]]:
    offers, troubles = [], []
    for wanted in needed:
        locked = None if earlier is None else earlier.entries.get(wanted)
        try:
            offers.append(find_offer(wanted, locked, wanted.repository in code))
        except FetchError as error:
            troubles.append(error)
    return offers, troubles


def _brought(offers: Sequence[Offer]) -> tuple[dict[Wanted, Locked], list[FetchError]]:
    """Bring every offer; those that fail are named, and the others go on."""
    from huggingface_hub import utils

    if not sys.stderr.isatty():
        utils.disable_progress_bars()  # type: ignore[attr-defined]
    entries: dict[Wanted, Locked] = {}
    troubles = []
    for offer in offers:
        try:
            files = bring(offer)
            made = () if offer.builder is None else _made(offer)
        except FetchError as error:
            troubles.append(error)
            continue
        entries[offer.wanted] = Locked(offer.wanted, offer.revision, files, made)
    return entries, troubles


def _made(offer: Offer) -> tuple[LockedFile, ...]:
    """Let the package `datasets` make its files of the data, which it reads offline."""
    from datasets import config

    with explained(offer.wanted):
        offer.builder.download_and_prepare()
    root, place = Path(config.HF_DATASETS_CACHE), Path(offer.builder.cache_dir)
    return tuple(
        LockedFile(path.relative_to(root).as_posix(), path.stat().st_size, file_sha256(path))
        for path in sorted(place.rglob("*.arrow"))
    )


def _said(offers: Sequence[Offer]) -> str:
    left = missing_bytes(offers)
    total = sum(offer.bytes for offer in offers)
    if not offers:
        return "nothing of the hub is needed"
    return f"{len(offers)} needed, {size(total)}: {size(left)} to be downloaded"


def _line(entry: Locked) -> str:
    files = "1 file" if len(entry.files) == 1 else f"{len(entry.files)} files"
    name = Wanted(entry.wanted.kind, entry.wanted.repository, None, entry.wanted.file,
                  entry.wanted.part).name  # fmt: skip
    return f"verified: {name}, commit {entry.revision[:12]}, {files}, {size(entry.bytes)}"


def _moved(before: Locked | None, now: Locked) -> str | None:
    if before is None or before.revision == now.revision:
        return None
    return (
        f"moved: {now.wanted.kind} {now.wanted.repository} from commit {before.revision[:12]} to "
        f"{now.revision[:12]}; figures of the two may differ"
    )


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, emoji=False)
