"""Build the sdist and the wheel, check both, and leave them in dist/.

  python tools/dist.py                 what `make dist` runs
  python tools/dist.py --outdir DIR    leave them elsewhere

The wheel is built from the unpacked sdist, where there is no git, and again from the checkout: both
must have the same bytes. `twine check --strict` checks the metadata. INSIDE and OUTSIDE list what
an archive must and must not contain. Nothing is put into dist/ unless every check passes, and
nothing is uploaded.
"""

from __future__ import annotations

import argparse
import email
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tools import release

REPOSITORY = Path(__file__).resolve().parents[1]
# Folders of the checkout and their places in the wheel, which must have all of their files.
PACKAGED = {
    "bitsweep": "bitsweep",
    "harness": "harness",
    "quant": "quant",
    "cuda_ext": "cuda_ext",
    "conf": "harness/conf",
    "results/published": "harness/published",
}
# Patterns: each must match a file.
INSIDE = {
    "wheel": (
        "bitsweep/py.typed",
        "harness/py.typed",
        "quant/py.typed",
        "cuda_ext/py.typed",
        "harness/conf/config.yaml",
        "harness/embedded/model/*.safetensors",
        "harness/embedded/model/tokenizer.json",
        "harness/report/page/page.html",
        "harness/report/page/*.css",
        "harness/report/page/*.js",
        "cuda_ext/csrc/ops.cpp",
        "cuda_ext/csrc/cpu/avx2.cpp",
        "cuda_ext/csrc/cuda/*.cu",
        "cuda_ext/csrc/cuda/*.cuh",
        "harness/published/*.csv",
        "*.dist-info/licenses/LICENSE",
        "*.dist-info/entry_points.txt",
    ),
    "sdist": (
        "PKG-INFO",
        "pyproject.toml",
        "constraints.txt",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CITATION.cff",
        "Makefile",
        "Containerfile",
        "Containerfile.cuda",
        ".ci/run",
        "conf/config.yaml",
        "results/published/*.csv",
        "harness/embedded/model/*.safetensors",
        "cuda_ext/csrc/cuda/*.cu",
        "docs/README.md",
        "docs/architecture.svg",
        "examples/quickstart.ipynb",
        "tests/conftest.py",
        "tools/dist.py",
    ),
}
# Patterns: none may match a file.
OUTSIDE = {
    "wheel": (
        "tests/*",
        "docs/*",
        "tools/*",
        "benchmarks/*",
        "findings/*",
        "results/*",
        "conf/*",
        "*/reference/*.json",
    ),
    "sdist": ("results/reference/*", "results/cells/*", "results/artifacts/*", ".github/*"),
}
# Files left by runs, builds and tools, which neither archive may contain.
LEFT_BEHIND = (
    "*.pyc",
    "*/__pycache__/*",
    "*.so",
    "*.o",
    ".git/*",
    "*.venv/*",
    "*.lock",
    "*_cache/*",
)


def wheel_names(path: Path) -> list[str]:
    """The files of a wheel."""
    with zipfile.ZipFile(path) as archive:
        return sorted(archive.namelist())


def sdist_names(path: Path) -> list[str]:
    """The files of an sdist, without its top-level folder."""
    with tarfile.open(path) as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
    return sorted(name.partition("/")[2] for name in files)


def packaged(root: Path) -> list[str]:
    """Files that the wheel must contain: all that git tracks or would track in PACKAGED folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PACKAGED]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    found = []
    for name in listed.stdout.splitlines():
        folder = next(folder for folder in PACKAGED if name.startswith(f"{folder}/"))
        if (root / name).is_file():
            found.append(PACKAGED[folder] + name.removeprefix(folder))
    return sorted(found)


def complaints(kind: str, names: Sequence[str], needed: Iterable[str] = ()) -> list[str]:
    """One sentence for each missing or forbidden file of a wheel or an sdist."""
    found = set(names)
    lacks = [name for name in needed if name not in found]
    lacks += [
        pattern for pattern in INSIDE[kind] if not any(fnmatchcase(name, pattern) for name in names)
    ]
    said = [f"the {kind} lacks {name}." for name in lacks]
    for pattern in (*OUTSIDE[kind], *LEFT_BEHIND):
        held = [name for name in names if fnmatchcase(name, pattern)]
        said += [f"the {kind} holds {name}, which {pattern} keeps out." for name in held[:3]]
    if kind == "wheel":
        allowed = {folder.partition("/")[0] for folder in PACKAGED.values()}
        tops = {name.partition("/")[0] for name in names}
        strange = {top for top in tops - allowed if not top.endswith(".dist-info")}
        said += [f"the wheel installs {top} beside the packages." for top in sorted(strange)]
    return said


def metadata_complaints(wheel: Path, version: str) -> list[str]:
    """One sentence for each fault in the wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    said = []
    if metadata["Version"] != version:
        said.append(f"the wheel is {metadata['Version']}, pyproject.toml says {version}.")
    exact = [
        requirement
        for requirement in metadata.get_all("Requires-Dist") or []
        if "==" in requirement.partition(";")[0]
    ]
    said += [f"the wheel needs {one}: use a lower bound." for one in exact]
    return said


def build(root: Path, outdir: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it; RuntimeError when a build fails."""
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(outdir), str(root)])
    (sdist,), (wheel,) = outdir.glob("*.tar.gz"), outdir.glob("*.whl")
    direct = outdir / "direct"
    _run([
        sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(direct),
        str(root),
    ])  # fmt: skip
    (again,) = direct.glob("*.whl")
    if digest(again) != digest(wheel):
        differing = sorted(set(wheel_names(again)) ^ set(wheel_names(wheel)))
        raise RuntimeError(
            "the wheel of the sdist and that of the checkout differ: "
            f"{', '.join(differing[:5]) or 'in the content of a file'}."
        )
    shutil.rmtree(direct)
    return sdist, wheel


def digest(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines()
        raise RuntimeError(f"`{' '.join(command[1:4])}` failed: {' / '.join(lines[-5:])}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/dist.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--outdir", type=Path, default=REPOSITORY / "dist")
    outdir: Path = parser.parse_args(arguments).outdir
    try:
        version = release.ready(REPOSITORY)
        with tempfile.TemporaryDirectory() as scratch:
            sdist, wheel = build(REPOSITORY, Path(scratch))
            said = complaints("wheel", wheel_names(wheel), packaged(REPOSITORY))
            said += complaints("sdist", sdist_names(sdist))
            said += metadata_complaints(wheel, version)
            if said:
                raise RuntimeError("\n".join(said))
            _run([sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)])
            outdir.mkdir(parents=True, exist_ok=True)
            for old in (*outdir.glob("bitsweep-*.whl"), *outdir.glob("bitsweep-*.tar.gz")):
                old.unlink()
            for made in (sdist, wheel):
                kept = Path(shutil.copy(made, outdir))
                print(f"{kept}  {kept.stat().st_size / 1e6:.1f} MB  sha256 {digest(kept)}")
    except (RuntimeError, release.ReleaseError) as error:
        print(f"not built: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
