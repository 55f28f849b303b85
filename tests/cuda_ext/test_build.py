"""The build: one library for one set of sources, and the exact reason where there is none."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_ext import build, objects, toolchain


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path))
    monkeypatch.delenv("BITSWEEP_CUDA_ARCHS", raising=False)
    return tmp_path


@pytest.fixture
def tiny_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one function and one of CUDA, so that building it takes no time."""
    folder = tmp_path / "csrc"
    (folder / "cuda").mkdir(parents=True)
    (folder / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    (folder / "cuda" / "two.cu").write_text("int two() { return 2; }\n")
    monkeypatch.setattr(toolchain, "SOURCES", folder)
    return folder


@pytest.fixture
def compiler() -> str:
    try:
        return toolchain.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> Path:
    """A program that answers as nvcc 13 and compiles by the C++ compiler, without its own flags."""
    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    program.write_text(
        f"""#!{sys.executable}
import subprocess, sys
words = sys.argv[1:]
if words == ["--version"]:
    print("Cuda compilation tools, release 13.0, V13.0.88")
elif words == ["--list-gpu-code"]:
    print("sm_75 sm_80 sm_86 sm_89 sm_90")
elif words == ["--list-gpu-arch"]:
    print("compute_75 compute_80 compute_90")
else:
    kept = []
    while words:
        word = words.pop(0)
        if word in ("-ccbin", "-Xcompiler", "-Xlinker", "-gencode"):
            words.pop(0)
        elif word not in ("-lineinfo", "-cudart=static"):
            kept += ["-x", "c++", word] if word.endswith(".cu") else [word]
    sys.exit(subprocess.call([{compiler!r}, "-fPIC", *kept]))
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("NVCC", str(program))
    return program


def see(monkeypatch: pytest.MonkeyPatch, *capabilities: toolchain.Capability) -> None:
    monkeypatch.setattr(toolchain, "visible_capabilities", lambda: capabilities)


def test_the_library_has_the_product_s_name() -> None:
    assert build.LIBRARY == "libbitsweep_kernels.so"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BITSWEEP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "bitsweep" / "kernels"
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "own"))
    assert build.cache_folder() == tmp_path / "own" / "kernels"


def test_no_compiler(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(own_cache))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler .*is on PATH; install one"):
        build.find_or_build()
    assert "no C++ compiler" in build.status().reason
    assert "no C++ compiler" in build.status().compiler
    monkeypatch.setenv("CXX", "g++-of-nowhere -O1")
    with pytest.raises(build.BuildError, match=r"CXX=g.*nowhere -O1 is not a program"):
        build.find_or_build()


def test_built_once_and_again_for_other_sources(
    own_cache: Path, tiny_sources: Path, compiler: str
) -> None:
    first = build.find_or_build()
    made = first.path.stat().st_mtime_ns
    assert own_cache in first.path.parents
    assert first.architectures == ()
    assert build.find_or_build() == first
    assert first.path.stat().st_mtime_ns == made
    assert build.status().library == first
    (tiny_sources / "two.h").write_text("// a header counts too\n")
    assert build.status().library is None
    assert build.status().reason.startswith("not built yet")
    assert build.find_or_build().path != first.path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (build.LIBRARY, b"\x7fELF"),
        (build.LIBRARY, None),
        ("build.json", b"{"),
        ("build.json", b"[]"),
        ("build.json", b'{"architectures": []}'),
        ("build.json", None),
    ],
)
def test_an_entry_that_does_not_agree_with_itself_is_built_again(
    own_cache: Path, tiny_sources: Path, compiler: str, name: str, content: bytes | None
) -> None:
    found = build.find_or_build()
    folder, whole = found.path.parent, found.path.read_bytes()
    (folder / "tmpkilled").mkdir()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert build.status().library is None
    assert build.find_or_build() == found
    assert found.path.stat().st_size == len(whole)
    assert json.loads((folder / "build.json").read_text())["bytes"] == len(whole)
    assert not list(folder.glob("tmp*")), "the objects of a killed build"
    made = found.path.stat().st_mtime_ns
    assert build.build(build.first_use_tools()) == found
    assert found.path.stat().st_mtime_ns == made


def test_libraries_share_the_objects_of_the_cpu(
    own_cache: Path, tiny_sources: Path, fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, started = objects.run, []
    monkeypatch.setattr(objects, "run", lambda c, verbose: (started.append(c), run(c, verbose)))

    def compiled(*, again: bool = False) -> list[str]:
        started.clear()
        library = build.build(build.ahead_of_time_tools(), again=again)
        assert ctypes.CDLL(str(library.path))
        words = [word for command in started for word in command]
        return sorted(Path(word).name for word in words if word.endswith((".cpp", ".cu")))

    monkeypatch.setenv("BITSWEEP_CUDA_ARCHS", "none")
    assert compiled() == ["one.cpp"]
    monkeypatch.setenv("BITSWEEP_CUDA_ARCHS", "sm_90")
    assert compiled() == ["two.cu"]
    assert compiled(again=True) == ["one.cpp", "two.cu"]
    (tiny_sources / "two.h").write_text("// may be included\n")
    assert compiled() == ["one.cpp", "two.cu"]


def test_a_failure_says_why_and_is_not_repeated(
    own_cache: Path, tiny_sources: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny_sources / "one.cpp").write_text("int one() { return missing; }\n")
    with pytest.raises(build.BuildError, match=r"missing.*not declared|undeclared"):
        build.find_or_build()
    monkeypatch.setattr(build, "_make", lambda *_: pytest.fail("built again"))
    with pytest.raises(build.BuildError, match=r"python -m cuda_ext.build"):
        build.find_or_build()
    assert "missing" in build.status().reason


def test_a_cache_that_cannot_be_written(
    own_cache: Path, tiny_sources: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_cache / "file").write_text("")
    monkeypatch.setenv("BITSWEEP_CACHE", str(own_cache / "file"))
    with pytest.raises(build.BuildError, match=r"cannot be written.*set BITSWEEP_CACHE"):
        build.find_or_build()


def test_processes_at_once_build_one_library(
    own_cache: Path, tiny_sources: Path, compiler: str
) -> None:
    script = (
        "from pathlib import Path; from cuda_ext import build, toolchain;"
        f"toolchain.SOURCES = Path({str(tiny_sources)!r}); print(build.find_or_build().path)"
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
    outputs = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert sum("building the CPU kernels" in errors for _, errors in outputs) == 1


def test_first_use_builds_for_the_gpus_that_are_seen(
    own_cache: Path, tiny_sources: Path, fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch)
    assert build.find_or_build().architectures == ()
    assert build.find_or_build().without_cuda == "it was built where no GPU was seen."
    see(monkeypatch, (8, 6), (9, 0))
    found = build.find_or_build()
    assert found.architectures == ("sm_86", "sm_90")
    assert found.without_cuda is None
    # Seen again without a GPU, or with one of the two: the library that is there does.
    see(monkeypatch)
    assert build.find_or_build() == found
    see(monkeypatch, (9, 0))
    assert build.find_or_build() == found
    notes = json.loads((found.path.parent / "build.json").read_text())
    assert "-gencode arch=compute_86,code=sm_86" in notes["commands"]["cuda/two.cu"]
    assert "nvcc" not in notes["commands"]["one.cpp"]


@pytest.mark.parametrize(("word", "status"), [("--help", 0), ("sm_90", 2)])
def test_a_word_that_is_no_request_builds_nothing(
    word: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(SystemExit) as end:
        build.main([word])
    assert end.value.code == status


def test_a_library_from_ahead_of_time_is_preferred(
    own_cache: Path, tiny_sources: Path, fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.main() == 0
    see(monkeypatch, (9, 0))
    monkeypatch.setattr(build, "_make", lambda *_: pytest.fail("built although it is there"))
    found = build.find_or_build()
    assert found.architectures == toolchain.ALL_ARCHITECTURES
    see(monkeypatch, (12, 0))
    assert build.find_or_build() == found  # by its PTX
    # Another node of the cluster: the same cache, and no compilers at all.
    monkeypatch.setenv("PATH", str(own_cache))
    monkeypatch.delenv("NVCC")
    monkeypatch.setattr(
        toolchain, "find_nvcc", lambda: (_ for _ in ()).throw(build.BuildError("no nvcc"))
    )
    assert build.find_or_build() == found


def test_the_environment_overrides_the_architectures(
    own_cache: Path, tiny_sources: Path, fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch)
    monkeypatch.setenv("BITSWEEP_CUDA_ARCHS", "compute_90, sm_90")
    assert build.find_or_build().architectures == ("sm_90", "compute_90")
    monkeypatch.setenv("BITSWEEP_CUDA_ARCHS", "none")
    found = build.find_or_build()
    assert found.architectures == ()
    assert found.without_cuda == "BITSWEEP_CUDA_ARCHS=none leaves it out."
    monkeypatch.setenv("BITSWEEP_CUDA_ARCHS", "9.0")
    with pytest.raises(build.BuildError, match=r"BITSWEEP_CUDA_ARCHS=9.0: '9.0' is not an archit"):
        build.find_or_build()
    assert "is not an architecture" in build.status().reason


def test_nvcc_that_fails_leaves_the_cpu_kernels(
    own_cache: Path,
    tiny_sources: Path,
    fake_nvcc: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tiny_sources / "cuda" / "two.cu").write_text("int two() { return missing; }\n")
    see(monkeypatch, (9, 0))
    found = build.find_or_build()
    assert found.architectures == ()
    assert found.path.is_file()
    assert found.without_cuda is not None
    assert found.without_cuda.startswith("nvcc failed: ")
    assert "missing" in found.without_cuda
    assert "no CUDA kernels: nvcc failed" in caplog.text
    assert build.main() == 1  # asked for ahead of time, it is an error
    monkeypatch.setattr(build, "_make", lambda *_: pytest.fail("built again"))
    assert build.find_or_build() == found


def test_a_gpu_without_nvcc_says_so(
    own_cache: Path, tiny_sources: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, (9, 0))
    monkeypatch.setenv("NVCC", "nvcc-of-nowhere")
    found = build.find_or_build()
    assert (
        found.without_cuda == "NVCC=nvcc-of-nowhere is not a program here; correct it or unset it."
    )
    assert build.find_or_build() == found
    assert build.status().library == found
