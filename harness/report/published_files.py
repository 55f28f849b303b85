"""Where the files of published figures lie; needs nothing but the standard library."""

from __future__ import annotations

from pathlib import Path

from harness.errors import BitsweepError


def published_file(name: str) -> Path:
    """A file of results/published, in the installed package or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "published", package.parent / "results" / "published"):
        if (folder / name).is_file():
            return folder / name
    raise BitsweepError(
        f"results/published/{name} is missing beside {package}: the installation is incomplete, "
        "install bitsweep again."
    )
