"""The build: one library for one set of sources, and the exact reason where there is none."""

import subprocess
import sys
from pathlib import Path

import pytest

from cuda_ext import build


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def tiny_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one function, so that building it takes no time."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(build, "SOURCES", folder)
    return folder


def compiler_or_skip() -> None:
    try:
        build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BITSWEEP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "bitsweep" / "kernels"
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "own"))
    assert build.cache_folder() == tmp_path / "own" / "kernels"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler .*is on PATH; install one"):
        build.build()
    assert "no C++ compiler" in build.status().reason
    monkeypatch.setenv("CXX", "g++-of-nowhere -O1")
    with pytest.raises(build.BuildError, match=r"CXX=g.*nowhere -O1 is not a program"):
        build.build()


def test_built_once_and_again_for_other_sources(own_cache: Path, tiny_sources: Path) -> None:
    compiler_or_skip()
    first = build.build()
    made = first.stat().st_mtime_ns
    assert own_cache in first.parents
    assert build.build() == first
    assert first.stat().st_mtime_ns == made
    assert build.status().library == first
    (tiny_sources / "two.h").write_text("// a header counts too\n")
    assert build.status().library is None
    assert build.status().reason.startswith("not built yet")
    assert build.build() != first


def test_a_failure_says_why_and_is_not_repeated(
    own_cache: Path, tiny_sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler_or_skip()
    (tiny_sources / "one.cpp").write_text("int one() { return missing; }\n")
    with pytest.raises(build.BuildError, match=r"missing.*not declared|undeclared"):
        build.build()
    monkeypatch.setattr(build, "_make", lambda *_: pytest.fail("built again"))
    with pytest.raises(build.BuildError, match=r"python -m cuda_ext.build"):
        build.build()
    assert "missing" in build.status().reason


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, tiny_sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler_or_skip()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match=r"cannot be written.*set BITSWEEP_CACHE"):
        build.build()


def test_processes_at_once_build_one_library(own_cache: Path, tiny_sources: Path) -> None:
    compiler_or_skip()
    script = (
        "import sys; from pathlib import Path; from cuda_ext import build;"
        f"build.SOURCES = Path({str(tiny_sources)!r}); print(build.build())"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert sum("building the CPU kernels" in errors for _, errors in outputs) == 1
