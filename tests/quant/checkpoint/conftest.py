"""A folder to load and to damage."""

from pathlib import Path

import pytest

import quant
from quant.scheme import Scheme
from tests.quant.tiny_checkpoints import METHOD, quantized


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """An artifact of the tiny OPT model at 3 bits in groups of 8."""
    model, weights = quantized("opt", Scheme(3, group_size=8))
    return quant.save(tmp_path / "artifact", model, weights, method=METHOD)
