"""Download a file into the hub's cache, verified; an interrupted download goes on where it was.

The hub's client (2.4) removes what it has of a file when it is stopped. Here the part stays beside
the finished files, and the client is given the whole file.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.data.hub import Wanted
from harness.data.lock import LockedFile
from harness.fetching.offers import FetchError, Offer, OfferedFile, explained
from harness.records.hashes import file_sha256
from quant.memory.plan import size

PART = ".bitsweep-part"
_CHUNK = 2**22


def missing_bytes(offers: Iterable[Offer]) -> int:
    """Bytes to download for all offers; what is cached, whole or in part, is subtracted."""
    left: dict[Path, int] = {}
    for offer in offers:
        for file in offer.files:
            blob = _blob(offer.wanted, file)
            part = _part(blob)
            have = part.stat().st_size if part.is_file() else 0
            left[blob] = 0 if blob.is_file() else max(0, file.bytes - have)
    return sum(left.values())


def require_room(offers: Sequence[Offer]) -> None:
    """Raise FetchError if the disk of the hub's cache is too small, before the first download."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    # The package `datasets` writes its own copy of the data of tasks.
    copies = sum(offer.bytes for offer in offers if offer.builder is not None)
    needed, free = missing_bytes(offers) + copies, shutil.disk_usage(existing).free
    if needed > free:
        raise FetchError(
            f"{place} needs {size(needed)} more and its disk has {size(free)} free: make room, or "
            "set HF_HOME to a folder on another disk."
        )


def bring(offer: Offer) -> tuple[LockedFile, ...]:
    """Download what is not cached of an offer, verify all of it, and return its files.

    Raises FetchError for a file that is not what the hub says, or that does not come.
    """
    return tuple(_bring(offer, file) for file in offer.files)


def _bring(offer: Offer, file: OfferedFile) -> LockedFile:
    from huggingface_hub import hf_hub_download

    wanted, blob = offer.wanted, _blob(offer.wanted, file)
    what = f"{file.name} of the {wanted.kind} {wanted.repository}"
    with explained(wanted):
        if not blob.is_file():
            _download(offer, file, blob, what)
        elif not is_offered(blob, file):
            raise FetchError(
                f"{what} in the cache is not what the hub says: it was changed or damaged; delete "
                f"{blob} and try again."
            )
        # It finds the whole file, and names it in the snapshot of the commit.
        found = hf_hub_download(
            wanted.repository, file.name, repo_type=wanted.kind, revision=offer.revision
        )
    return LockedFile(file.name, file.bytes, file_sha256(Path(found).resolve()))


def _download(offer: Offer, file: OfferedFile, blob: Path, what: str) -> None:
    """Download to a part beside the blob, or continue it, and rename it once it is verified."""
    from huggingface_hub import get_token, hf_hub_url
    from huggingface_hub.file_download import http_get

    part, wanted, token = _part(blob), offer.wanted, get_token()
    url = hf_hub_url(wanted.repository, file.name, repo_type=wanted.kind, revision=offer.revision)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as stream:
        if stream.tell() > file.bytes:
            stream.truncate(0)
        http_get(
            url,
            stream,
            resume_size=stream.tell(),
            headers={"authorization": f"Bearer {token}"} if token else {},
            expected_size=file.bytes,
            displayed_filename=file.name,
        )
    if not is_offered(part, file):
        part.unlink()
        raise FetchError(
            f"{what} is not what the hub says (size or hash differ): it was damaged on its way, or "
            "the hub is wrong; try again."
        )
    part.rename(blob)


def is_offered(path: Path, file: OfferedFile) -> bool:
    """Whether a file has the size and the hash that the hub says."""
    if path.stat().st_size != file.bytes:
        return False
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
    if not file.sha256:
        digest.update(f"blob {file.bytes}\0".encode())  # as git hashes a file
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == file.etag


def _blob(wanted: Wanted, file: OfferedFile) -> Path:
    """The place of a file's content in the hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=wanted.repository, repo_type=wanted.kind)
    return Path(constants.HF_HUB_CACHE) / folder / "blobs" / file.etag


def _part(blob: Path) -> Path:
    return blob.with_name(blob.name + PART)
