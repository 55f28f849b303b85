"""pytorch_model*.bin folders become safetensors folders with the same tensors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from quant.checkpoint.convert import convert, main
from quant.checkpoint.source import CheckpointSource
from quant.errors import ArtifactError
from tests import warm
from tests.quant.architectures import tiny_model


def bin_folder(model: PreTrainedModel, folder: Path, files: int = 1) -> Path:
    """A folder as transformers once wrote it: pickled state dicts, tied tensors in both places."""
    model.config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    state = model.state_dict()
    if files == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    names = list(state)
    weight_map: dict[str, str] = {}
    for number in range(files):
        file = f"pytorch_model-{number + 1:05}-of-{files:05}.bin"
        part = {name: state[name].clone() for name in names[number::files]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def state(folder: Path) -> dict[str, Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("name", ["opt", "bloom", "llama"])
def test_the_command_of_the_error_makes_a_folder_that_streams(
    name: str, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = bin_folder(tiny_model(name), tmp_path / "old", files), tmp_path / "new"
    with pytest.raises(ArtifactError) as refused:
        CheckpointSource(source, torch.float32)
    command = str(refused.value).split("`")[1].replace("OUT", str(out)).split()
    assert command[:3] == ["python", "-m", "quant.checkpoint.convert"]
    if (name, files) == ("opt", 1):
        done = warm.run(command[1:])
        assert done.returncode == 0, done.stderr
    else:
        monkeypatch.setattr("sys.argv", command[2:])
        assert main() == 0
    expected = state(source)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state(out).items())
    assert not list(out.glob("*.bin*"))
    assert (out / "tokenizer.json").is_file()
    assert len(list(out.glob("*.safetensors"))) == files
    with CheckpointSource(out, torch.float32):
        pass


def test_two_tensors_of_the_model_that_share_memory_stay_two(tmp_path: Path) -> None:
    """A head that was tied when it was saved, in a model that says it is not."""
    model = tiny_model("llama")
    assert not model.config.tie_word_embeddings
    source = bin_folder(model, tmp_path / "old")
    shared = model.state_dict()
    shared["lm_head.weight"] = shared["model.embed_tokens.weight"]
    torch.save(shared, source / "pytorch_model.bin")
    out = convert(source, tmp_path / "new")
    assert load_file(out / "model.safetensors").keys() == shared.keys()
    assert all(torch.equal(tensor, shared[key]) for key, tensor in state(out).items())
    with CheckpointSource(out, torch.float32):
        pass


def test_files_from_before_zip_archives_are_read_too(tmp_path: Path) -> None:
    model = tiny_model("opt")
    source = bin_folder(model, tmp_path / "old")
    torch.save(
        model.state_dict(), source / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    convert(source, tmp_path / "new")
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in state(tmp_path / "new").items())


def test_what_cannot_be_converted_leaves_nothing(tmp_path: Path) -> None:
    def refused(message: str, source: Path, out: Path = tmp_path / "new") -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ArtifactError, match=message):
            convert(source, out)
        assert sorted(tmp_path.rglob("*")) == before

    source = bin_folder(tiny_model("opt"), tmp_path / "old", 2)
    (source / "pytorch_model-00002-of-00002.bin").write_bytes(b"PK no archive")
    refused(r"00002-of-00002\.bin cannot be read as a state dict", source)
    torch.save([1, 2], source / "pytorch_model-00002-of-00002.bin")
    refused("is not a plain state dict", source)
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    refused(r"00002-of-00002\.bin is missing", source)
    shutil.rmtree(source)


def test_a_wrong_folder_is_one_sentence_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = bin_folder(tiny_model("opt"), tmp_path / "old")
    (missing, empty, file, full, safe) = (
        tmp_path / name for name in ("missing", "empty", "file", "full", "safe")
    )
    empty.mkdir()
    file.write_text("")
    full.mkdir()
    (full / "notes.txt").write_text("keep me")
    safe.mkdir()
    (safe / "model.safetensors").write_text("")
    for arguments, sentence in (
        ((missing, "new"), f"{missing} does not exist; name the folder of the model, with "),
        ((file, "new"), f"{file} is a file; name the folder of the model, with "),
        ((empty, "new"), f"{empty} has no weights (model.safetensors or pytorch_model.bin"),
        ((safe, "new"), f"{safe} already has safetensors files; use it unchanged."),
        ((source, full), f"{full} is not empty (notes.txt, ...) and is not "),
        ((source, file), f"{file} is a file; name a folder that does not exist yet."),
        ((source, source), f"{source} is not empty (config.json, ...) and "),
    ):
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr("sys.argv", ["convert", *map(str, arguments)])
        assert main() == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), err[: len(sentence)]) == ("", 1, sentence)
        assert sorted(tmp_path.rglob("*")) == before


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('it ran')",))

    source = bin_folder(tiny_model("opt"), tmp_path / "old")
    torch.save({"x": Evil()}, source / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="cannot be read as a state dict"):
        convert(source, tmp_path / "new")
