"""A text for the suites that read one."""

from pathlib import Path

import pytest


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"line {n} of {n * n}.\n" for n in range(30)))
    return str(file)
