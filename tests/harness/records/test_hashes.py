"""Hashes of files: of what is in them, and not read twice."""

import hashlib
import os
from pathlib import Path

import pytest

from harness.records import hashes
from harness.records.hashes import file_sha256


def test_contents_are_hashed_whatever_a_link_s_target_is_called(tmp_path: Path) -> None:
    blob = tmp_path / ("ab" * 32)
    link = tmp_path / "model.safetensors"
    os.symlink(blob, link)
    for text in (b"first", b"other"):
        blob.write_bytes(text)
        assert file_sha256(link) == hashlib.sha256(text).hexdigest()


def test_unchanged_files_are_not_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", 0.0)
    read, reads = hashes._read, []
    monkeypatch.setattr(hashes, "_read", lambda place: reads.append(place) or read(place))
    file = tmp_path / "weights"
    for content in (b"a" * 2**20, b"b" * 2**20):
        file.write_bytes(content)
        os.utime(file, ns=(0, 0))  # as a copy that keeps the time of its source
        for _ in range(2):
            hashes._kept.cache_clear()  # another process
            assert file_sha256(file) == hashlib.sha256(content).hexdigest()
    assert len(reads) == 2
    for kept in (tmp_path / "cache" / "hashes").iterdir():
        assert str(tmp_path) not in kept.read_text()
        kept.write_text("{")
    hashes._kept.cache_clear()
    assert file_sha256(file) == hashlib.sha256(content).hexdigest()
