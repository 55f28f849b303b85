"""Records appear whole or not at all, whatever happens while they are written."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from harness.errors import StoreError
from harness.records.record import CellIdentity, Failure, Metric, Record
from harness.records.store import Store, load_records, read_record, write_atomically

CELL = CellIdentity(model="tiny", method="rtn", scheme="w4", calibration=None, seed=0)


def record(value: float = 1.0, status: str = "ok") -> Record:
    metric = Metric(name="perplexity", task="t", value=value, unit="ppl", n=1, n_unit="tokens")
    return Record(
        key="k" * 64,
        cell_key="c" * 64,
        suite="perplexity",
        status=status,  # type: ignore[arg-type]
        cell=CELL,
        metrics=[metric] if status == "ok" else [],
        error=None if status == "ok" else Failure(stage="perplexity", type="E", message="m"),
        config={},
        started_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(CELL, "c" * 64, "perplexity", "k" * 64) is None
    path = store.write(record(2.5), [{"window": 0, "nll": 1.5}])
    found = store.find(CELL, "c" * 64, "perplexity", "k" * 64)
    assert found is not None
    assert found.metrics[0].value == 2.5
    assert found.samples_file is not None
    assert (path.parent / found.samples_file).read_text() == '{"window": 0, "nll": 1.5}\n'
    assert load_records(tmp_path) == [found]


def test_another_key_is_not_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(record())
    assert store.find(CELL, "c" * 64, "perplexity", "k" * 12 + "x" * 52) is None


def test_a_failure_never_replaces_a_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write(record(3.0))
    store.write(record(status="failed"))
    assert read_record(path).status == "ok"


def test_a_result_replaces_a_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(record(status="failed"))
    assert read_record(store.write(record(3.0))).status == "ok"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema_version": 1}', "\xff\xfe"])
def test_a_damaged_record_is_named_with_the_next_step(tmp_path: Path, damage: str) -> None:
    path = Store(tmp_path).write(record())
    path.write_text(damage, encoding="latin-1")
    with pytest.raises(StoreError, match="delete this file") as caught:
        load_records(tmp_path)
    assert str(path) in str(caught.value)


def test_a_record_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = Store(tmp_path).write(record())
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(StoreError, match="schema_version"):
        read_record(path)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "paths.results=FOLDER")],
)
def test_a_disk_that_takes_nothing_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    store = Store(tmp_path)
    path = store.write(record(1.0))
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match=words):
        store.write(record(2.0))
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name], "no temporary file left"


def test_a_write_that_the_kernel_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full is a real full disk: the error comes from write(2), not from a mock."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(
        "tempfile.mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "gone"))
    )
    with pytest.raises(StoreError, match="the disk is full"):
        write_atomically(tmp_path / "file.txt", "text")
    assert not (tmp_path / "file.txt").exists()


def test_a_file_in_the_place_of_the_results_folder(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("not a folder")
    with pytest.raises((StoreError, FileExistsError)):
        Store(tmp_path / "results").write(record())


def _write_many(root: str, value: float, count: int) -> None:
    store = Store(Path(root))
    for _ in range(count):
        store.write(record(value))


def test_readers_never_see_half_a_record_while_others_write(tmp_path: Path) -> None:
    store, context = Store(tmp_path), multiprocessing.get_context("fork")
    path = store.write(record(1.0))
    writers = [context.Process(target=_write_many, args=(str(tmp_path), v, 40)) for v in (2.0, 3.0)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert read_record(path).metrics[0].value in (1.0, 2.0, 3.0)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert read_record(path).metrics[0].value in (2.0, 3.0)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def _hold(root: str, ready: Path) -> None:
    with Store(Path(root)).lock("c" * 64):
        ready.touch()
        time.sleep(60)


def test_a_killed_process_gives_its_lock_back(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(str(tmp_path), ready))
    holder.start()
    while not ready.exists():
        time.sleep(0.01)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with Store(tmp_path).lock("c" * 64):
        pass
