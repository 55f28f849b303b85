"""A scheme that quantizes the language-model head: quantization, artifacts, streaming, formats."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

import quant
from quant.calibrate.capture import streamed_logits
from quant.calibrate.head import quantize_outside
from quant.calibrate.stream import QuantizationResult, quantize_model
from quant.checkpoint.inspection import inspect
from quant.checkpoint.loader import read_scheme
from quant.checkpoint.make import quantize_to
from quant.checkpoint.partial import PartialArtifact
from quant.checkpoint.source import ArtifactSource, CheckpointSource
from quant.config import QuantizationConfig
from quant.decode.caches import FUSED
from quant.decode.choose import make_decoder
from quant.errors import ArtifactError, ModelStructureError, NonFiniteError
from quant.head import find_head, is_head, means_head
from quant.linear import QuantLinear
from quant.measure.dummy import build_dummy, predict_memory
from quant.measure.roofline import embedding_bytes, weight_bytes, weight_bytes_per_token
from quant.memory.limits import Limits
from quant.memory.plan import plan_quantization
from quant.memory.shapes import model_shape
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from tests.oracles import textbook_unpack
from tests.quant.architectures import BLOCKS, HIDDEN, VOCABULARY, random_windows, tiny_model
from tests.quant.checkpoint.test_compressed_tensors_library import read_by_the_library

HEAD = Scheme(8, group_size=8)
SCHEME = Scheme(4, group_size=16, head=HEAD)
METHOD = {"name": "rtn"}
WINDOWS = random_windows(3)
TIED, APART = "opt", "llama"  # llama's head is stored apart from its embedding
TOKENS = torch.stack(random_windows(2, seed=9))


def rounded(weight: Tensor, bits: int, size: int) -> Tensor:
    """float64: weight [out, in] on the paper's min-max grids, whose scales are float16."""
    weight, found = weight.double(), torch.empty(weight.shape, dtype=torch.float64)
    for row, first in ((r, c) for r in range(len(weight)) for c in range(0, weight.shape[1], size)):
        part = weight[row, first : first + size]
        low, high = min(0.0, float(part.min())), max(0.0, float(part.max()))
        scale = float(torch.tensor((high - low) / (2**bits - 1)).half())
        zero = min(max(round(-low / scale), 0), 2**bits - 1)
        codes = (torch.round(part / scale) + zero).clamp(0, 2**bits - 1)
        found[row, first : first + size] = scale * (codes - zero)
    return found


def table_of(model: PreTrainedModel) -> Tensor:
    return model.get_input_embeddings().weight.detach().clone()


def made(name: str, scheme: Scheme = SCHEME) -> tuple[PreTrainedModel, QuantizationResult]:
    model = tiny_model(name)
    return model, quantize_model(model, [], QuantizationConfig(rtn.SOLVER, scheme))


def saved(folder: Path, name: str, scheme: Scheme = SCHEME) -> tuple[PreTrainedModel, Path]:
    model, result = made(name, scheme)
    return model, quant.save(folder, model, result.weights, method=METHOD)


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", [TIED, APART])
def test_the_packed_head_multiplies_by_the_textbooks_values(name: str, tmp_path: Path) -> None:
    plain = tiny_model(name)
    head = plain.get_output_embeddings().weight.detach()
    model, folder = saved(tmp_path / "artifact", name)
    loaded = quant.load(folder)
    seen: list[Tensor] = []
    loaded.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        logits = loaded(TOKENS).logits
    expected = seen[0].double() @ rounded(head, 8, 8).T
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    with torch.no_grad():  # the model in memory is the simulated one
        torch.testing.assert_close(logits, model(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [TIED, APART])
def test_the_embedding_keeps_its_values_and_is_stored_once(name: str, tmp_path: Path) -> None:
    plain, (model, folder) = tiny_model(name), saved(tmp_path / "artifact", name)
    loaded = quant.load(folder)
    assert isinstance(loaded.get_output_embeddings(), QuantLinear)
    for each in (model, loaded):
        assert torch.equal(table_of(each), table_of(plain))
        assert each.config.tie_word_embeddings is False
    assert config_of(folder)["tie_word_embeddings"] is False
    tensors = load_file(folder / "model.safetensors")
    assert {n.partition(".")[2] for n in tensors if n.startswith("lm_head.")} == {
        "qweight", "qzeros", "scales", "g_idx",
    }  # fmt: skip
    expected = textbook_unpack.gptq(
        {n: tensors[f"lm_head.{n}"] for n in ("qweight", "qzeros", "scales", "g_idx")}, 8, 2
    )
    head = plain.get_output_embeddings().weight.detach()
    assert torch.equal(expected, rounded(head, 8, 8))


def test_the_configuration_says_the_settings_of_the_head(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "artifact", APART)
    said = config_of(folder)["quantization_config"]
    own = {"bits": 8, "group_size": 8, "sym": False, "desc_act": False}
    assert (said["bits"], said["group_size"], said["lm_head"]) == (4, 16, True)
    assert said["dynamic"] == {"+:^lm_head$": own}
    assert said["modules_in_block_to_quantize"][0][-1] == "lm_head"
    assert read_scheme(folder)[1] == SCHEME
    # With the settings of the layers nothing is overridden.
    alike = Scheme(4, group_size=16)
    _, folder = saved(tmp_path / "alike", APART, Scheme(4, group_size=16, head=alike))
    said = config_of(folder)["quantization_config"]
    assert said["lm_head"] is True
    assert "dynamic" not in said
    assert read_scheme(folder)[1].name == "w4g16_head_w4g16"


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(4, group_size=16, symmetric=True, head=Scheme(8, grid="mse", symmetric=True)),
        Scheme(2, group_size=16, head=Scheme(8, group_size=8, scale_dtype="float32")),
        Scheme(2, levels="ternary", head=HEAD),
        Scheme(2, levels="ternary", head=Scheme(2, group_size=8, levels="ternary")),
        Scheme(3, group_size=16, head=Scheme(6, group_size=12)),
    ],
    ids=lambda scheme: scheme.name,
)
def test_any_scheme_comes_back_from_an_artifact(scheme: Scheme, tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "artifact", TIED, scheme)
    assert read_scheme(folder)[1] == scheme
    loaded = quant.load(folder)
    assert loaded.lm_head.scheme == scheme.head
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, rtol=0, atol=1e-4)
    found = inspect(folder)
    assert found.scheme == scheme
    assert found.layers == BLOCKS * 6 + 1
    again = quant.export(folder, tmp_path / "again", found_format(scheme)).folder
    assert read_scheme(again)[1] == scheme
    assert torch.equal(quant.load(again)(TOKENS).logits, loaded(TOKENS).logits)


def found_format(scheme: Scheme) -> str:
    return "gptq-v2" if scheme.kind.name == "uniform" else "bitsweep-ternary"


@pytest.mark.parametrize("solver", [rtn.SOLVER, gptq.SOLVER], ids=lambda solver: solver.name)
@pytest.mark.parametrize("name", [TIED, APART, "gpt-neox", "gpt2"])
def test_streamed_is_in_memory(name: str, solver: Any, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path / "model")
    config = QuantizationConfig(solver, SCHEME)
    model = tiny_model(name)
    result = quantize_model(model, WINDOWS, config)
    whole = quant.save(tmp_path / "whole", model, result.weights, method=METHOD)
    with CheckpointSource(tmp_path / "model", torch.float32) as source:
        streamed = quantize_to(
            tmp_path / "streamed", source, WINDOWS, config, model_hash="x", method=METHOD
        )
    assert streamed.head is not None
    assert result.head == replace(streamed.head, seconds=result.head.seconds)
    one, other = (quant.load_weights(folder) for folder in (whole, tmp_path / "streamed"))
    assert one.keys() == other.keys() == result.weights.keys()
    for layer, weight in one.items():
        assert torch.equal(weight.codes, other[layer].codes), layer
    first, second = (config_of(folder) for folder in (whole, tmp_path / "streamed"))
    assert first == second
    with ArtifactSource(tmp_path / "streamed") as packed, torch.no_grad():
        expected = quant.load(tmp_path / "streamed")(TOKENS).logits
        assert torch.equal(streamed_logits(packed, TOKENS), expected)


def test_the_result_says_what_was_done_with_the_head() -> None:
    _, result = made(TIED)
    head = result.head
    assert head is not None
    assert all(not is_head(layer.name) for layer in result.layers)
    assert (head.name, head.block, head.method, head.scheme) == (
        "lm_head", BLOCKS, "rtn", "w8g8",
    )  # fmt: skip
    assert (head.outputs, head.inputs) == (VOCABULARY, HIDDEN)
    assert head.bits_per_weight == 8 + (16 + 8) / 8
    weight = table_of(tiny_model(TIED)).double()
    error = torch.linalg.vector_norm(weight - rounded(weight, 8, 8))
    assert head.weight_error == pytest.approx(
        float(error / torch.linalg.vector_norm(weight)), rel=1e-5
    )


def test_rows_are_rounded_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(APART)
    matrix = model.lm_head.weight.detach()
    _, whole = quantize_outside("lm_head", matrix, HEAD, 0, keep=False)
    monkeypatch.setattr("quant.calibrate.head.AT_ONCE", 5 * HIDDEN)
    _, parts = quantize_outside("lm_head", matrix, HEAD, 0, keep=False)
    assert torch.equal(whole.codes, parts.codes)
    assert all(torch.equal(whole.grid[name], parts.grid[name]) for name in whole.grid)


def test_without_a_head_nothing_is_said_of_it(tmp_path: Path) -> None:
    scheme = SCHEME.without_head
    model, folder = saved(tmp_path / "artifact", TIED, scheme)
    said = config_of(folder)["quantization_config"]
    assert said["lm_head"] is False
    assert "dynamic" not in said
    assert "head_grid" not in said["meta"]
    assert config_of(folder)["tie_word_embeddings"] is True
    assert "head" not in QuantizationConfig(rtn.SOLVER, scheme).identity()["scheme"]
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_model_without_a_head_to_pack_is_refused() -> None:
    model = tiny_model(APART)
    model.lm_head.weight.data[3, 5] = float("nan")
    with pytest.raises(NonFiniteError, match="lm_head: 1 of"):
        quantize_model(model, [], QuantizationConfig(rtn.SOLVER, SCHEME))
    model.set_output_embeddings(torch.nn.Sequential())
    with pytest.raises(ModelStructureError, match=r"lm_head, a Sequential; .* leave scheme\.head"):
        find_head(model)


def test_compressed_tensors_has_a_group_for_the_head(tmp_path: Path) -> None:
    for name, symmetric in ((TIED, True), (APART, True), (APART, False)):
        head = Scheme(8, group_size=8, symmetric=symmetric)
        scheme = Scheme(4, group_size=16, symmetric=True, head=head)
        place = tmp_path / f"{name}{symmetric}"
        model, folder = saved(place / "a", name, scheme)
        exported = quant.export(folder, place / "b", "compressed-tensors")
        assert any("does not load asymmetric" in note for note in exported.notes) != symmetric
        groups = config_of(exported.folder)["quantization_config"]["config_groups"]
        assert [(each["targets"], each["weights"]["num_bits"]) for each in groups.values()] == [
            (["Linear"], 4), (["lm_head"], 8),
        ]  # fmt: skip
        assert any("quantized head" in note for note in exported.notes)
        found = read_scheme(exported.folder)[1]  # the library's scales have the model's dtype
        assert found.name == f"w4g16_sym_fp32_head_w8g8{'_sym' * symmetric}_fp32"
        with torch.no_grad():
            if symmetric:
                theirs = read_by_the_library(exported.folder)
                assert torch.equal(theirs(TOKENS).logits, model(TOKENS).logits)
            else:  # dequantizing would be silent, with the settings of one group for both
                assert "dequantize" not in config_of(exported.folder)["quantization_config"]
                with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
                    read_by_the_library(exported.folder)
            ours = quant.load(exported.folder)(TOKENS).logits
            torch.testing.assert_close(ours, model(TOKENS).logits, rtol=0, atol=1e-4)


def test_gptq_v1_has_the_head_too(tmp_path: Path) -> None:
    scheme = Scheme(4, group_size=16, symmetric=True, head=Scheme(8, group_size=8, symmetric=True))
    model, folder = saved(tmp_path / "a", TIED, scheme)
    exported = quant.export(folder, tmp_path / "b", "gptq-v1")
    assert any("optimum" in note for note in exported.notes)
    with torch.no_grad():
        ours = quant.load(exported.folder)(TOKENS).logits
        torch.testing.assert_close(ours, model(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("head", "format", "match"),
    [
        (Scheme(5, group_size=8), "gptq-v1", r"lm_head has 5 bits, which no reader of gptq-v1"),
        (Scheme(8, group_size=12), "compressed-tensors", r"lm_head cannot be stored: groups of 12"),
    ],
)
def test_a_format_that_cannot_hold_the_head_names_it(
    head: Scheme, format: str, match: str, tmp_path: Path
) -> None:
    scheme = Scheme(4, group_size=16, symmetric=True, head=head)
    _, folder = saved(tmp_path / "a", APART, scheme)
    with pytest.raises(ArtifactError, match=match):
        quant.export(folder, tmp_path / "b", format)
    assert not (tmp_path / "b").exists()


def test_what_means_the_head_in_configurations() -> None:
    for pattern in ("lm_head", "^lm_head$", ".*lm_head.*", ".*lm_head", r".*\.embed_out$"):
        assert means_head(pattern), pattern
    for pattern in (r".*\.18\..*gate.*", "model.layers.1.lm_header", ".*", ".*down_proj"):
        assert not means_head(pattern), pattern


def test_overrides_that_the_tensors_do_not_have_are_refused(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "a", APART)
    config = config_of(folder)
    config["quantization_config"]["dynamic"]["+:.*down_proj"] = {"bits": 8}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"down_proj.qweight is .* scheme w8g16 make"):
        quant.load(folder, verify_files=False)


def test_decoding_reads_the_packed_head(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    scheme = Scheme(4, group_size=32, head=Scheme(8, group_size=32))
    found = {}
    for each in (scheme, scheme.without_head):
        model = tiny_model("llama", intermediate_size=64, **sizes)
        result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, each))
        folder = quant.save(tmp_path / each.name, model, result.weights, method=METHOD)
        found[each.name] = quant.load(folder)
    packed, plain = found.values()
    decoder = make_decoder(packed, TOKENS[:1], 8)
    assert (decoder.mode, decoder.reason) == (FUSED, "")
    # Kernels read rows in units of 64 bytes; 3 bytes are scale and zero-point.
    dense, stored = VOCABULARY * HIDDEN * 4, VOCABULARY * (64 + 3)
    read = weight_bytes_per_token(plain) - dense + stored
    assert weight_bytes_per_token(packed) == read
    assert embedding_bytes(packed) == dense + stored


@pytest.mark.parametrize("name", [TIED, APART])
def test_the_shape_of_a_model_counts_its_packed_head(name: str) -> None:
    model = tiny_model(name)
    shape = model_shape(model)
    dense, stored = VOCABULARY * HIDDEN * 4, VOCABULARY * HIDDEN * (8 + 3) // 8
    assert shape.head == (VOCABULARY, HIDDEN)
    assert shape.head_bytes == (0 if name == TIED else dense)
    packed = shape.packed_outside(SCHEME)
    assert packed.outside_bytes == shape.outside_bytes + stored - shape.head_bytes
    assert shape.packed_outside(None) == shape
    items = {
        scheme: {
            item.name: item.bytes
            for item in plan_quantization(
                shape, QuantizationConfig(rtn.SOLVER, scheme), 0, 0, Limits(host=10**9)
            ).items
        }
        for scheme in (SCHEME, SCHEME.without_head)
    }
    more = dict(items[SCHEME].items() - items[SCHEME.without_head].items())
    assert more == {
        "rows of the head in the solver": VOCABULARY * HIDDEN * 4 * 5,
        "quantized weights of the head": VOCABULARY * HIDDEN + 2 * stored,
    }


@pytest.mark.parametrize("name", [TIED, APART])
def test_random_models_have_a_packed_head(name: str) -> None:
    config = tiny_model(name).config
    model = build_dummy(config, SCHEME)
    head = model.get_output_embeddings()
    assert isinstance(head, QuantLinear)
    assert head.scheme == HEAD
    need = predict_memory(tiny_model(name).config, SCHEME, dtype=torch.float32, kernel=head.kernel)
    assert weight_bytes(model) == need.model
    with torch.inference_mode():
        assert torch.isfinite(model(TOKENS).logits).all()


@pytest.mark.parametrize("format", ["gptq-v1", "compressed-tensors"])
def test_a_head_of_another_producer_is_read(format: str, tmp_path: Path) -> None:
    """Which declares less, and means the head by another pattern."""
    scheme = Scheme(4, group_size=16, symmetric=True, head=Scheme(8, group_size=8, symmetric=True))
    model, folder = saved(tmp_path / "a", TIED, scheme)
    folder = quant.export(folder, tmp_path / "b", format).folder
    (folder / "artifact.json").unlink()
    config = config_of(folder)
    said = config["quantization_config"]
    del said["meta"]
    if format == "gptq-v1":
        del said["checkpoint_format"]
        said["dynamic"] = {r"-:.*\.9\..*": {}, r".*lm_head.*": {"bits": 8, "group_size": 8}}
    else:
        said["config_groups"]["group_1"]["targets"] = ["re:.*lm_head"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = quant.load(folder)
    assert loaded.lm_head.scheme.bits == 8
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, rtol=0, atol=1e-4)


def test_a_run_that_was_killed_before_its_head_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(TIED).save_pretrained(tmp_path / "model")
    config, seen = QuantizationConfig(rtn.SOLVER, SCHEME), []

    def run(target: Path) -> QuantizationResult:
        with CheckpointSource(tmp_path / "model", torch.float32) as source:
            return quantize_to(target, source, [], config, model_hash="x", method=METHOD)

    def kill(*_: object) -> None:
        seen.append("killed")
        raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(PartialArtifact, "put_outside", kill)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "target")
    assert seen == ["killed"]
    resumed = run(tmp_path / "target")
    assert (whole.resumed, resumed.resumed) == (0, BLOCKS)
    assert resumed.head is not None
    files = [
        {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
        for folder in (tmp_path / "whole", tmp_path / "target")
    ]
    assert files[0] == files[1]
