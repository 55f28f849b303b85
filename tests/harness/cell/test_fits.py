"""What does not fit a model is refused in its plan."""

from collections.abc import Callable

import pytest

from harness.cell.resolve import resolve
from harness.config.schema import CellConfig
from harness.errors import ConfigError

Make = Callable[..., CellConfig]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=gptq", "calib.length=65"], "calib.length=65 is more than the 64 tokens"),
        (["model.context=65"], "windows of 65 tokens do not fit a model with 64 positions"),
    ],
)
def test_windows_beyond_the_context_are_refused_in_the_plan(
    tiny_cell: Make, overrides: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(tiny_cell(*overrides))
    resolve(tiny_cell("method=gptq", "calib.length=64", "model.context=64"))
