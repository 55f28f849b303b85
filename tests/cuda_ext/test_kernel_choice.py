"""The choice of a kernel without torch: what the disk says, and when it is not believed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cuda_ext import build, installed, kernels, ops, packed, proven, toolchain
from tests import warm

RESOLVE = """
import sys
from cuda_ext.kernels import resolve_kernel
print(resolve_kernel("auto"), resolve_kernel("cpu", "cpu:0"), "torch" in sys.modules)
"""
CHECKED = """
from cuda_ext import ops
print(ops.resolve_kernel("cpu"))
"""


def fresh(script: str) -> subprocess.CompletedProcess[str]:
    """A new process, for nothing is remembered there and torch is not imported yet."""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def built() -> build.Library:
    """The library of the real sources, which operators can be registered from."""
    try:
        return packed.load()
    except build.BuildError as error:
        pytest.skip(f"no kernels here: {error}")


@pytest.fixture
def own_cache(built: build.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a copy of the library that nobody loaded yet: the folder of that entry."""
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path))
    entry = tmp_path / "kernels" / built.path.parent.name
    entry.mkdir(parents=True)
    for name in (build.LIBRARY, "build.json"):
        (entry / name).write_bytes((built.path.parent / name).read_bytes())
    return entry


def markers(entry: Path) -> list[Path]:
    return sorted(entry.glob("loaded-*"))


def test_torch_is_read_from_its_files_as_it_says_itself() -> None:
    assert installed.torch_version() == torch.__version__
    assert installed.torch_cuda() == torch.version.cuda
    assert installed.torch_folder() == Path(torch.__file__).parent
    assert torch.compiled_with_cxx11_abi(), "toolchain._common says so for every torch"


def test_a_library_that_was_loaded_before_is_believed(own_cache: Path) -> None:
    first = fresh(RESOLVE)
    assert first.stdout.split() == ["cpu", "cpu", "True"], first.stderr
    (marker,) = markers(own_cache)
    assert marker.read_text() == proven.digest(own_cache / build.LIBRARY)
    second = fresh(RESOLVE)
    assert second.stdout.split() == ["cpu", "cpu", "False"], second.stderr


def test_a_library_that_was_cut_short_is_never_loaded(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading one ends the process by SIGBUS. Without a compiler nothing takes its place."""
    monkeypatch.setenv("CXX", "compiler-of-nowhere")
    assert warm.run(["-c", CHECKED]).stdout.split() == ["cpu"]
    assert fresh(RESOLVE).stdout.split() == ["cpu", "cpu", "False"], "the checked choice marks too"
    library = own_cache / build.LIBRARY
    whole = library.read_bytes()
    library.write_bytes(whole[: 1 << 16])
    for refused in (warm.run(["-c", CHECKED]), fresh(RESOLVE)):
        assert refused.returncode == 1, "and no signal"
        assert "KernelUnavailable: kernel='cpu' is not available: CXX=compiler-of" in refused.stderr
    library.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert build._notes(own_cache) is None, "a bit that turned over, too"


def test_no_marker_for_a_library_that_does_not_load(own_cache: Path) -> None:
    library, notes = own_cache / build.LIBRARY, own_cache / "build.json"
    library.write_bytes(b"no library")
    said = {**json.loads(notes.read_text()), "bytes": 10, "sha256": proven.digest(library)}
    notes.write_text(json.dumps(said))
    failed = warm.run(["-c", RESOLVE])
    assert failed.returncode == 1
    assert "cannot be loaded" in failed.stderr
    assert markers(own_cache) == []


def test_the_marker_is_for_this_library_this_torch_and_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / build.LIBRARY
    library.write_bytes(b"one")
    assert not proven.loaded_before(library)
    proven.note_loaded(library, proven.digest(library))
    assert proven.loaded_before(library)
    library.write_bytes(b"two")  # built again
    assert not proven.loaded_before(library)
    proven.note_loaded(library, proven.digest(library))
    assert proven.loaded_before(library)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : sse2\n")
    for owner, name, value in (
        (installed, "torch_version", lambda: "2.99.0"),
        (installed, "torch_folder", lambda: Path("/elsewhere/torch")),
        (proven.platform, "machine", lambda: "riscv64"),
        (proven, "_CPUINFO", cpuinfo),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            proven._here.cache_clear()
            assert not proven.loaded_before(library), name
    proven._here.cache_clear()
    assert proven.loaded_before(library)
    next(tmp_path.glob("loaded-*")).write_bytes(b"\xff")
    assert not proven.loaded_before(library)


def test_a_cache_for_reading_only_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cuda_ext")
    proven.note_loaded(tmp_path / "file-in-the-way" / build.LIBRARY, "0" * 64)
    assert not caplog.records
    (tmp_path / "file").write_text("")
    proven.note_loaded(tmp_path / "file" / build.LIBRARY, "0" * 64)
    assert "plans will load the kernels again" in caplog.text


def test_the_reasons_are_those_of_the_checked_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def message(choice: object, *arguments: str) -> str:
        with pytest.raises((kernels.KernelUnavailable, ValueError)) as caught:
            choice(*arguments)  # type: ignore[operator]
        return f"{type(caught.value).__name__}: {caught.value}"

    monkeypatch.setattr(toolchain, "visible_capabilities", lambda: ())
    for arguments in (("fast",), ("cuda", "cuda:0"), ("cpu", "meta"), ("cuda", "cpu")):
        found = message(kernels.resolve_kernel, *arguments)
        assert found == message(ops.resolve_kernel, *arguments)
    assert kernels.resolve_kernel("reference", "cuda") == "reference"
    assert kernels.resolve_kernel("auto", "meta") == "reference"

    def no_compiler() -> build.Library:
        raise build.BuildError("no C++ compiler is on PATH; install one.")

    monkeypatch.setattr(build, "loadable", no_compiler)
    assert kernels.resolve_kernel("auto") == "reference"
    assert "no C++ compiler" in message(kernels.resolve_kernel, "cpu")


def test_no_compiler_is_said_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "g++-of-nowhere")
    script = RESOLVE.replace('resolve_kernel("cpu", "cpu:0")', '"-"')
    completed = fresh(script)
    assert completed.stdout.split() == ["reference", "-", "False"]
    assert "CXX=g++-of-nowhere is not a program here" in completed.stderr
