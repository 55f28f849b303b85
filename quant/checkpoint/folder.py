"""Write folders atomically, with a checksum for every file in them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from quant.errors import ArtifactError

MANIFEST = "artifact.json"
# A text for people, which its owner may change: the manifest does not list it.
CARD = "README.md"
MANIFEST_VERSION = 1
_CHUNK = 1 << 20
_WORKING = (".", ".partial")
# Errors that more free space may solve.
OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def working_folder(target: Path) -> Path:
    """Return the folder where the artifact `target` is made, beside the artifact."""
    target = target.absolute()
    return target.with_name(f"{_WORKING[0]}{target.name}{_WORKING[1]}")


def made_in(working: Path) -> Path:
    """Return the path of the artifact that is made in a working folder."""
    return working.with_name(working.name.removeprefix(_WORKING[0]).removesuffix(_WORKING[1]))


@contextlib.contextmanager
def replace_folder(target: Path, needed_bytes: int) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` when the block ends without an error.

    The old content of target stays until the new folder is complete and on disk; if the block fails
    or is interrupted, the new folder is removed. Leftovers of killed processes are removed too, and
    a folder that such a process had moved aside is put back.

    Raises ArtifactError if target is something other than an artifact, if the disk has fewer than
    needed_bytes free (checked before anything is written), or if writing fails.
    """
    target = target.absolute()
    with writing(target, needed_bytes):
        make_room(target, needed_bytes)
        partial = _sibling(target, "partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    try:
        with writing(target, needed_bytes):
            yield partial
            publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def replace_file(target: Path, needed_bytes: int) -> Iterator[Path]:
    """Yield the path of a new file that replaces `target` when the block ends without an error.

    The old file stays until the new one is complete and on disk. Leftovers of killed processes are
    removed. Raises ArtifactError if the disk has fewer than needed_bytes free (checked before
    anything is written), or if writing fails.
    """
    target = target.absolute()
    with writing(target, needed_bytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        _check_space(target, needed_bytes)
    partial = _sibling(target, "partial")
    try:
        with writing(target, needed_bytes):
            yield partial
            sync(partial)
            partial.replace(target)
            sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def make_room(target: Path, needed_bytes: int) -> None:
    """Check that an artifact may be written at target and fits on the disk; remove leftovers.

    Raises ArtifactError as in `replace_folder`, and OSError for a folder that cannot be created.
    """
    _check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    _check_space(target, needed_bytes)


def publish(
    partial: Path, target: Path, known: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write the manifest of a complete folder and rename the folder to target.

    known has bytes and sha256 of files (by name) that were computed while they were written.
    """
    _write_manifest(partial, known or {})
    _sync(partial)
    _swap(partial, target)


@contextlib.contextmanager
def writing(target: Path, needed_bytes: int) -> Iterator[None]:
    """Convert disk errors inside to an ArtifactError with the needed and free bytes."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _write_error(target, needed_bytes, error) from error


def recover(target: Path) -> None:
    """Clean up after killed writers of target: put a moved folder back, remove partial ones."""
    for role in ("replaced", "partial"):
        for leaving in sorted(target.parent.glob(f".{target.name}.{role}-*")):
            if _alive(leaving.name.rsplit("-", 1)[-1], leaving.name):
                continue
            if role == "replaced" and not target.exists():
                leaving.rename(target)
            elif leaving.is_file():
                leaving.unlink()
            else:
                shutil.rmtree(leaving, ignore_errors=True)


def verify(folder: Path) -> bool:
    """Compare every file of an artifact with its size and sha256; False if it has no manifest.

    Raises ArtifactError that names the first file that is missing, truncated or changed.
    """
    if not (folder / MANIFEST).is_file():
        return False
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in files.values()
    ):
        raise ArtifactError(f"{folder / MANIFEST} does not list files. {remake(folder)}")
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing, but {MANIFEST} lists it. {remake(folder)}")
        if path.stat().st_size != entry["bytes"]:
            raise ArtifactError(
                f"{path} has {path.stat().st_size} bytes instead of {entry['bytes']}: it was cut "
                f"short or changed. {remake(folder)}"
            )
        if sha256(path) != entry["sha256"]:
            raise ArtifactError(
                f"{path} is not what was written: its sha256 differs from {MANIFEST}. "
                f"{remake(folder)}"
            )
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; ArtifactError if it is missing, damaged or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} does not exist; pass the folder of a quantized model."
        ) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read as JSON: {error}. {remake(path.parent)}"
        ) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is not a JSON object. {remake(path.parent)}")
    return content


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remake(folder: Path) -> str:
    """Return the next step that ends every message about a damaged artifact."""
    return f"Delete {folder} and quantize again, or copy it again from where it came from."


def _check_target(target: Path) -> None:
    if target.is_file() or (
        target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file()
    ):
        raise ArtifactError(
            f"{target} exists and is not an artifact written by Bitsweep (no {MANIFEST} in it), so "
            "it is not replaced; choose another folder or remove it."
        )


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise ArtifactError(
            f"{target}: writing it needs {_size(needed)} and the disk has {_size(free)} free; "
            "free some space or choose a folder on another disk. Nothing was written."
        )


def _write_error(target: Path, needed: int, error: Exception) -> ArtifactError:
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number not in OF_SPACE:
        reason = getattr(error, "strerror", None) or os.strerror(number)
        return ArtifactError(
            f"{target} could not be written: {reason}; choose another folder, then run again. Its "
            "previous content is unchanged."
        )
    # Free space can be read only of a folder that exists: take the closest parent.
    existing = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    return ArtifactError(
        f"{target} could not be written: {error}. It needs {_size(needed)} and the disk has "
        f"{_size(free)} free; free some space or choose another folder, then run again. Its "
        "previous content is unchanged."
    )


def _size(count: int) -> str:
    return f"{count:,} bytes" if count < 10_000_000 else f"{count / 1e9:.2f} GB ({count:,} bytes)"


def _write_manifest(folder: Path, known: Mapping[str, Mapping[str, Any]]) -> None:
    files = {
        name: known.get(name) or {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for name, path in ((p.relative_to(folder).as_posix(), p) for p in sorted(folder.rglob("*")))
        if path.is_file() and name != CARD
    }
    manifest = {"version": MANIFEST_VERSION, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _swap(partial: Path, target: Path) -> None:
    """Rename partial to target; move an old target aside first, and back on failure."""
    if not target.exists():
        partial.rename(target)
    else:
        aside = _sibling(target, "replaced")
        target.rename(aside)
        try:
            partial.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    sync(target.parent)


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders, and journals renames
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.{role}-{platform.node()}-{os.getpid()}")


def _alive(pid: str, name: str) -> bool:
    """Whether the writer that left a folder may still run (on other platforms: assume so)."""
    if not name.endswith(f"-{platform.node()}-{pid}") or not pid.isdigit():
        return True
    if int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
