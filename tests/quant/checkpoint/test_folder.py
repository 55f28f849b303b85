"""A folder appears whole or not at all, whatever happens while it is written."""

import errno
import json
import os
import platform
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from quant.checkpoint import folder as folder_module
from quant.checkpoint.folder import MANIFEST, recover, replace_folder, sha256, verify
from quant.checkpoint.tensors import Entry, TensorReader, write_tensors
from quant.errors import ArtifactError


def write(target: Path, text: str = "new") -> None:
    with replace_folder(target, 100) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file.txt").write_text(text)


def text_of(target: Path) -> str:
    return (target / "sub" / "file.txt").read_text()


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def entry(name: str, tensor: torch.Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def test_written_sealed_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "artifact"
    write(target, "old")
    assert verify(target)
    files = json.loads((target / MANIFEST).read_text())["files"]
    assert files == {"sub/file.txt": {"bytes": 3, "sha256": sha256(target / "sub" / "file.txt")}}
    write(target, "new")
    assert text_of(target) == "new"
    assert names(target.parent) == ["artifact"]


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == known


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("solver"), SystemExit(1)])
def test_interruption_leaves_the_earlier_artifact(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "artifact"
    write(target, "old")

    def interrupted() -> None:
        with replace_folder(target, 100) as partial:
            (partial / "half").write_text("x")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert text_of(target) == "old"
    assert verify(target)
    assert names(tmp_path) == ["artifact"]


def test_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "artifact"
    write(target, "old")
    usage = type(shutil.disk_usage(tmp_path))(1000, 950, 50)
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _: usage)
    message = r"needs 100 bytes and the disk has 50 bytes free; free some space"
    with pytest.raises(ArtifactError, match=message):
        write(target)
    assert text_of(target) == "old"
    assert names(tmp_path) == ["artifact"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Writing beyond 64 KiB fails in the kernel: as near to a full disk as any machine can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("kind", ["tensors", "text"])
def test_a_write_that_fails_half_way(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "artifact"
    write(target, "old")

    def too_much() -> None:
        with replace_folder(target, 1234) as partial:
            if kind == "tensors":
                write_tensors(partial, [entry("a", torch.zeros(100_000))], 10**9)
            else:
                (partial / "text").write_text("x" * 100_000)

    message = r"could not be written: .*File too large.* needs 1,234 bytes"
    with pytest.raises(ArtifactError, match=message):
        too_much()
    assert text_of(target) == "old"
    assert names(tmp_path) == ["artifact"]


def test_a_full_disk_while_sealing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "artifact"
    write(target, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_module.os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        write(target)
    assert text_of(target) == "old"
    assert names(tmp_path) == ["artifact"]


def test_a_failing_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "artifact"
    write(target, "old")
    rename = Path.rename

    def fail(self: Path, other: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "broken disk")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ArtifactError, match="broken disk"):
        write(target)
    assert text_of(target) == "old"
    assert names(tmp_path) == ["artifact"]


def test_leavings_of_killed_writers(tmp_path: Path) -> None:
    """kill -9 between the two renames: the old folder is put back; partial ones are removed."""
    target = tmp_path / "artifact"
    write(target, "old")
    dead = f"{platform.node()}-{2**22 + 1}"  # above the largest process id of Linux
    target.rename(tmp_path / f".artifact.replaced-{dead}")
    (tmp_path / f".artifact.partial-{dead}").mkdir()
    elsewhere = tmp_path / ".artifact.partial-another-machine-77"
    alive = tmp_path / f".artifact.partial-{platform.node()}-{os.getppid()}"
    elsewhere.mkdir()
    alive.mkdir()
    recover(target)
    assert text_of(target) == "old"
    assert names(tmp_path) == sorted([elsewhere.name, alive.name, "artifact"])
    write(target, "new")
    assert text_of(target) == "new"


def test_other_folders_and_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("precious", "file"):
        with pytest.raises(ArtifactError, match="not an artifact written by Bitsweep"):
            write(tmp_path / name)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "x"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert verify(tmp_path / "empty")


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="could not be written") as caught:
        write(tmp_path / "file" / "artifact")
    assert "free" not in str(caught.value)  # no space helps here
    assert "partial" not in str(caught.value)


def test_every_change_is_found(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    write(target)
    file = target / "sub" / "file.txt"
    file.write_text("nev")
    with pytest.raises(ArtifactError, match=r"file.txt is not what was written.*quantize again"):
        verify(target)
    file.write_text("ne")
    with pytest.raises(ArtifactError, match=r"file.txt has 2 bytes instead of 3.*quantize again"):
        verify(target)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"file.txt is missing, but artifact.json lists it"):
        verify(target)
    (target / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match=r"artifact.json cannot be read as JSON"):
        verify(target)
    (target / MANIFEST).write_text("[]")
    with pytest.raises(ArtifactError, match=r"artifact.json is not a JSON object"):
        verify(target)
    (target / MANIFEST).write_text('{"files": {"a": 3}}')
    with pytest.raises(ArtifactError, match=r"artifact.json does not list files"):
        verify(target)
    (target / MANIFEST).unlink()
    assert not verify(target)


def test_shards(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}
    write_tensors(tmp_path, [entry(name, tensor) for name, tensor in tensors.items()], 80)
    assert names(tmp_path) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 200}
    assert index["weight_map"]["t4"] == "model-00003-of-00003.safetensors"
    mode = (tmp_path / "model-00001-of-00003.safetensors").stat().st_mode
    assert mode == (tmp_path / "model.safetensors.index.json").stat().st_mode
    with TensorReader(tmp_path) as reader:
        assert sorted(reader.names) == sorted(tensors)
        assert all(torch.equal(reader.read(name), tensors[name]) for name in tensors)


def test_shards_that_are_missing_or_damaged(tmp_path: Path) -> None:
    tensors = [entry(f"t{i}", torch.zeros(10)) for i in range(3)]
    write_tensors(tmp_path, tensors, 80)
    index = tmp_path / "model.safetensors.index.json"
    mapping = json.loads(index.read_text())
    second = tmp_path / "model-00002-of-00002.safetensors"
    content = second.read_bytes()

    def opening(message: str) -> None:
        with pytest.raises(ArtifactError, match=message), TensorReader(tmp_path):
            pass

    second.write_bytes(content[:-4])
    opening(r"00002.safetensors cannot be read: .*cut short or is damaged. Delete")
    second.write_bytes(b"\xff" * 40)
    opening(r"00002.safetensors cannot be read")
    second.unlink()
    opening(r"00002.safetensors is missing, but model.safetensors.index.json names it")
    second.write_bytes(content)
    mapping["weight_map"]["t9"] = second.name
    index.write_text(json.dumps(mapping))
    opening(r"00002.safetensors does not contain t9, but .*index.json lists it")
    index.write_text("{}")
    opening(r"index.json has no weight_map")
    index.unlink()
    opening(r"no weights under a name that transformers reads .*: rename the right one")
