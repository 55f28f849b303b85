"""Sweeps of four cells, and the processes that run them."""

from collections.abc import Iterator

import pytest

from tests import warm

SWEEP = ["method=rtn,gptq", "scheme=w4,w3"]


@pytest.fixture
def sweep(tiny_overrides: list[str]) -> list[str]:
    """Four cells with perplexity alone."""
    kept = [word for word in tiny_overrides if not word.startswith(("suite.latency", "suite="))]
    return [*kept, "suite=[perplexity_documents]", *SWEEP]


@pytest.fixture
def started() -> Iterator[list[warm.Process]]:
    """Processes to end with the test."""
    found: list[warm.Process] = []
    yield found
    for each in found:
        each.kill()
