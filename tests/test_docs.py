"""The pages: all are in the index, links lead somewhere, and what they say of tests is so."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".github", "bitsweep", "conf", "cuda_ext", "docs", "examples", "harness", "quant")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pages in (
        ROOT.glob("*.md"),
        *((ROOT / folder).rglob("*.md") for folder in (*FOLDERS, "results/published")),
    )
    for path in pages
)
FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """A page without its code, in which brackets mean something else."""
    return re.sub(r"`[^`\n]*`", "`code`", FENCE.sub("", text))


def links(text: str) -> Iterator[str]:
    """The targets of links and pictures that lead to other files or headings here."""
    for target in re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", prose(text)):
        if not re.match(r"[a-z][a-z0-9+.-]*:", target):
            yield target


def anchors(text: str) -> set[str]:
    """The names that headings of a page have in links, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#* *$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {
        name if not n else f"{name}-{n}" for name, count in found.items() for n in range(count + 1)
    }


def broken(page: Path, root: Path) -> list[str]:
    """Links of a page that lead nowhere, or out of the repository."""
    said = []
    for target in links(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        if not other.exists() or not other.is_relative_to(root):
            said.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(other.read_text(encoding="utf-8")):
            said.append(f"{target}: no such heading")
    return said


def test_broken_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One thing: `x`, and two\n## Same\n## Same\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[1](b.md) [2](b.md#one-thing-x-and-two) [3](b.md#same-1) [4](https://x.org/y)\n"
        "[5](c.md) ![6](d.png) [7](b.md#three) [8](../e.md) `[9](f.md)` [10](#here) \n"
        "```\n[11](g.md)\n```\n"
    )
    (tmp_path.parent / "e.md").write_text("")
    assert [each.partition(":")[0] for each in broken(page, tmp_path)] == [
        "c.md", "d.png", "b.md#three", "../e.md", "#here",
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken(ROOT / page, ROOT) == []


@pytest.mark.parametrize("folder", ["docs", "docs/decisions", "docs/methods"])
def test_every_page_is_in_the_index(folder: str) -> None:
    index = ROOT / folder / "README.md"
    linked = {target.partition("#")[0] for target in links(index.read_text(encoding="utf-8"))}
    pages = {path.name for path in (ROOT / folder).glob("*.md")} - {"README.md"}
    assert pages - linked == set(), f"{folder}/README.md does not link them"


def test_the_readme_leads_to_the_index() -> None:
    linked = set(links((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"docs/README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"} <= linked


@cache
def named_tests(pattern: str) -> set[str]:
    """Names of the tests in the files of a pattern."""
    return {
        node.name
        for file in ROOT.glob(pattern)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHECKLIST = CONTRIBUTING.partition("\n## Adding a part\n")[2].partition("\n## ")[0]
ITEMS = [
    " ".join(item.split())
    for item in re.findall(r"^- \[ \] (.*?)(?=\n- \[|\n\n|\Z)", CHECKLIST, re.M | re.S)
]


@pytest.mark.parametrize("item", ITEMS)
def test_every_point_of_the_checklist_is_checked_by_tests_that_exist(item: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", item))
    assert named, "a point that no test checks"
    assert named <= named_tests("tests/**/test_*.py")


def test_the_checklist_has_all_that_the_toy_parts_are_held_to() -> None:
    assert len(ITEMS) > 15
    assert named_tests("tests/harness/test_toy_parts.py") <= set(re.findall(r"test_\w+", CHECKLIST))


def test_docs_name_every_suite() -> None:
    """Where its figures are explained: protocols for accuracy, reports for the rest."""
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in ("protocols", "reports"))
    modules = [path for path in (ROOT / "harness" / "suites").glob("*.py")]
    suites = [path.stem for path in modules if re.search(r"^SUITE = ", path.read_text(), re.M)]
    assert len(suites) >= 5
    assert [name for name in suites if not re.search(rf"\b{name}\b", text)] == []
