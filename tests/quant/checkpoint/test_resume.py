"""A quantization that is killed at any block goes on from there, and makes the same files."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import quant
from quant.calibrate.stream import quantize_model
from quant.checkpoint import partial
from quant.checkpoint.make import files_hash, quantize_to, windows_hash
from quant.checkpoint.source import CheckpointSource
from quant.config import QuantizationConfig
from quant.errors import ArtifactError, QuantizationError
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from tests.quant import killing
from tests.quant.architectures import BLOCKS, random_windows, tiny_model, uneven_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a run that nothing interrupted."""
    torch.set_num_threads(1)
    target = tmp_path_factory.mktemp("whole") / "artifact"
    assert killing.make(model, target).resumed == 0
    return target


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))}


def working_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


@pytest.mark.parametrize("activations", ["cpu", "disk"])
@pytest.mark.parametrize(
    ("when", "block", "kept"),
    [
        ("solved", 0, 0),
        ("writing", 0, 0),
        ("noted", 0, 1),
        ("writing", 1, 1),
        ("written", 1, 1),
        ("solved", 2, 2),
        ("noted", 2, 3),
    ],
)
def test_a_killed_run_is_continued_bit_for_bit(
    when: str, block: int, kept: int, activations: str, model: Path, whole: Path, tmp_path: Path
) -> None:
    target = tmp_path / "artifact"
    killing.kill(model, target, when, block, activations)
    assert not target.exists()
    result = killing.make(model, target, activations)
    assert result.resumed == kept
    assert files(target) == files(whole)
    assert not working_folder(target).exists()
    names = [layer.name for layer in result.layers]
    assert set(names) == set(quant.load_weights(whole))
    assert [layer.block for layer in result.layers] == sorted([*range(BLOCKS)] * 7)
    assert len(names) == len(set(names)) == 7 * BLOCKS
    assert ("resume" in {stage.name for stage in result.stages}) == (0 < kept < BLOCKS)


def test_a_run_may_be_killed_again_and_again(model: Path, whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    for block in range(BLOCKS):
        killing.kill(model, target, "noted", block)
    assert killing.make(model, target).resumed == BLOCKS
    assert files(target) == files(whole)


def test_rounding_is_continued_too(model: Path, tmp_path: Path) -> None:
    killing.make(model, tmp_path / "whole", "cpu", "rtn")
    for when, block, kept in (("noted", 1, 2), ("writing", 1, 1)):
        killing.kill(model, tmp_path / when, when, block, "cpu", "rtn")
        assert killing.make(model, tmp_path / when, "cpu", "rtn").resumed == kept
        assert files(tmp_path / when) == files(tmp_path / "whole")


def test_the_full_precision_model_goes_on_beside_the_quantized_one(
    model: Path, tmp_path: Path
) -> None:
    """Its hidden states pass through the original of every block that was finished."""
    killing.make(model, tmp_path / "whole", "cpu", "qronos")
    for activations, block in (("cpu", 0), ("disk", 1)):
        target = tmp_path / activations
        killing.kill(model, target, "noted", block, activations, "qronos")
        assert killing.make(model, target, activations, "qronos").resumed == block + 1
        assert files(target) == files(tmp_path / "whole")


def test_a_transformed_run_goes_on_with_the_norms_that_it_changed(tmp_path: Path) -> None:
    """The block after the ones that were finished is calibrated on what they make."""
    model, whole = tmp_path / "model", tmp_path / "whole"
    uneven_model("llama").save_pretrained(model)
    killing.make(model, whole, "cpu", "equalized")
    before, after = uneven_model("llama").state_dict(), quant.load(whole).state_dict()
    for index in range(BLOCKS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{index}.{norm}.weight"
            assert not torch.equal(after[name], before[name])
    for when, block, kept in (("noted", 0, 1), ("writing", 1, 1), ("noted", 1, 2)):
        target = tmp_path / f"{when}-{block}"
        killing.kill(model, target, when, block, "cpu", "equalized")
        result = killing.make(model, target, "cpu", "equalized")
        assert result.resumed == kept
        assert files(target) == files(whole)
        notes = {layer.name: layer.transforms for layer in result.layers}
        assert notes["model.layers.0.mlp.up_proj"] == ["equalize into post_attention_layernorm"]


def test_a_resumed_run_takes_what_was_folded_into_layers_from_the_blocks_it_finds(
    tmp_path: Path,
) -> None:
    """Rows of values and of fc1 are quantized with their scales; their biases lie beside them."""
    model, whole, target = (tmp_path / name for name in ("model", "whole", "target"))
    uneven_model("opt").save_pretrained(model)
    made = killing.make(model, whole, "cpu", "awq")
    notes = {layer.name: layer.transforms for layer in made.layers}
    assert notes["model.decoder.layers.0.fc2"] == ["awq into fc1"]
    before, after = uneven_model("opt").state_dict(), quant.load(whole).state_dict()
    name = "model.decoder.layers.0.fc1.bias"
    assert not torch.equal(after[name], before[name])
    killing.kill(model, target, "writing", 1, "cpu", "awq")
    assert killing.make(model, target, "cpu", "awq").resumed == 1
    assert files(target) == files(whole)


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "note"])
def test_a_block_that_was_damaged_meanwhile_is_made_again(
    damage: str, model: Path, whole: Path, tmp_path: Path
) -> None:
    target = tmp_path / "artifact"
    killing.kill(model, target, "noted", 2)
    shard = working_folder(target) / "artifact" / "model-00002-of-00004.safetensors"
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-5])
    elif damage == "lose":
        shard.unlink()
    else:
        (working_folder(target) / "blocks" / "00001.json").write_text("{")
    assert killing.make(model, target).resumed == 1, "block 1 and what was built on it"
    assert files(target) == files(whole)


def test_what_was_left_for_something_else_is_not_used(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "artifact"

    killing.kill(model, target, "noted", 1, "cpu", "rtn")
    left = tmp_path / "left"
    working_folder(target).rename(left)

    def resumed(**changes: object) -> int:
        shutil.copytree(left, working_folder(target))
        arguments = {"calibration": [], "scheme": killing.SCHEME, "hash": files_hash(model)}
        arguments |= {"dtype": torch.float32, "method": {"name": "rtn"}, **changes}
        with CheckpointSource(model, arguments["dtype"]) as source:
            plan = QuantizationConfig(rtn.SOLVER, arguments["scheme"], batch_tokens=50)
            result = quantize_to(
                target, source, arguments["calibration"], plan,
                model_hash=arguments["hash"], method=arguments["method"],
            )  # fmt: skip
        shutil.rmtree(target)
        return result.resumed

    assert resumed() == 2
    assert resumed(calibration=random_windows(1)) == 0
    assert resumed(scheme=Scheme(3)) == 0
    assert resumed(hash="another model") == 0
    assert resumed(dtype=torch.bfloat16) == 0
    assert resumed(method={"name": "rtn", "seed": 1}) == 0
    monkeypatch.setattr(partial, "code_hash", lambda: "another version")
    assert resumed() == 0


def test_an_error_keeps_the_finished_blocks(model: Path, tmp_path: Path) -> None:
    """The last block is broken: the others are there for the run after the repair."""
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    index = json.loads((broken / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.2.mlp.up_proj.weight"
    shard = broken / index[name]
    good, tensors = shard.read_bytes(), load_file(shard)
    tensors[name][3, 5] = torch.nan
    save_file(tensors, shard, metadata={"format": "pt"})
    digest = files_hash(model)

    def make() -> int:
        with CheckpointSource(broken, torch.float32) as source:
            plan = QuantizationConfig(rtn.SOLVER, killing.SCHEME)
            target = tmp_path / "artifact"
            method = {"name": "rtn"}
            return quantize_to(target, source, [], plan, model_hash=digest, method=method).resumed

    with pytest.raises(QuantizationError, match=r"layers\.2\.mlp\.up_proj: 1 of 1536 weights"):
        make()
    shard.write_bytes(good)
    assert make() == 2


def test_two_processes_do_not_make_the_same_artifact(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    making = partial.Making(target, killing.SCHEME, {}, {})
    making.folder.mkdir()
    with (
        partial._locked(making),
        pytest.raises(ArtifactError, match="is being made by another process"),
    ):
        killing.make(model, target)


def test_the_streamed_artifact_is_that_of_the_model_in_memory(model: Path, tmp_path: Path) -> None:
    """One path below, two above: the same weights and the same tensors beside them."""
    windows, plan = random_windows(5), QuantizationConfig(gptq.SOLVER, killing.SCHEME)
    with CheckpointSource(model, torch.float32) as source:
        quantize_to(tmp_path / "a", source, windows, plan, model_hash="m", method={"name": "gptq"})
    loaded = tiny_model("llama")
    result = quantize_model(loaded, windows, plan)
    quant.save(tmp_path / "b", loaded, result.weights, method={"name": "gptq"})
    one, other = (quant.load(tmp_path / name).state_dict() for name in "ab")
    assert set(one) == set(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert (tmp_path / "a" / "config.json").read_text() == (
        tmp_path / "b" / "config.json"
    ).read_text()


def test_a_full_disk_is_noticed_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ArtifactError, match="the disk has 1,000 bytes free"):
        killing.make(model, tmp_path / "artifact")


def test_calibration_windows_are_told_apart() -> None:
    one, two = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2])
    assert windows_hash([one]) == windows_hash([one.int()])
    assert len({windows_hash(w) for w in ([one], [two, two + 2], [two], [one.flip(0)], [])}) == 5
