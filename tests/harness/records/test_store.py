"""Records appear whole or not at all, whatever happens while they are written."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from harness.errors import StoreError
from harness.records.record import SCHEMA_VERSION, CellIdentity, Failure, Metric, Record
from harness.records.store import (
    LONGEST_NAME,
    DamagedRecord,
    Store,
    file_name,
    load_records,
    read_record,
    scan_records,
    unique_name,
    write_atomically,
    write_each,
)

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


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema_version": 1}', "\xff\xfe", "["])
def test_a_damaged_record_is_left_out_of_reports_and_made_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    path = store.write(record())
    path.write_text(damage * (100_000 if damage == "[" else 1), encoding="latin-1")
    assert load_records(tmp_path) == []
    (note,) = scan_records(tmp_path)[1]
    assert note.startswith(f"left out: {path} is not a record of this version (")
    assert "delete" not in note
    assert store.find(CELL, "c" * 64, "perplexity", "k" * 64) is None
    assert "It will be made again." in caplog.text
    store.write(record(status="failed"))
    assert read_record(path).status == "failed"


def test_one_foreign_record_costs_no_other(tmp_path: Path) -> None:
    """Of a later version, a folder, a link to itself: each is left out and said."""
    path = Store(tmp_path).write(record())
    text = path.read_text()
    newer = path.with_name("a.json")
    newer.write_text(text.replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99'))
    path.with_name("b.json").mkdir()
    path.with_name("c.json").symlink_to("c.json")
    records, notes = scan_records(tmp_path)
    assert [each.key for each in records] == ["k" * 64]
    version, folder, loop = notes
    assert "schema_version 99" in version
    assert "read it with the version that wrote it" in version
    assert "Is a directory" in folder
    assert "symbolic links" in loop
    with pytest.raises(DamagedRecord, match="schema_version 99"):
        read_record(newer)


def test_a_folder_in_the_place_of_a_record_is_said_before_the_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write(record())
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="a folder of that name is in the way"):
        store.find(CELL, "c" * 64, "perplexity", "k" * 64)


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


def test_files_written_together_are_whole_and_have_the_users_permissions(tmp_path: Path) -> None:
    files = {tmp_path / f"{number % 3}" / f"{number}.txt": f"{number}" for number in range(60)}
    before = os.umask(0o027)
    try:
        write_each(files)
        assert os.umask(0o027) == 0o027, "the process's own mask is as it was"
    finally:
        os.umask(before)
    found = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == files, "no temporary file left"
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_of_files_written_together_the_first_refused_is_named(tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("a file")
    files = {tmp_path / "in the way" / f"{number}.txt": "" for number in range(20)}
    with pytest.raises(StoreError, match=r"0\.txt could not be written, a file is in the way"):
        write_each(files)


def test_folders_are_synced_where_one_of_several_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in the way").write_text("a file")
    (tmp_path / "free").mkdir()
    real, synced = os.fsync, []

    def fsync(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError, match="a file is in the way"):
        write_each({tmp_path / "free" / "a.txt": "", tmp_path / "in the way" / "b.txt": ""})
    assert (tmp_path / "free").stat().st_ino in synced


def test_a_file_in_the_place_of_the_results_folder(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("not a folder")
    with pytest.raises(StoreError, match="a file is in the way"):
        Store(tmp_path / "results").write(record())
    with pytest.raises(StoreError, match="a file is in the way"):
        Store(tmp_path / "results").check_place()


@pytest.mark.parametrize("name", ["r" * 300, "/".join(["r" * 200] * 30)])
def test_a_results_folder_that_cannot_be_is_one_sentence(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / name)
    for attempt in (store.check_place, store.check_writable, lambda: store.write(record())):
        with pytest.raises(StoreError, match="the path is too long: choose another") as caught:
            attempt()
        assert len(str(caught.value)) < 500


def test_a_results_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(
        StoreError, match="you have no permission to write it: choose another folder"
    ):
        Store(tmp_path / "results").check_place()
    assert list(tmp_path.iterdir()) == []


def test_names_of_any_length_and_content_make_files_of_their_own() -> None:
    assert file_name("opt-125m") == unique_name("opt-125m") == "opt-125m"
    assert len(file_name("n" * 300)) <= LONGEST_NAME
    assert file_name("n" * 300) != file_name("n" * 301)
    names = ["a/b", "a b", "a_b", "..", ".", "", "/", "all", ".hidden", "n" * 300, "n" * 301, "ü"]
    found = [unique_name(name) for name in names]
    assert len({each.lower() for each in found}) == len(names)
    assert all(each and each[0] != "." and "/" not in each for each in found)
    assert "all" not in found, "what `bitsweep report` writes"


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


def test_a_held_lock_says_who_holds_it(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(str(tmp_path), ready))
    holder.start()
    while not ready.exists():
        time.sleep(0.01)
    heard: list[str] = []

    def waiting(who: str) -> None:
        heard.append(who)
        holder.kill()

    with Store(tmp_path).lock("c" * 64, waiting):
        pass
    (who,) = heard
    assert who.startswith(f"process {holder.pid} on ")
    assert " since 20" in who
    with Store(tmp_path).lock("c" * 64, waiting):
        assert len(heard) == 1, "nobody to wait for"
    assert not list((tmp_path / ".locks").glob("*.json"))
    holder.join()
