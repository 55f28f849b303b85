"""Kept files are whole or not there, whatever happens to the process, the disk or the file."""

import logging
import os
import signal
import time
from pathlib import Path

import pytest

from harness.records.kept import FOLDER, HASH_BYTES, Kept
from harness.records.store import Store
from harness.records.temporary import remove_abandoned

KEY = "0123456789abcdef" * 4


def kept(root: Path, key: str = KEY) -> Kept:
    return Kept(Store(root), "a/model", key)


def file_of(root: Path) -> Path:
    return next((root / FOLDER).glob("*/window"))


def test_what_was_kept_is_found_by_the_same_key_alone(tmp_path: Path) -> None:
    assert kept(tmp_path).get("window") is None
    kept(tmp_path).put("window", b"content")
    assert kept(tmp_path).get("window") == b"content"
    assert kept(tmp_path).has("window")
    assert not kept(tmp_path).has("other")
    assert kept(tmp_path, KEY[::-1]).get("window") is None
    assert file_of(tmp_path).parent.name == f"a_model-{KEY[:12]}"


@pytest.mark.parametrize("left", [0, 1, HASH_BYTES - 1, HASH_BYTES, HASH_BYTES + 3])
def test_a_truncated_file_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    kept(tmp_path).put("window", b"content")
    file = file_of(tmp_path)
    file.write_bytes(file.read_bytes()[:left])
    with caplog.at_level(logging.WARNING, "harness"):
        assert kept(tmp_path).get("window") is None
    assert "is damaged; it will be made again" in caplog.text
    kept(tmp_path).put("window", b"content")
    assert kept(tmp_path).get("window") == b"content"


def test_a_changed_byte_is_seen(tmp_path: Path) -> None:
    kept(tmp_path).put("window", bytes(1000))
    file = file_of(tmp_path)
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    file.write_bytes(bytes(data))
    assert kept(tmp_path).get("window") is None


def test_a_disk_that_takes_nothing_costs_time_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("a file in the way")
    mine = kept(tmp_path)
    with caplog.at_level(logging.WARNING, "harness"):
        mine.put("window", b"content")
        mine.put("another", b"content")
    assert mine.get("window") is None
    (said,) = [record.getMessage() for record in caplog.records]
    assert "a file is in the way" in said
    assert "Only time is lost" in said


def test_a_kill_leaves_whole_files_and_what_is_swept(tmp_path: Path) -> None:
    content = os.urandom(2**20)
    for seconds in (0.005, 0.02, 0.05):
        child = os.fork()
        if child == 0:
            while True:
                kept(tmp_path).put("window", content)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert kept(tmp_path).get("window") in (None, content)
    for left in (tmp_path / FOLDER).glob("*/.*"):
        os.utime(left, (0, 0))  # an empty one counts as young for a minute
    remove_abandoned(tmp_path)
    assert not list((tmp_path / FOLDER).glob("*/.*"))


def test_one_process_makes_and_another_waits(tmp_path: Path) -> None:
    said: list[str] = []
    go = tmp_path / "go"
    child = os.fork()
    if child == 0:
        with kept(tmp_path).lock():
            (tmp_path / "held").touch()
            while not go.exists():
                time.sleep(0.005)
            kept(tmp_path).put("window", b"of the other")
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)

    def waiting(who: str) -> None:
        said.append(who)
        go.touch()

    with Kept(Store(tmp_path), "a/model", KEY, waiting).lock():
        assert kept(tmp_path).get("window") == b"of the other"
    os.waitpid(child, 0)
    (who,) = said
    assert who.startswith(f"process {child} on ")
