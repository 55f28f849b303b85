"""Cut a release: the changelog's "Unreleased" becomes a version with its date.

  python tools/release.py 0.2.0     cut it (what `make release VERSION=0.2.0` does first)
  python tools/release.py --check   say whether a release could be cut now (part of `make dist`)

The version is in pyproject.toml alone; everything else reads the installed package's metadata.
CITATION.cff repeats it for those who cite. The three files are written together or not at all.
Nothing is committed, tagged, pushed or uploaded: the commands for it are printed.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

REPOSITORY = Path(__file__).resolve().parents[1]
UNRELEASED = "## [Unreleased]"
HEADING = re.compile(r"^## \[(?P<name>[^]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)
FILES = ("CHANGELOG.md", "pyproject.toml", "CITATION.cff")


class ReleaseError(ValueError):
    """A release cannot be cut; the message says why and what to do."""


@dataclass(frozen=True)
class Section:
    """One version of the changelog; date is None for what is unreleased."""

    name: str
    date: str | None
    body: str


def sections(changelog: str) -> list[Section]:
    """The changelog's versions, newest first; ReleaseError for a heading that is not one."""
    found = list(HEADING.finditer(changelog))
    lines = re.findall(r"^## .*$", changelog, re.MULTILINE)
    if wrong := [line for line in lines if not HEADING.match(line)]:
        raise ReleaseError(
            f"CHANGELOG.md: {wrong[0]!r} is no heading of a version: write '## [1.2.3] - "
            "2026-01-31'."
        )
    ends = [match.start() for match in found[1:]] + [len(changelog)]
    return [
        Section(match["name"], match["date"], changelog[match.end() : end].strip())
        for match, end in zip(found, ends, strict=True)
    ]


def current_version(root: Path) -> str:
    """The version that pyproject.toml gives."""
    with (root / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def ready(root: Path) -> str:
    """The version that a build has, once changelog and citation agree with it; ReleaseError."""
    version, text = current_version(root), (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = sections(text)
    if not found or found[0].name != "Unreleased":
        raise ReleaseError(f"CHANGELOG.md does not begin with {UNRELEASED!r}: add it.")
    released = [section for section in found[1:] if section.body]
    if len(released) != len(found) - 1 or any(section.date is None for section in released):
        raise ReleaseError("CHANGELOG.md has a version without a date or without any change.")
    if released and released[0].name != version:
        raise ReleaseError(
            f"pyproject.toml says {version}, the newest version of CHANGELOG.md is "
            f"{released[0].name}: versions are cut with `make release VERSION=...`."
        )
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    if f"\nversion: {version}\n" not in citation:
        raise ReleaseError(f"CITATION.cff does not say 'version: {version}'.")
    return version


def cut(root: Path, version: str, date: str) -> dict[str, str]:
    """The new text of every file by name, nothing written yet; ReleaseError when refused."""
    texts = {name: (root / name).read_text(encoding="utf-8") for name in FILES}
    found, before = sections(texts["CHANGELOG.md"]), ready(root)
    names = [section.name for section in found]
    if version in names:
        raise ReleaseError(f"{version} is in CHANGELOG.md already: choose a later version.")
    try:
        parsed = Version(version)
    except InvalidVersion:
        raise ReleaseError(f"{version} is no version: write it like 1.2.3 or 1.2.3rc1.") from None
    if str(parsed) != version:
        raise ReleaseError(f"{version} is not in its normal form: write {parsed}.")
    if parsed < Version(before):
        raise ReleaseError(f"{version} is before {before}, the version of pyproject.toml.")
    if not found[0].body:
        raise ReleaseError(f"CHANGELOG.md has nothing under {UNRELEASED!r}: there is no release.")
    heading = f"{UNRELEASED}\n\n## [{version}] - {date}"
    return {
        "CHANGELOG.md": texts["CHANGELOG.md"].replace(UNRELEASED, heading, 1),
        "pyproject.toml": _replaced(
            texts["pyproject.toml"], r'^version = ".*"$', f'version = "{version}"'
        ),
        "CITATION.cff": _replaced(
            re.sub(r"^date-released: .*\n", "", texts["CITATION.cff"], flags=re.MULTILINE),
            r"^version: .*$",
            f"version: {version}\ndate-released: {date}",
        ),
    }


def _replaced(text: str, pattern: str, line: str) -> str:
    changed, count = re.subn(pattern, line, text, flags=re.MULTILINE)
    if count != 1:
        raise ReleaseError(f"{count} lines are like {line.partition(' ')[0]!r}, not one.")
    return changed


def git_complaint(root: Path, version: str) -> str | None:
    """Why git is not ready for a release: the tag exists, or files have changed."""
    if _git(root, "tag", "--list", f"v{version}"):
        return f"the tag v{version} exists already: choose a later version."
    if changed := _git(root, "status", "--porcelain"):
        return f"{len(changed)} files are not committed ({changed[0].strip()}): commit them first."
    return None


def _git(root: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"`git {arguments[0]}` failed: {done.stderr.strip()}")
    return done.stdout.splitlines()


def main(arguments: Sequence[str] | None = None, root: Path = REPOSITORY) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/release.py", description=__doc__.partition("\n")[0]
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("version", nargs="?", help="such as 0.2.0; not one that exists")
    what.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            print(f"{ready(root)}: pyproject.toml, CHANGELOG.md and CITATION.cff agree")
            return 0
        version = options.version
        texts = cut(root, version, datetime.datetime.now(datetime.UTC).date().isoformat())
        if complaint := git_complaint(root, version):
            raise ReleaseError(complaint)
    except ReleaseError as error:
        print(f"not cut: {error}", file=sys.stderr)
        return 1
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    print(
        f"{version} is cut in {', '.join(texts)}. Nothing is committed; "
        f"`git restore {' '.join(texts)}` takes it back.\n"
        "Once `make dist` and `bash .ci/run` pass:\n"
        f"  git commit -am 'Release {version}' && git tag -a v{version} -m 'Bitsweep {version}'\n"
        f"  git push origin HEAD v{version}\n"
        f"  .venv/bin/twine upload dist/bitsweep-{version}*"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
