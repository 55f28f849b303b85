"""Blocks read one at a time are the model that transformers loads, tensor by tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import quant
from quant.calibrate.capture import check_streaming, streamed_logits
from quant.calibrate.source import BlockSource, each_block
from quant.calibrate.stream import quantize_model
from quant.checkpoint.source import ArtifactSource, CheckpointSource, stored_names
from quant.config import QuantizationConfig
from quant.errors import ArtifactError
from quant.linear import QuantLinear
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.quant.architectures import BLOCKS, CONFIGS, random_windows, tiny_model

TIED = ["opt", "opt-350m", "bloom", "gpt2", "gemma", "gemma2", "falcon", "falcon-alibi"]


def state_of(source: BlockSource) -> dict[str, Tensor]:
    """Everything a source gives, with no more than one block in the model at a time."""
    found: dict[str, Tensor] = {}
    for index in each_block(source):
        state = source.model.state_dict()
        inside = {name for name in state if name.startswith(f"{source.blocks.name}.")}
        with_values = {name for name in inside if not state[name].is_meta}
        prefix = f"{source.blocks.block_name(index)}."
        assert {name for name in inside if name.startswith(prefix)} <= with_values
        other = [name for name in with_values if not name.startswith(prefix)]
        assert not any(isinstance(source.model.get_parameter(name), nn.Parameter) for name in other)
        found |= {name: state[name] for name in inside if name.startswith(prefix)}
    for name, tensor in source.model.state_dict().items():
        if not tensor.is_meta:
            found[name] = tensor
    return found


def same_state(source: BlockSource, expected: PreTrainedModel) -> None:
    found, state = state_of(source), expected.state_dict()
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    buffers = dict(source.model.named_buffers())
    for name, buffer in expected.named_buffers():
        assert torch.equal(buffers[name], buffer), name


def plain_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_is_read_as_transformers_reads_it(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tiny_model(name).save_pretrained(tmp_path, max_shard_size="20KB")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    with CheckpointSource(tmp_path, dtype) as source:
        same_state(source, expected)
        window_a, window_b, *more = random_windows(4)
        seen: list[int] = []
        check_streaming(source, window_a, window_b, seen.append)
        assert seen == list(range(BLOCKS))
        tokens = torch.stack(more)
        assert torch.equal(streamed_logits(source, tokens), plain_logits(expected, tokens))


@pytest.mark.parametrize("name", TIED)
def test_checkpoints_of_the_base_model_get_the_prefix_of_the_whole(
    name: str, tmp_path: Path
) -> None:
    tiny_model(name).base_model.save_pretrained(tmp_path)
    with CheckpointSource(tmp_path, torch.float32) as source:
        same_state(source, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


def test_names_of_other_writers_find_their_tensors(tmp_path: Path) -> None:
    """facebook/opt-* hold decoder.*, bigscience/bloom-* names without transformer."""
    for name, removed in (("opt", "model."), ("bloom", "transformer."), ("gpt2", "transformer.")):
        model, folder = tiny_model(name), tmp_path / name
        model.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        renamed = {key.removeprefix(removed): tensor for key, tensor in tensors.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        assert set(stored_names(model, renamed)) >= set(tensors)
        with CheckpointSource(folder, torch.float32) as source:
            same_state(source, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def test_tied_weights_that_are_stored_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("opt")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table = "model.decoder.embed_tokens.weight"
    for change in (0.0, 1.0):
        both = {**tensors, "lm_head.weight": tensors[table] + change}
        save_file(both, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with CheckpointSource(tmp_path, torch.float32) as source:
            head, embedding = source.model.lm_head.weight, source.model.get_parameter(table)
            assert (head is embedding) == (change == 0.0)
            same_state(source, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    assert "not tied" in caplog.text


def test_the_next_block_is_read_while_one_is_worked_on(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    with CheckpointSource(tmp_path, torch.float32) as source:
        order: list[str] = []
        fetch = source.fetch
        source.fetch = lambda index: order.append(f"read {index}") or fetch(index)  # type: ignore
        release = source.release
        source.release = lambda index: order.append(f"free {index}") or release(index)  # type: ignore
        for index in each_block(source):
            while order.count(f"read {index + 1}") == 0 and index + 1 < BLOCKS:
                pass  # the thread of the next block
            assert f"read {index + 2}" not in order
            order.append(f"work {index}")
        assert [step for step in order if not step.startswith("read")] == [
            f"{what} {index}" for index in range(BLOCKS) for what in ("work", "free")
        ]


def test_an_error_of_the_reading_thread_reaches_the_caller(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    with CheckpointSource(tmp_path, torch.float32) as source:
        fetch = source.fetch

        def broken(index: int) -> dict[str, Tensor]:
            if index == 1:
                raise OSError("the disk is gone")
            return fetch(index)

        source.fetch = broken  # type: ignore[method-assign]
        blocks = each_block(source)
        assert next(blocks) == 0
        with pytest.raises(OSError, match="the disk is gone"):
            next(blocks)
        assert all(p.is_meta for p in source.blocks.modules.parameters())


def damage(folder: Path, change: dict[str, Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_cannot_be_read_is_said_before_anything_is_read(tmp_path: Path) -> None:
    def refused(message: str, folder: Path = tmp_path) -> None:
        with pytest.raises(ArtifactError, match=message):
            CheckpointSource(folder, torch.float32)

    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    up = "model.layers.1.mlp.up_proj.weight"
    damage(tmp_path, {up: torch.zeros(48, 31)})
    refused(rf"hold {up} \[48, 31\], which is another shape than config.json makes")
    damage(tmp_path, {up: None})
    refused(f"the files hold no values for {up} of LlamaForCausalLM: config.json and weights")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused(r"model\.safetensors cannot be read: .* Copy .* again from where it came from")
    file.unlink()
    refused(r"has no weights \(model\.safetensors or")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    refused(f"`python -m quant.checkpoint.convert {tmp_path} OUT`")

    model.model.save_pretrained(tmp_path / "base")
    refused(r"lm_head.weight .* save the whole model \(AutoModelForCausalLM\)", tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "nobody"}))
    refused(r"does not describe a model that transformers (?s:.*) Copy", tmp_path / "base")


def test_quantized_models_are_not_quantized_again(tmp_path: Path) -> None:
    model = tiny_model("opt")
    result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, Scheme(4)))
    quant.save(tmp_path / "a", model, result.weights, method={"name": "rtn"})
    with pytest.raises(ArtifactError, match="the model is already quantized"):
        CheckpointSource(tmp_path / "a", torch.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_artifacts_stream_with_the_logits_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, Scheme(4, group_size=16)))
    quant.save(
        tmp_path / "a", model, result.weights, method={"name": "rtn"}, max_shard_bytes=20_000
    )
    tokens = torch.stack(random_windows(2))
    for dtype in (None, torch.bfloat16):
        expected = plain_logits(quant.load(tmp_path / "a", dtype=dtype), tokens)
        with ArtifactSource(tmp_path / "a", dtype=dtype) as source:
            assert torch.equal(streamed_logits(source, tokens), expected)
            for index in each_block(source):
                packed = [m for m in source.model.modules() if isinstance(m, QuantLinear)]
                assert len(packed) == len(source._layers_of(index))
            assert not any(isinstance(m, QuantLinear) for m in source.model.modules())


def test_damaged_artifacts_are_refused_by_the_streamed_reader_too(tmp_path: Path) -> None:
    model = tiny_model("opt")
    result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, Scheme(4)))
    folder = quant.save(tmp_path / "a", model, result.weights, method={"name": "rtn"})
    damage(folder, {"model.decoder.layers.1.fc1.bias": None})
    with pytest.raises(ArtifactError, match=r"sha256 differs|instead of"):
        ArtifactSource(folder)
    with pytest.raises(ArtifactError, match=r"layers\.1\.fc1\.bias is in none of its files"):
        ArtifactSource(folder, verify_files=False)
    damage(
        folder,
        {
            "model.decoder.layers.1.fc1.bias": torch.zeros(64),
            "model.decoder.layers.0.nothing": torch.zeros(3),
        },
    )
    with pytest.raises(ArtifactError, match=r"layers\.0\.nothing, which OPTForCausalLM does not"):
        ArtifactSource(folder, verify_files=False)
