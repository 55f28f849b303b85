"""What the hub offers for a need: the commit, and its files with sizes and hashes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

from harness.data import hub
from harness.data.hub import DATASET, Wanted
from harness.data.lock import Locked
from harness.errors import BitsweepError
from harness.models.hub import patterns
from harness.records.hashes import SHA256_DIGITS
from quant.checkpoint.folder import OF_SPACE

_HUB = "hf://datasets/"


class FetchError(BitsweepError):
    """Something that a plan needs cannot be brought."""


@dataclass(frozen=True)
class OfferedFile:
    """A file as the hub describes it.

    etag  its sha256 if it is stored as LFS; else the id of its git blob.
    """

    name: str
    bytes: int
    etag: str

    @property
    def sha256(self) -> str | None:
        """The sha256 that the hub says; None for a small file in git."""
        return self.etag if len(self.etag) == SHA256_DIGITS else None


@dataclass(frozen=True)
class Offer:
    """What is to be brought for a need.

    builder  of the package `datasets`, for the data of a task; None for others.
    """

    wanted: Wanted
    revision: str
    files: tuple[OfferedFile, ...]
    builder: Any = None

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def find_offer(wanted: Wanted, locked: Locked | None, code: bool = False) -> Offer:
    """Ask the hub for a need, at the commit of an earlier lock if there is one.

    code  the model's own Python files are needed too.

    Raises FetchError with the next step: no access, no such revision, no answer, a dataset that is
    a script, or other files at the commit of the lock.
    """
    asked = wanted if locked is None else replace(wanted, revision=locked.revision)
    with explained(asked, locked is not None):
        offer = _offer(asked, code)
    if locked is not None:
        _require_locked(offer, locked)
    return replace(offer, wanted=wanted)


@contextmanager
def explained(wanted: Wanted, locked: bool = False) -> Iterator[None]:
    """Context: turn errors of the hub's client into FetchErrors."""
    try:
        yield
    except BitsweepError:
        raise
    except Exception as error:
        why, step = _cause(error, wanted, locked)
        raise FetchError(f"{wanted.name} could not be brought, because {why}; {step}.") from error


def _cause(error: Exception, wanted: Wanted, locked: bool) -> tuple[str, str]:
    """Why something does not come, and the next step."""
    from huggingface_hub.errors import RevisionNotFoundError

    if isinstance(error, OSError) and error.errno in OF_SPACE:
        return "the disk is full", "make room and try again: what came is kept"
    found = hub.explain(error, wanted)
    if found.refused is None:
        return str(found.silent), "try again: what came is kept"
    if locked and isinstance(error, RevisionNotFoundError):
        return (
            f"the hub has no more the commit {wanted.revision} that the lock names",
            "`bitsweep fetch --update` with the same arguments takes what is there now",
        )
    return found.refused


def _offer(wanted: Wanted, code: bool) -> Offer:
    if wanted.kind == DATASET and wanted.file is None:
        return _of_task(wanted)
    if wanted.file is not None:
        commit, file = _described(wanted, wanted.file, wanted.revision)
        return Offer(wanted, commit, (file,))
    from huggingface_hub import HfApi

    info = HfApi().model_info(wanted.repository, revision=wanted.revision)
    commit = str(info.sha)
    names = [each.rfilename for each in info.siblings or []]
    kept = patterns(wanted.repository, commit, code)
    chosen = sorted(name for name in names if any(fnmatch(name, each) for each in kept))
    files = tuple(_described(wanted, name, commit)[1] for name in chosen)
    return Offer(wanted, commit, files)


def _described(wanted: Wanted, name: str, revision: str | None) -> tuple[str, OfferedFile]:
    """The commit of a file, and what the hub says of it."""
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

    url = hf_hub_url(wanted.repository, name, repo_type=wanted.kind, revision=revision)
    found = get_hf_file_metadata(url, token=get_token(), timeout=hub.TIMEOUT)
    if found.size is None or found.etag is None or found.commit_hash is None:
        raise FetchError(
            f"the hub does not say size and hash of {name} of the {wanted.kind} "
            f"{wanted.repository}, so it cannot be verified: give a local copy."
        )
    return found.commit_hash, OfferedFile(name, found.size, found.etag)


def _of_task(wanted: Wanted) -> Offer:
    """The files that the package `datasets` reads for a task."""
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    commit = str(HfApi().dataset_info(wanted.repository, revision=wanted.revision).sha)
    try:
        builder = load_dataset_builder(wanted.repository, wanted.part, revision=commit)
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise FetchError(
            f"the dataset {wanted.repository} is a script, which is not run: give the documents of "
            "its task as a jsonl file, suite.zeroshot.files.TASK=FILE."
        ) from error
    data = builder.config.data_files or {}
    places = dict.fromkeys(str(place) for group in data.values() for place in group)
    prefix = f"{_HUB}{wanted.repository}@{commit}/"
    outside = [place for place in places if not place.startswith(prefix)]
    if outside:
        raise FetchError(
            f"the dataset {wanted.repository} reads {outside[0]}, which is not one of its files: "
            "give the documents of its task as a jsonl file, suite.zeroshot.files.TASK=FILE."
        )
    names = sorted(place.removeprefix(prefix) for place in places)
    files = tuple(_described(wanted, name, commit)[1] for name in names)
    return Offer(wanted, commit, files, builder)


def _require_locked(offer: Offer, locked: Locked) -> None:
    """Raise FetchError if the commit of the lock has other files now."""
    known = {file.name: file for file in locked.files}
    for file in offer.files:
        was = known.get(file.name)
        if was is not None and file.sha256 not in (None, was.sha256):
            raise FetchError(
                f"{file.name} of the {offer.wanted.kind} {offer.wanted.repository} is another file "
                f"than the lock says (sha256 {file.etag[:12]}..., not {was.sha256[:12]}...): the "
                "hub changed it; `bitsweep fetch --update` with the same arguments accepts it."
            )
