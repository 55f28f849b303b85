"""A scheme that quantizes the token embeddings: lookup, ties, artifacts, calibration, formats."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedModel

import quant
from cuda_ext.layout import codes_at, pack_codes
from quant.calibrate.capture import streamed_logits
from quant.calibrate.stream import QuantizationResult, quantize_model
from quant.checkpoint import dequantize_layers
from quant.checkpoint.inspection import inspect
from quant.checkpoint.loader import read_scheme
from quant.checkpoint.make import quantize_to
from quant.checkpoint.matching import differences
from quant.checkpoint.partial import PartialArtifact
from quant.checkpoint.source import ArtifactSource, CheckpointSource
from quant.config import QuantizationConfig
from quant.decode.caches import FUSED
from quant.decode.choose import make_decoder
from quant.embedding import QuantEmbedding, looked_up
from quant.errors import ArtifactError, ModelStructureError
from quant.head import find_embeddings
from quant.linear import QuantLinear
from quant.measure.dummy import build_dummy, predict_memory
from quant.measure.roofline import embedding_bytes, weight_bytes, weight_bytes_per_token
from quant.memory.limits import Limits
from quant.memory.plan import plan_quantization
from quant.memory.shapes import model_shape
from quant.rules import Rules
from quant.scheme import Scheme
from quant.solvers import gptaq, gptq, rtn
from quant.transforms import residual_hadamard
from tests.oracles.random_weights import random_weight
from tests.quant.architectures import (
    BLOCKS,
    HIDDEN,
    VOCABULARY,
    tiny_model,
)
from tests.quant.checkpoint.test_gguf_export import tokenizer
from tests.quant.test_head import METHOD, TOKENS, WINDOWS, config_of, rounded

OWN = Scheme(4, group_size=8)
ALONE = Scheme(4, group_size=16, embeddings=OWN)
BOTH = replace(ALONE, head=OWN)
APART = replace(ALONE, head=Scheme(8, group_size=8))
FAMILIES = ("opt", "opt-350m", "bloom", "gpt2", "gpt-neox", "llama", "qwen3", "gemma2", "phi")
PROJECTED = {"opt-350m": 16}  # the width of its table is not that of its blocks


def changes(tie: bool) -> dict[str, Any]:
    return {"tie_word_embeddings": tie}


def saved(
    folder: Path, model: PreTrainedModel, scheme: Scheme, solver: Any = rtn.SOLVER
) -> tuple[QuantizationResult, Path]:
    result = quantize_model(model, WINDOWS, QuantizationConfig(solver, scheme))
    return result, quant.save(folder, model, result.weights, method=METHOD)


def table_of(model: PreTrainedModel) -> Tensor:
    found = model.get_input_embeddings()
    return found.dequantize() if isinstance(found, QuantEmbedding) else found.weight.detach()


# 97 tokens are no whole number of tiles (8), of words or of periods of any width.
@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize(
    "name", ["w8g32", "w4g32_sym", "w3g32", "w2", "w5g7", "w7g3_fp32", "ternary_g32"]
)
def test_rows_are_the_textbooks_values_of_their_codes(name: str, kernel: str) -> None:
    scheme, tokens, width = Scheme.parse(name), 97, 64
    weight = random_weight(scheme, tokens, width, seed=3)
    ids = torch.tensor([[96, 0, 7], [8, 95, 96]])
    for dtype in (torch.float32, torch.bfloat16):
        table = QuantEmbedding(QuantLinear.from_quantized(weight, None, kernel), dtype)
        expected = weight.dequantize(dtype)[ids]
        assert torch.equal(table(ids), expected)
        assert table(ids).dtype == dtype
        assert table(ids[:, :0]).shape == (2, 0, width)
    if scheme.kind.name == "uniform":
        grid = (weight.grid[part].double() for part in ("scale", "zero"))
        size = scheme.group_size or width
        scale, zero = (part.repeat_interleave(size, 1)[:, :width] for part in grid)
        textbook = (scale * (weight.codes.double() - zero))[ids]
        table = QuantEmbedding(QuantLinear.from_quantized(weight, None, kernel), torch.float32)
        torch.testing.assert_close(table(ids).double(), textbook, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_read_at_any_place(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (3, 101), generator=generator).to(torch.uint8)
    places = torch.tensor([100, 0, 31, 32, 10, 10, 99])
    assert torch.equal(codes_at(pack_codes(codes, bits), bits, places), codes[:, places])


def test_only_the_rows_asked_for_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in ("auto", "reference"):
        matrix = QuantLinear.from_quantized(random_weight(Scheme(4, 32), 97, 64), None, kernel)
        table = QuantEmbedding(matrix, torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr(QuantLinear, "dequantize", None)
            patch.setattr(QuantLinear, "quantized_weight", None)
            assert table(torch.tensor([3, 96])).shape == (2, 64)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("wrong", [-1, 97, 100, 10**6])
def test_ids_outside_are_the_error_of_torch(wrong: int, kernel: str) -> None:
    matrix = QuantLinear.from_quantized(random_weight(Scheme(4, 32), 97, 64), None, kernel)
    ids = torch.tensor([5, wrong])
    for table in (nn.Embedding(97, 64), QuantEmbedding(matrix, torch.float32)):
        with pytest.raises(IndexError, match="index out of range in self"):
            table(ids)


def test_the_dtype_follows_the_model_and_the_scales_do_not() -> None:
    matrix = QuantLinear.from_quantized(random_weight(Scheme(4, 32), 9, 64))
    table = QuantEmbedding(matrix, torch.float32, torch.tensor(3.0)).to(torch.bfloat16)
    ids = torch.arange(9)
    assert table(ids).dtype == torch.bfloat16
    assert torch.equal(table(ids), matrix.dequantize(torch.bfloat16) * 3)
    assert torch.equal(table.float()(ids), matrix.dequantize() * 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_computes_what_its_dequantized_table_gives(name: str, tmp_path: Path) -> None:
    plain = tiny_model(name)
    tie = plain.config.tie_word_embeddings
    own = Scheme(4, group_size=PROJECTED.get(name, 8) // 2)
    model = copy.deepcopy(plain)
    result, folder = saved(tmp_path / "a", model, replace(BOTH, head=own, embeddings=own))
    loaded = quant.load(folder)
    assert isinstance(loaded.get_input_embeddings(), QuantEmbedding)
    assert torch.equal(table_of(loaded), table_of(model))
    expected = rounded(table_of(plain), 4, own.group_size or 0)
    torch.testing.assert_close(table_of(loaded).double(), expected, rtol=1e-6, atol=0)
    dense = copy.deepcopy(loaded)
    module = plain.get_input_embeddings()  # multiplies rows where the model's own class does
    module.weight = nn.Parameter(table_of(loaded), requires_grad=False)
    path, _, child = find_embeddings(plain)[0].rpartition(".")
    setattr(dense.get_submodule(path), child, module)
    with torch.no_grad():
        logits = loaded(TOKENS).logits
        assert torch.equal(logits, dense(TOKENS).logits)
        torch.testing.assert_close(logits, model(TOKENS).logits, rtol=0, atol=1e-4)
    assert config_of(folder)["tie_word_embeddings"] is tie
    assert (result.head is None) is tie


def test_a_head_with_a_bias_shares_its_matrix_too(tmp_path: Path) -> None:
    model = tiny_model("phi", **changes(True))
    bias = model.lm_head.bias.detach().clone()
    _, folder = saved(tmp_path / "a", model, BOTH)
    loaded = quant.load(folder)
    assert loaded.get_input_embeddings().matrix is loaded.lm_head
    assert torch.equal(loaded.lm_head.bias, bias)
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["opt", "gemma"])
def test_one_matrix_of_a_tied_model_is_stored_counted_and_moved_once(
    name: str, tmp_path: Path
) -> None:
    model = tiny_model(name)
    result, folder = saved(tmp_path / "a", model, BOTH)
    (only,) = result.outside
    assert only is result.embeddings
    assert only is not None
    assert (only.name, only.block, only.outputs, only.inputs, only.scheme) == (
        find_embeddings(model)[0], BLOCKS, VOCABULARY, HIDDEN, "w4g8",
    )  # fmt: skip
    assert model.lm_head.weight is model.get_input_embeddings().weight
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    parts = {"qweight", "qzeros", "scales", "g_idx"}
    assert {n for n in tensors if "embed" in n and "position" not in n} == {
        f"{only.name}.{part}" for part in parts
    }
    assert not any(n.startswith("lm_head") for n in tensors)
    loaded = quant.load(folder)
    table, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert table.matrix is head
    assert looked_up(loaded) == set()
    assert sum(m is head for m in loaded.modules()) == 1
    copied = copy.deepcopy(loaded)
    assert copied.get_input_embeddings().matrix is copied.get_output_embeddings()
    found = inspect(folder)
    assert found.scheme == BOTH
    assert found.layers == len(result.layers) + 1
    sizes = [(each.outputs * each.inputs, each.bits_per_weight) for each in result.layers]
    sizes.append((VOCABULARY * HIDDEN, 4 + (16 + 4) / 8))
    whole = sum(n * bits for n, bits in sizes) / sum(n for n, _ in sizes)
    assert found.bits_per_weight == pytest.approx(whole)
    assert not differences(loaded, folder).missing
    # What was loaded can be written again, byte for byte.
    again = quant.save(tmp_path / "b", loaded, quant.load_weights(folder), method=METHOD)
    assert {f.name: f.read_bytes() for f in again.glob("*.safetensors")} == {
        file.name: file.read_bytes()
    }
    assert config_of(again)["tie_word_embeddings"] is True
    assert read_scheme(again)[1] == BOTH


def test_embeddings_of_a_tied_head_alone_are_refused_with_the_scheme_that_serves_both() -> None:
    model = tiny_model("opt")
    before = table_of(model).clone()
    with pytest.raises(
        ModelStructureError,
        match=r"OPTForCausalLM ties its head .* as in scheme=w4g64_head_w4g8_emb_w4g8, and one",
    ):
        quantize_model(model, [], QuantizationConfig(rtn.SOLVER, ALONE))
    assert torch.equal(table_of(model), before)


def test_a_head_with_another_scheme_is_rounded_from_its_own_values(tmp_path: Path) -> None:
    plain = tiny_model("opt")
    model = copy.deepcopy(plain)
    result, folder = saved(tmp_path / "a", model, APART)
    loaded = quant.load(folder)
    assert config_of(folder)["tie_word_embeddings"] is False
    assert [each.scheme for each in result.outside] == ["w8g8", "w4g8"]
    for found, bits in ((table_of(loaded), 4), (loaded.lm_head.dequantize(), 8)):
        expected = rounded(table_of(plain), bits, 8)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert read_scheme(folder)[1] == APART


def test_what_no_lookup_stands_for_is_refused() -> None:
    model = tiny_model("llama")

    class Doubled(nn.Embedding):
        embed_scale = 1.0

        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 2

    def of(kind: type[nn.Embedding]) -> PreTrainedModel:
        changed = copy.deepcopy(model)
        changed.model.embed_tokens.__class__ = kind
        return changed

    config = QuantizationConfig(rtn.SOLVER, ALONE)
    with pytest.raises(ModelStructureError, match="embed_tokens, a Doubled, gives something else"):
        quantize_model(of(Doubled), [], config)
    with pytest.raises(ModelStructureError, match=r"embed_tokens, a Other; only .* leave scheme\."):
        quantize_model(of(type("Other", (nn.Embedding,), {})), [], config)
    read = copy.deepcopy(model)
    norm = read.model.norm
    norm.register_forward_hook(lambda *_: read.model.embed_tokens.weight.sum() and None)
    with pytest.raises(ModelStructureError, match="reads its table other than by looking rows up"):
        quantize_model(read, [], config)


def test_layers_of_several_schemes_have_embeddings_too(tmp_path: Path) -> None:
    layers = {"*.down_proj": Scheme(8, 8)}
    model = tiny_model("llama", **changes(True))
    scheme = replace(BOTH, layers=layers)
    _, folder = saved(tmp_path / "a", model, scheme)
    found = read_scheme(folder)[1]
    assert found == BOTH  # of the layers without settings of their own
    with torch.no_grad():
        logits = quant.load(folder)(TOKENS).logits
        torch.testing.assert_close(logits, model(TOKENS).logits, rtol=0, atol=1e-4)
    config = QuantizationConfig(rtn.SOLVER, replace(ALONE, layers=layers))
    model = tiny_model("llama", **changes(True))
    with pytest.raises(ModelStructureError, match=r"give scheme\.head the same keys, as in"):
        quantize_model(model, [], config)


def test_a_head_whose_weight_is_read_is_refused_before_anything_is_quantized() -> None:
    """Mamba casts hidden states to the dtype of its head's weight, which a packed head has not."""
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    before = table_of(model).clone()
    for scheme, match in (
        (BOTH, "lm_head cannot be quantized, because Mamba.* reads its weight other"),
        (ALONE, r"ties its head .* \(lm_head cannot .*\): leave scheme\.embeddings out"),
    ):
        with pytest.raises(ModelStructureError, match=match):
            quantize_model(
                model, [], QuantizationConfig(rtn.SOLVER, scheme, rules=Rules(partial=True))
            )
    assert torch.equal(table_of(model), before)


@pytest.mark.parametrize("solver", [gptq.SOLVER, gptaq.SOLVER], ids=lambda solver: solver.name)
def test_blocks_are_calibrated_on_the_quantized_rows(solver: Any) -> None:
    model = tiny_model("llama")
    result = quantize_model(model, WINDOWS, QuantizationConfig(solver, ALONE))
    before = tiny_model("llama")
    with torch.no_grad():
        before.model.embed_tokens.weight.copy_(table_of(model))
    other = quantize_model(before, WINDOWS, QuantizationConfig(solver, ALONE.without_head))
    same = [torch.equal(other.weights[n].codes, result.weights[n].codes) for n in other.weights]
    # GPTAQ also makes up for the rounding of the rows, which it cannot see in the second model.
    assert all(same) if solver is gptq.SOLVER else not any(same[:3])


def test_the_drift_of_the_first_layers_is_that_of_the_rounded_rows() -> None:
    seen: dict[str, Tensor] = {}

    def prepare(hessian: Tensor, options: Any, layer: Any, drift: Tensor | None) -> Any:
        if drift is not None:
            seen.setdefault(layer.name, drift.clone())
        return gptaq.SOLVER.prepare(hessian, options, layer, drift)  # type: ignore[misc]

    plain, model = tiny_model("llama"), tiny_model("llama")
    spy = replace(gptaq.SOLVER, prepare=prepare)
    quantize_model(model, WINDOWS, QuantizationConfig(spy, ALONE))
    tokens = torch.cat(WINDOWS)
    weight, epsilon = (getattr(plain.model.layers[0].input_layernorm, n) for n in (
        "weight", "variance_epsilon"))  # fmt: skip

    def inputs(table: Tensor) -> Tensor:
        rows = table[tokens].double()
        return rows / (rows.square().mean(1, keepdim=True) + epsilon).sqrt() * weight.double()

    x, seen_x = inputs(table_of(plain)), inputs(table_of(model))
    expected = 2 / len(WINDOWS) * (x - seen_x).T @ seen_x
    first = next(drift for name, drift in seen.items() if "layers.0." in name)
    torch.testing.assert_close(first.double(), expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_rotation_of_the_stream_comes_before_the_rounding() -> None:
    def run(scheme: Scheme) -> PreTrainedModel:
        model = tiny_model("llama", **changes(True))
        transforms = ((residual_hadamard.TRANSFORM, None),)
        config = QuantizationConfig(rtn.SOLVER, scheme, transforms=transforms)
        quantize_model(model, WINDOWS, config)
        return model

    dense, packed = run(ALONE.without_head), run(ALONE)
    expected = rounded(table_of(dense), 4, 8)
    torch.testing.assert_close(table_of(packed).double(), expected, rtol=1e-6, atol=0)
    # The head, which takes the last norm in, is no longer tied, and was not asked for.
    assert torch.equal(packed.lm_head.weight, dense.lm_head.weight)


@pytest.mark.parametrize(("name", "scheme"), [("opt", BOTH), ("gpt2", APART), ("llama", ALONE)])
def test_streamed_is_in_memory(name: str, scheme: Scheme, tmp_path: Path) -> None:
    tied = name != "llama"
    tiny_model(name, **changes(tied)).save_pretrained(tmp_path / "model")
    config = QuantizationConfig(gptq.SOLVER, scheme)
    model = tiny_model(name, **changes(tied))
    result, whole = saved(tmp_path / "whole", model, scheme, gptq.SOLVER)
    with CheckpointSource(tmp_path / "model", torch.float32) as source:
        made = quantize_to(
            tmp_path / "streamed", source, WINDOWS, config, model_hash="x", method=METHOD
        )
    assert made.embeddings is not None
    assert [replace(each, seconds=0) for each in made.outside] == [
        replace(each, seconds=0) for each in result.outside
    ]
    one, other = (quant.load_weights(folder) for folder in (whole, tmp_path / "streamed"))
    assert one.keys() == other.keys() == result.weights.keys()
    assert all(torch.equal(weight.codes, other[layer].codes) for layer, weight in one.items())
    assert config_of(whole) == config_of(tmp_path / "streamed")
    with ArtifactSource(tmp_path / "streamed") as packed, torch.no_grad():
        expected = quant.load(tmp_path / "streamed")(TOKENS).logits
        assert torch.equal(streamed_logits(packed, TOKENS), expected)


def test_a_run_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("opt").save_pretrained(tmp_path / "model")
    config = QuantizationConfig(gptq.SOLVER, BOTH)
    put, stop = PartialArtifact.put, [2]

    def run(target: Path) -> QuantizationResult:
        with CheckpointSource(tmp_path / "model", torch.float32) as source:
            return quantize_to(target, source, WINDOWS, config, model_hash="x", method=METHOD)

    def kill(self: PartialArtifact, index: int, *rest: Any) -> Any:
        if index == stop[0]:
            raise KeyboardInterrupt
        return put(self, index, *rest)

    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(PartialArtifact, "put", kill)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "target")
    assert run(tmp_path / "target").resumed == 2
    files = [
        {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
        for folder in (tmp_path / "whole", tmp_path / "target")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(2, levels="ternary", head=OWN, embeddings=OWN),
        Scheme(2, levels="ternary", embeddings=Scheme(2, group_size=8, levels="ternary")),
        Scheme(3, group_size=16, embeddings=Scheme(6, group_size=12, scale_dtype="float32")),
        Scheme.parse("nf4g16_emb_w8g16_mse"),
        Scheme.parse("nf4g16_emb_nf4g32"),
    ],
    ids=lambda scheme: scheme.name,
)
def test_any_scheme_comes_back_from_an_artifact(scheme: Scheme, tmp_path: Path) -> None:
    model = tiny_model("llama")
    _, folder = saved(tmp_path / "a", model, scheme)
    assert read_scheme(folder)[1].name == scheme.name
    loaded = quant.load(folder)
    with torch.no_grad():
        logits = loaded(TOKENS).logits
        torch.testing.assert_close(logits, model(TOKENS).logits, rtol=0, atol=1e-4)
        dequantize_layers(loaded, torch.float32)
        torch.testing.assert_close(loaded(TOKENS).logits, logits, rtol=0, atol=1e-4)


def test_no_other_reader_goes_on_without_a_table(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "a", tiny_model("llama"), ALONE)
    said = config_of(folder)["quantization_config"]
    assert said["quant_method"] == "bitsweep_embeddings"
    assert said["layers"]["quant_method"] == "gptq"
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(folder)
    card = (folder / "README.md").read_text()
    assert "Read by Bitsweep alone: other tools know no quantized embeddings." in card
    assert "| embeddings | w4g8: 4 bits" in card
    for format in ("gptq-v2", "compressed-tensors"):
        with pytest.raises(ArtifactError, match=r"readers of .* do not look up: use --format gguf"):
            quant.export(folder, tmp_path / "b", format)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("bits", 9, r"embeddings\.bits=9 cannot be read"),
        ("levels", "nf4", r"embeddings\.levels='nf4' cannot be read; expected 'uniform'"),
        ("scale_dtype", "int8", r"embeddings\.scale_dtype='int8' cannot be read"),
        ("grid", 3, r"embeddings\.grid=3 cannot be read"),
        ("bits", 8, r"qweight holds|does not match|expected|inputs"),
    ],
)
def test_damaged_settings_are_refused(key: str, value: Any, match: str, tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "a", tiny_model("llama"), ALONE)
    config = config_of(folder)
    config["quantization_config"]["embeddings"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=match):
        quant.load(folder, verify_files=False)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "apart"])
def test_gguf_holds_the_table_where_a_type_has_its_grid(tie: bool, tmp_path: Path) -> None:
    own = Scheme(8, group_size=32, symmetric=True)
    scheme = Scheme(4, group_size=32, symmetric=True, embeddings=own, head=own)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 300}
    model = tiny_model("llama", **sizes, **changes(tie))
    place = tokenizer(tmp_path / "tokenizer")
    vocabulary = len(json.loads((place / "tokenizer.json").read_text())["model"]["vocab"])
    model = tiny_model("llama", **{**sizes, "vocab_size": vocabulary}, **changes(tie))
    result = quantize_model(model, WINDOWS, QuantizationConfig(rtn.SOLVER, scheme))
    folder = quant.save(tmp_path / "a", model, result.weights, method=METHOD, tokenizer=place)
    file = quant.export(folder, tmp_path / "m.gguf", "gguf").folder
    stored = {each.name: each for each in gguf.GGUFReader(file).tensors}
    table = stored["token_embd.weight"]
    assert table.tensor_type.name == "Q8_0"
    assert ("output.weight" in stored) is not tie
    values = torch.from_numpy(gguf.quants.dequantize(table.data, table.tensor_type))
    assert torch.equal(values, table_of(quant.load(folder)))
    wide = replace(scheme, embeddings=Scheme(8, group_size=16, symmetric=True))
    if not tie:
        model = tiny_model("llama", **{**sizes, "vocab_size": vocabulary}, **changes(tie))
        result = quantize_model(model, WINDOWS, QuantizationConfig(rtn.SOLVER, wide))
        other = quant.save(tmp_path / "b", model, result.weights, method=METHOD, tokenizer=place)
        with pytest.raises(ArtifactError, match=r"embed_tokens has groups of 16.*scheme\.embeddin"):
            quant.export(other, tmp_path / "n.gguf", "gguf")


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "apart"])
def test_decoding_looks_rows_up_in_the_packed_table(tie: bool, tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
    own = Scheme(8, group_size=32)
    scheme = Scheme(4, group_size=32, embeddings=own, head=own)
    model = tiny_model("llama", **sizes, **changes(tie))
    _, folder = saved(tmp_path / "a", model, scheme)
    loaded = quant.load(folder)
    decoder = make_decoder(loaded, TOKENS[:1], 8)
    assert (decoder.mode, decoder.reason) == (FUSED, "")
    decoder.prefill(TOKENS[:1])
    sequence = TOKENS[:1]
    for _ in range(4):
        with torch.no_grad():
            expected = loaded(sequence).logits[:, -1]
        torch.testing.assert_close(decoder.logits, expected, rtol=0, atol=1e-3)
        sequence = torch.cat([sequence, decoder.token], 1)
        decoder.step()
    # Kernels read rows in units of 64 bytes; 3 bytes are scale and zero-point. A row is looked up.
    stored = VOCABULARY * (64 + 3)
    assert embedding_bytes(loaded) == stored * (1 if tie else 2)
    assert weight_bytes_per_token(loaded) == weight_bytes(loaded) - stored * (not tie)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("opt", BOTH), ("gemma", APART), ("llama", ALONE), ("llama", BOTH)],
)
def test_shapes_plans_and_random_models_count_the_packed_table(name: str, scheme: Scheme) -> None:
    tied = name != "llama"
    model = tiny_model(name, **changes(tied))
    shape = model_shape(model)
    dense = VOCABULARY * HIDDEN * 4
    four, eight = (VOCABULARY * HIDDEN * (b + (16 + b) / 8) / 8 for b in (4, 8))
    assert (shape.table, shape.tied) == ((VOCABULARY, HIDDEN), tied)
    own_head = {BOTH: 0 if tied else four, APART: eight, ALONE: dense}[scheme]
    whole = shape.outside_bytes - dense * (1 if tied else 2) + four + own_head
    assert shape.packed_outside(scheme).outside_bytes == whole
    items = {
        item.name: item.bytes
        for item in plan_quantization(
            shape, QuantizationConfig(rtn.SOLVER, scheme), 0, 0, Limits(host=10**9)
        ).items
    }
    assert items["packed embeddings"] == four
    assert items["quantized weights of the embeddings"] == VOCABULARY * HIDDEN + 2 * four
    assert ("quantized weights of the head" in items) is (own_head not in (0, dense))
    assert ("the head, no longer tied" in items) is (tied and scheme is APART)
    made = build_dummy(tiny_model(name, **changes(tied)).config, scheme)
    assert isinstance(made.get_input_embeddings(), QuantEmbedding)
    kernel = made.get_input_embeddings().matrix.kernel
    need = predict_memory(
        tiny_model(name, **changes(tied)).config, scheme, dtype=torch.float32, kernel=kernel
    )
    assert weight_bytes(made) == need.model
    with torch.inference_mode():
        assert torch.isfinite(made(TOKENS).logits).all()


def test_the_names_of_tensors_are_those_of_a_layer(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "a", tiny_model("bloom", **changes(False)), ALONE)
    (file,) = folder.glob("bitsweep-embeddings*.safetensors")
    with safe_open(file, "pt") as opened:
        shapes = {
            name: tuple(opened.get_slice(name).get_shape())
            for name in opened.keys()  # noqa: SIM118
            if name.startswith("transformer.word_embeddings.")
        }
    assert shapes == {
        "transformer.word_embeddings.qweight": (HIDDEN * 4 // 32, VOCABULARY),
        "transformer.word_embeddings.qzeros": (HIDDEN // 8, VOCABULARY * 4 // 32),
        "transformer.word_embeddings.scales": (HIDDEN // 8, VOCABULARY),
        "transformer.word_embeddings.g_idx": (HIDDEN,),
    }
