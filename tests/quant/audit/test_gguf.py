"""GGUF files held against their base: errors by plain float64, verdicts, and what is refused."""

import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from transformers import LlamaForCausalLM

import quant
from quant.audit.gguf import AuditedGguf, check_pair
from quant.audit.run import Audit, audit
from quant.audit.verdict import AS_GOOD, NO_GRID, NOT_QUANTIZED, NOT_THIS_BASE, ROUNDED
from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.checkpoint.tensors import TensorReader
from quant.config import QuantizationConfig
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.solvers import gptq
from tests.quant.checkpoint import gguf_families as families
from tests.quant.checkpoint.gguf_files import llama, write
from tests.quant.checkpoint.test_gguf_export import tokenizer

WINDOWS = [torch.arange(start, start + 100) for start in (3, 60, 140)]
LAYERS = 14


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    llama().save_pretrained(folder)
    return tokenizer(folder)


def audited(file: Path, base: Path, **more: Any) -> Audit:
    with CheckpointSource(base, torch.float32) as source:
        return audit(file, source, base, WINDOWS, **more)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_llama_cpp_rounds_on_its_grids(tmp_path: Path, base: Path, kind: str) -> None:
    found = audited(write(tmp_path / "m.gguf", llama(), kind), base)
    assert {each.verdict.name for each in found.layers} == {ROUNDED}
    assert {each.scheme for each in found.layers} == {kind}
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert {each.bits_per_weight for each in found.layers} == {8 * size / 32}
    assert len(found.layers) == LAYERS
    assert (found.claim.method, found.claim.format, found.claim.types) == (
        None, "GGUF", f"{kind} 100%"
    )  # fmt: skip
    (line,) = found.said
    assert line.startswith(f"model.embed_tokens.weight is {kind} and ")
    assert not found.differing


@torch.inference_mode()
def test_the_error_is_that_of_float64_in_the_order_of_the_base(tmp_path: Path, base: Path) -> None:
    """Of queries and keys too, whose rows llama.cpp has in another order."""
    model = llama()
    file = write(tmp_path / "m.gguf", model, "Q4_0")
    seen: dict[str, torch.Tensor] = {}
    block: Any = model.model.layers[0]
    for name in ("q_proj", "k_proj"):
        getattr(block.self_attn, name).register_forward_hook(
            lambda _, inputs, __, name=name: seen.__setitem__(
                name, torch.cat([seen.get(name, inputs[0][0][:0]), inputs[0][0]])
            )
        )
    for window in WINDOWS:
        model(window[None])
    layers = {each.name.rpartition(".")[2]: each for each in audited(file, base).layers[:4]}
    reader = {each.name: each for each in gguf.GGUFReader(file).tensors}
    for name, stored, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2)):
        tensor = reader[f"blk.0.{stored}.weight"]
        values = dequantize(tensor.data, tensor.tensor_type)
        # Row 2i of a head is row i of its first half, row 2i + 1 that of the second.
        pairs = values.reshape(heads, -1, 2, values.shape[1]).transpose(0, 2, 1, 3)
        found = torch.from_numpy(pairs.reshape(values.shape).copy()).double()
        weight = getattr(block.self_attn, name).weight.double()
        text = seen[name].double()
        error = ((weight - found) @ text.T).square().sum() / (weight @ text.T).square().sum()
        assert layers[name].evidence is not None
        assert layers[name].evidence.error == pytest.approx(float(error), rel=1e-4)


def test_what_our_solver_wrote_is_the_solvers(tmp_path: Path, base: Path) -> None:
    scheme = Scheme(4, 32, symmetric=True)
    options = gptq.Options(static_groups=True)
    with CheckpointSource(base, torch.float32) as source:
        quantize_to(
            tmp_path / "made", source, WINDOWS, QuantizationConfig(gptq.SOLVER, scheme, options),
            model_hash="m", method={"name": "gptq"}, tokenizer=base,
        )  # fmt: skip
    quant.export(tmp_path / "made", tmp_path / "m.gguf", "gguf")
    resolved: dict[str, Any] = {}
    found = audited(tmp_path / "m.gguf", base, resolved=resolved)
    assert {each.verdict.name for each in found.layers} == {AS_GOOD}
    assert found.claim.method == "gptq"
    assert found.claim.producer.startswith("bitsweep")
    assert len(resolved) == LAYERS
    assert not found.said


KINDS = gguf.GGMLQuantizationType


def vectors() -> np.ndarray[Any, Any]:
    """Random blocks of IQ2_XS, 256 x 256 weights."""
    found = np.random.default_rng(0).integers(0, 256, (256, 74), np.uint8)
    found[:, :2] = np.full((256, 1), 0.002, np.float16).view(np.uint8)  # scales
    return found


@pytest.fixture(scope="module")
def wide() -> Any:
    """A Llama whose rows hold blocks of 256; one of its weights is near vectors of a codebook."""
    made = families.model("llama", hidden_size=256, intermediate_size=256, num_attention_heads=16)
    values = torch.from_numpy(dequantize(vectors(), KINDS.IQ2_XS))
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
    made.model.layers[0].mlp.gate_proj.weight.data = values + 0.1 * values.std() * noise
    return made


@pytest.fixture(scope="module")
def wide_base(wide: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    wide.save_pretrained(folder)
    return folder


def test_types_are_told_apart_layer_by_layer(tmp_path: Path, wide: Any, wide_base: Path) -> None:
    """A codebook of vectors has an error alone; a layer left in F16 is not quantized."""
    plain = wide.model.layers[0].mlp.up_proj.weight.detach().numpy().astype(np.float16)
    file = families.write(
        tmp_path / "m.gguf", "llama", wide, "Q8_0", tokenizer=families.byte_level("smollm"),
        more={
            "blk.0.ffn_gate.weight": (vectors(), KINDS.IQ2_XS),
            "blk.1.ffn_gate.weight": (vectors(), KINDS.IQ2_XS),
            "blk.0.ffn_up.weight": (plain, KINDS.F16),
        },
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resolved: dict[str, Any] = {}
        found = audited(file, wide_base, resolved=resolved)
    layers = {each.name.removeprefix("model.layers."): each for each in found.layers}
    gate, up = layers["0.mlp.gate_proj"], layers["0.mlp.up_proj"]
    assert (gate.scheme, gate.bits_per_weight) == ("IQ2_XS", 2.3125)
    assert gate.verdict.name == NO_GRID
    assert gate.evidence is not None
    assert gate.evidence.weight_error == pytest.approx(0.1, rel=0.02)
    assert gate.evidence.error == pytest.approx(0.01, rel=0.5)  # of inputs that are not white
    assert layers["1.mlp.gate_proj"].verdict.name == NOT_THIS_BASE  # random vectors
    assert (up.scheme, up.verdict.name) == (None, NOT_QUANTIZED)
    assert up.verdict.why == "its weight is the base's"
    assert sum(each.verdict.name == ROUNDED for each in found.layers) == LAYERS - 3
    assert len(resolved) == LAYERS - 3


def test_joined_projections_are_audited_one_by_one(
    tmp_path: Path, wide: Any, wide_base: Path
) -> None:
    """Rows of one tensor of the file are three layers of the base."""

    def join(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        for block in ("blk.0", "blk.1"):
            parts = [tensors.pop(f"{block}.attn_{part}.weight") for part in "qkv"]
            tensors[f"{block}.attn_qkv.weight"] = np.concatenate(parts)

    keys = families.byte_level("smollm")
    one, joined = (
        families.write(tmp_path / f"{at}.gguf", "llama", wide, "Q4_1", tokenizer=keys, **more)
        for at, more in enumerate(({}, {"change": join}))
    )
    first, second = audited(one, wide_base), audited(joined, wide_base)
    assert first.layers == second.layers


@pytest.mark.parametrize("family", ["gemma2", "phi3", "qwen3"])
def test_other_families(tmp_path: Path, family: str) -> None:
    """Gemma's norms are stored with 1 added, phi3's projections are joined in the base too."""
    made = families.model(family)
    if family == "gemma2":
        made.model.norm.weight.data[:8] = 1e-7  # what is left beside 1
    made.save_pretrained(tmp_path / "base")
    keys = families.byte_level("smollm")
    file = families.write(tmp_path / "m.gguf", family, made, "Q8_0", tokenizer=keys)
    found = audited(file, tmp_path / "base")
    assert {each.verdict.name for each in found.layers} == {ROUNDED}
    assert not found.differing


def test_a_codebook_of_vectors_has_its_error_alone() -> None:
    from quant.audit.gguf import CODEBOOK
    from quant.audit.layer import error_alone
    from quant.audit.moments import moments
    from quant.audit.verdict import judge_alone

    draw = torch.Generator().manual_seed(0)
    weight, text = torch.randn(40, 32, generator=draw), torch.randn(200, 32, generator=draw)
    values = weight + 0.1 * torch.randn(40, 32, generator=draw)
    seen, _ = error_alone(weight, values, moments(text.T @ text, 200))
    error = ((weight - values) @ text.T).square().sum() / (weight @ text.T).square().sum()
    assert seen.error == pytest.approx(float(error), rel=1e-4)
    verdict = judge_alone(seen, "IQ3_S", CODEBOOK)
    assert verdict.name == NO_GRID
    assert verdict.why.startswith("IQ3_S chooses several weights at once")


def test_a_note_of_an_importance_matrix_is_a_claim(tmp_path: Path, base: Path) -> None:
    file = write(
        tmp_path / "m.gguf", llama(), "Q4_0", quantize__imatrix__file="imatrix.dat",
        quantize__imatrix__dataset="groups_merged.txt", quantize__imatrix__chunks_count=88,
    )  # fmt: skip
    with CheckpointSource(base, torch.float32) as source, AuditedGguf(file, source.model) as held:
        assert held.claim.said == (
            "the file says that an importance matrix weighted the choice of grids (file "
            "imatrix.dat, text groups_merged.txt, chunks 88)",
        )
        with TensorReader(base) as stored:
            (line,) = held.outside(stored)
    embedding = llama().model.embed_tokens.weight.detach().numpy()
    values = gguf.quants.dequantize(
        gguf.quants.quantize(embedding, gguf.GGMLQuantizationType.Q4_0),
        gguf.GGMLQuantizationType.Q4_0,
    )
    error = np.linalg.norm(embedding - values) / np.linalg.norm(embedding)
    assert line == f"model.embed_tokens.weight is Q4_0 and {100 * error:.2g} % from the base's"


def test_norms_that_differ_are_listed(tmp_path: Path, base: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[:16] *= 1.5
    found = audited(write(tmp_path / "m.gguf", model, "Q8_0"), base)
    assert found.differing == {"model.norm.weight": 0.25}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vocab_size": 280}, r"has token_embd\.weight of shape \[270, 64\], and model\.embed_to.*"
         r"\[280, 64\]: it is of another vocabulary"),
        ({"hidden_size": 128}, r"token_embd\.weight of shape .*: it is of another voc"),
        ({"intermediate_size": 128}, r"blk\.0\.ffn_gate\.weight of shape \[96, 64\], and .*"
         r"\[128, 64\]: it is of another model"),
        ({"num_hidden_layers": 1}, r"blk\.1\.attn_norm\.weight .* does not have: it is a llama"),
        ({"num_hidden_layers": 3}, r"has nothing for model\.layers\.2\.\S+, .* and 6 more"),
        ({"tie_word_embeddings": False}, r"has nothing for lm_head\.weight, which Llama"),
    ],
)  # fmt: skip
def test_another_base_is_named_by_the_tensor(tmp_path: Path, change: Any, sentence: str) -> None:
    file = write(tmp_path / "m.gguf", llama(), "Q4_0")
    config = llama().config
    for key, value in change.items():
        setattr(config, key, value)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    with pytest.raises(ArtifactError, match=sentence) as caught:
        check_pair(file, tmp_path / "base")
    assert str(caught.value).endswith("name the model that it was made from with --base.")


def test_another_architecture_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", llama(), "Q4_0")
    families.model("phi2").save_pretrained(tmp_path / "base")
    with pytest.raises(ArtifactError, match="which PhiForCausalLM of the base does not have: it"):
        check_pair(file, tmp_path / "base")


def test_a_damaged_block_is_named_by_the_tensor(tmp_path: Path, base: Path) -> None:
    file = write(tmp_path / "m.gguf", llama(), "Q4_0")
    tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.1.ffn_down.weight")
    with file.open("r+b") as stream:
        stream.seek(int(tensor.data_offset))
        stream.write(b"\x00\x7c")  # an infinite scale
    with pytest.raises(ArtifactError, match=r"blk\.1\.ffn_down\.weight \(Q4_0\) has a scale that"):
        audited(file, base)
