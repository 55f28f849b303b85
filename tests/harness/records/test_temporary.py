"""Temporary files of killed writers are swept, and no others."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

from harness.records.temporary import make_temporary, remove_abandoned


def _write_and_stop(root: str, half: bool) -> None:
    handle, path = make_temporary(Path(root) / "cells" / "x", "record.json")
    os.write(handle, b"half")
    Path(root, "path").write_text(path)
    if half:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def test_temporary_files_of_killed_writers_are_swept_and_no_others(tmp_path: Path) -> None:
    cells = tmp_path / "cells" / "x"
    cells.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    killed = context.Process(target=_write_and_stop, args=(str(tmp_path), True))
    killed.start()
    killed.join()
    (left,) = cells.iterdir()
    (tmp_path / "path").unlink()
    writing = context.Process(target=_write_and_stop, args=(str(tmp_path), False))
    writing.start()
    while not (tmp_path / "path").exists():
        time.sleep(0.01)
    (cells / "record.json").write_text("{}")
    old, new = (tmp_path / "scratch" / name for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "000000").write_bytes(b"states")
    for path in (old, old / "000000"):
        os.utime(path, (0, 0))
    assert sorted(remove_abandoned(tmp_path)) == sorted([left, old])
    assert writing.is_alive()
    assert new.is_dir()
    assert len(list(cells.iterdir())) == 2
    writing.kill()
    writing.join()
    assert len(remove_abandoned(tmp_path)) == 1
