"""YAML that stands for far more than it holds is refused at once."""

import time
from pathlib import Path

import pytest

from harness.config.aliases import require_modest
from harness.config.compose import compose_cells
from harness.errors import ConfigError


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for at in range(1, 9):
        lines.append(f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", [bomb(), "a: &a [*a]", "[" * 5000, "x" * 2_000_000], ids=["bomb", "self", "deep", "big"]
)
def test_what_no_configuration_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "scheme").mkdir()
    (tmp_path / "scheme" / "mine.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"mine\.yaml stands for more than"):
        compose_cells(["scheme=mine"], extra=tmp_path)
    assert time.monotonic() - began < 2


def test_aliases_that_stand_for_little_stay(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: *a\n" + "# long\n" * 2000)
    (tmp_path / "b.yaml").write_text("a: [")  # whoever reads it says so
    require_modest(tmp_path)
