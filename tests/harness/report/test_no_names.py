"""Reports know no suite and no method: what those add, they declare."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "harness" / "report"
REPORT = sorted(file for kind in ("py", "js", "html") for file in FOLDER.rglob(f"*.{kind}"))


def names() -> set[str]:
    """Of the suites and methods that conf/ offers, and of those that only records bear."""
    files = [*(ROOT / "conf" / "suite").glob("*.yaml"), *(ROOT / "conf" / "method").glob("*.yaml")]
    suites = ROOT / "harness" / "suites"
    return {
        file.stem if (suites / file.name).with_suffix(".py").is_file() else first_word(file)
        for file in files
    } - {"none"} | {"loaded"}


def first_word(file: Path) -> str:
    return file.stem.partition("_")[0]


def test_the_names_are_found() -> None:
    assert {"perplexity", "divergence", "zeroshot", "latency", "kernels", "rtn", "gptq"} <= names()


@pytest.mark.parametrize("file", REPORT, ids=lambda file: file.name)
def test_no_module_names_a_suite_or_a_method(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    found = re.findall(rf"\b({'|'.join(sorted(names()))})\b", text, re.IGNORECASE)
    assert not found, f"{file.name} names {sorted(set(found))}"
    assert not re.search(r"""[!=]= ["']none""", text)
