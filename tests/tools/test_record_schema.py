"""docs/records.md describes the schema as it is."""

from pathlib import Path

import pytest

from harness.records.record import SCHEMA_VERSION
from tools.record_schema import markdown, update

PAGE = Path(__file__).parents[2] / "docs" / "records.md"


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert update(page) == page, "run: python -m tools.record_schema docs/records.md"


def test_every_version_has_an_entry_in_the_list_of_changes() -> None:
    changes = PAGE.read_text(encoding="utf-8").partition("## Changes")[2]
    assert all(f"**{version}**" in changes for version in range(1, SCHEMA_VERSION + 1))


def test_every_key_is_described() -> None:
    text = markdown()
    for key in ("cell_key", "peak_memory_bytes", "bits_per_weight", "weight_error", "stderr"):
        assert f"| `{key}` |" in text


def test_a_page_without_a_place_for_it() -> None:
    with pytest.raises(ValueError, match="no part between"):
        update("# Records\n")
