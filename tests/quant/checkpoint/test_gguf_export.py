"""Quantized models as GGUF files: weights, logits and token ids are those of the artifact."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import quant
from quant.checkpoint.card import is_sealed
from quant.checkpoint.gguf.describe import describe
from quant.checkpoint.gguf.file import read_gguf
from quant.checkpoint.gguf.tokenizer import tokenizer_files
from quant.checkpoint.gguf.unpack import unpack
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.weight import QuantizedWeight
from tests.oracles.random_weights import random_weight
from tests.quant.checkpoint import gguf_families as families
from tests.quant.checkpoint.gguf_files import interleaved
from tests.quant.checkpoint.test_gguf_tokenizers import TEXT, pieces, written
from tests.quant.tiny_checkpoints import edit_config

Weights = dict[str, QuantizedWeight]
Q4 = Scheme(4, 32, symmetric=True)
TOKENS = torch.arange(3, 60)[None]


def tokenizer(folder: Path, keys: dict[str, Any] | None = None) -> Path:
    """A folder with the tokenizer of a GGUF file with these keys, byte-level by default."""
    folder.mkdir(exist_ok=True)
    path = written(folder, keys or families.byte_level("smollm"))
    for name, content in tokenizer_files(read_gguf(path)).items():
        (folder / name).write_text(json.dumps(content))
    path.unlink()
    return folder


def artifact(
    folder: Path, family: str = "llama", scheme: Scheme = Q4, *,
    keys: dict[str, Any] | None = None, model_type: str | None = None,
    dtype: torch.dtype = torch.float32, **fields: Any,
) -> tuple[Path, Weights]:  # fmt: skip
    """An artifact of a tiny model of a family with random codes, and its weights."""
    made = families.model(family, model_type, **fields).to(dtype)
    weights = {}
    for index, (name, module) in enumerate(made.named_modules()):
        own = scheme.head if name == "lm_head" else scheme.without_head
        if isinstance(module, nn.Linear) and own is not None:
            weights[name] = random_weight(own, *module.weight.shape, seed=index)
            grid = weights[name].grid["scale"]
            grid.copy_((grid.float() * 1024).round().clamp(1, 60) / 1024)
            module.weight.data = weights[name].dequantize(made.dtype)
    method = {"name": "random", "calib": None}
    if family.startswith("qwen"):  # transformers reads any as Qwen's own
        keys = families.byte_level("qwen2")
        keys["tokenizer.ggml.tokens"][0] = "<|endoftext|>"
    source = tokenizer(folder / "tokenizer", keys)
    return quant.save(folder / "artifact", made, weights, method=method, tokenizer=source), weights


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, attn_implementation="eager"
    ).eval()


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    return model(TOKENS).logits


def same_model(file: Path, source: Path, out: Path) -> None:
    """What the reader makes of the file computes what the artifact does."""
    expected = quant.load(
        source, kernel="reference", dtype=torch.float32, attn_implementation="eager"
    )
    found = loaded(unpack(file, out))
    assert torch.equal(logits(found), logits(expected))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_reader_gives_the_same_model(tmp_path: Path, family: str) -> None:
    source, weights = artifact(tmp_path, family)
    notes: list[str] = []
    done = quant.export(source, tmp_path / "m.gguf", "gguf", on_note=notes.append)
    assert (done.folder, done.layers) == (tmp_path / "m.gguf", len(weights))
    assert list(done.notes) == notes
    assert f"{len(weights)} as Q4_0 of GGUF" in notes[0]
    state = loaded(unpack(done.folder, tmp_path / "out")).state_dict()
    for name, weight in weights.items():
        assert torch.equal(state[f"{name}.weight"], weight.dequantize()), name
    same_model(done.folder, source, tmp_path / "out")
    found = describe(done.folder)
    assert (found.refused, found.not_understood) == (None, [])
    ours, theirs = (
        AutoTokenizer.from_pretrained(each, trust_remote_code=False)
        for each in (tmp_path / "out", source)
    )
    assert ours(TEXT)["input_ids"] == theirs(TEXT)["input_ids"]
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_tensors_are_those_of_the_package(tmp_path: Path) -> None:
    """Names by the package's own table, rows of queries and keys as llama.cpp's converter has."""
    source, weights = artifact(tmp_path)
    file = quant.export(source, tmp_path / "m.gguf", "gguf").folder
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, families.LAYERS)
    stored = {each.name: each for each in gguf.GGUFReader(file).tensors}
    heads = {"q_proj": 4, "k_proj": 2}
    for name, weight in weights.items():
        tensor = stored.pop(names.get_name(f"{name}.weight", try_suffixes=(".weight",)))
        found = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        expected = weight.dequantize()
        part = name.rpartition(".")[2]
        if part in heads:
            expected = torch.from_numpy(interleaved(expected.numpy(), heads[part]))
        assert torch.equal(found, expected), name
    assert {each.tensor_type.name for each in stored.values()} == {"F32"}
    assert stored.keys() == {
        "token_embd.weight", "output_norm.weight", "output.weight",
        *(f"blk.{i}.{kind}_norm.weight" for i in range(2) for kind in ("attn", "ffn")),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "sizes", "kind"),
    [
        (Scheme(5, 32, symmetric=True), {}, "Q5_0"),
        (Scheme(8, None, symmetric=True), {}, "Q8_0"),
        (Scheme(4, 256), {"hidden_size": 256, "intermediate_size": 512}, "Q4_K"),
        (Scheme(2), {"hidden_size": 256, "intermediate_size": 512}, "Q2_K"),
        (Scheme(4, 32, symmetric=True, scale_dtype="float32"), {}, "Q4_0"),  # exact in float16
        (Scheme(4, 64, symmetric=True, head=Scheme(8, 32, symmetric=True)), {}, "Q4_0"),
    ],
)
def test_other_schemes(tmp_path: Path, scheme: Scheme, sizes: dict[str, int], kind: str) -> None:
    source, weights = artifact(tmp_path, "qwen2", scheme, **sizes)
    file = quant.export(source, tmp_path / "m.gguf", "gguf").folder
    kinds = describe(file).kinds
    assert kinds[kind].tensors == sum(not name.startswith("lm_head") for name in weights)
    assert ("Q8_0" in kinds) == (kind == "Q8_0" or scheme.head is not None)
    same_model(file, source, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_tensors_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    source, _ = artifact(tmp_path, dtype=dtype)
    file = quant.export(source, tmp_path / "m.gguf", "gguf").folder
    kinds = {name: each.kind for name, each in read_gguf(file).tensors.items()}
    assert kinds["token_embd.weight"] == {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    assert kinds["output_norm.weight"] == "F32", "as llama.cpp's converter has vectors"
    same_model(file, source, tmp_path / "out")


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0,
                             "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 128}},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"model_type": "mistral", "sliding_window": 8},
        {"model_type": "mistral", "sliding_window": None},
        {"vocab_size": 300},  # more rows than tokens
    ],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_variants(tmp_path: Path, fields: dict[str, Any]) -> None:
    if "rope_parameters" in fields:
        fields = {**fields, "rope_theta": None}
    source, _ = artifact(tmp_path, **fields)
    file = quant.export(source, tmp_path / "m.gguf", "gguf").folder
    assert describe(file).not_understood == []
    same_model(file, source, tmp_path / "out")


def test_pieces_of_sentencepiece(tmp_path: Path) -> None:
    keys = pieces(**{"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2})
    count = len(keys["tokenizer.ggml.tokens"])
    source, _ = artifact(tmp_path, keys=keys, vocab_size=count)
    file = quant.export(source, tmp_path / "m.gguf", "gguf").folder
    assert read_gguf(file).metadata["tokenizer.ggml.model"] == "llama"
    same_model(file, source, tmp_path / "out")
    ours, theirs = (
        AutoTokenizer.from_pretrained(each, trust_remote_code=False)
        for each in (tmp_path / "out", source)
    )
    for text in ("the the", "aaaa th", "  hé\n tea", "thethe a▁t <own> the", TEXT):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text


@pytest.mark.parametrize("legacy", [True, False])
def test_pieces_as_transformers_has_them(tmp_path: Path, legacy: bool) -> None:
    """Its Llama tokenizer puts no second space before a text; a file cannot say so, a note does."""
    keys = pieces(**{"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2})
    source, _ = artifact(tmp_path, keys=keys, vocab_size=len(keys["tokenizer.ggml.tokens"]))
    edit_tokenizer_config(tokenizer_class="LlamaTokenizer", legacy=legacy)(source)
    done = quant.export(source, tmp_path / "m.gguf", "gguf", verify_files=False)
    assert any("put a space before every text" in note for note in done.notes)
    theirs = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    unpack(done.folder, tmp_path / "out")
    edit_tokenizer_config(tokenizer_class="PreTrainedTokenizerFast")(tmp_path / "out")
    ours = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    for text in ("the the", "aaaa th", "hé\n tea  the", TEXT):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
    assert ours(" the")["input_ids"] != theirs(" the")["input_ids"]


def test_pieces_as_gemma_has_them(tmp_path: Path) -> None:
    """It replaces spaces and then cuts behind them, where none is left."""
    keys = pieces(**{"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
                     "tokenizer.ggml.add_space_prefix": False})  # fmt: skip
    count = len(keys["tokenizer.ggml.tokens"])
    source, _ = artifact(tmp_path, "gemma", keys=keys, vocab_size=count)
    space = {"pattern": {"String": " "}}
    edit_tokenizer(lambda t: t.update(
        normalizer={"type": "Replace", **space, "content": "▁"},
        pre_tokenizer={"type": "Split", **space, "behavior": "MergedWithPrevious", "invert": False},
    ))(source)  # fmt: skip
    done = quant.export(source, tmp_path / "m.gguf", "gguf", verify_files=False)
    assert read_gguf(done.folder).metadata["tokenizer.ggml.add_space_prefix"] is False
    assert not any("space" in note for note in done.notes)
    unpack(done.folder, tmp_path / "out")
    ours, theirs = (
        AutoTokenizer.from_pretrained(each, trust_remote_code=False)
        for each in (tmp_path / "out", source)
    )
    for text in ("the the", " aaaa th", "  hé\n tea", "the<own> the", TEXT):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text


def edit_tokenizer_config(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def test_the_same_input_gives_the_same_bytes_and_a_card(tmp_path: Path) -> None:
    source, weights = artifact(tmp_path)
    (source / "README.md").write_text("---\nbase_model: org/Name\nlicense: mit\n---\n")
    one, other = (quant.export(source, tmp_path / f"{n}.gguf", "gguf").folder for n in "ab")
    assert one.read_bytes() == other.read_bytes()
    texts = [path.with_name(f"{path.stem}.README.md").read_text() for path in (one, other)]
    assert texts[0] == texts[1]
    assert is_sealed(texts[0])
    count = sum(torch.Size(weight.shape).numel() for weight in weights.values())
    for words in ("LlamaForCausalLM, w4g32_sym, GGUF", "base_model: org/Name", "license: mit",
                  f"4.500 of the {count:,} weights", "library_name: gguf",
                  "bitsweep export ARTIFACT OUT.gguf --format gguf"):  # fmt: skip
        assert words in texts[0], words
    said = read_gguf(one).metadata
    assert (said["general.name"], said["general.license"]) == ("Name w4g32_sym", "mit")
    assert said["general.quantized_by"].startswith("bitsweep ")
    assert str(tmp_path) not in str(said)


def test_a_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    source, _ = artifact(tmp_path)
    target = tmp_path / "m.gguf"
    with pytest.raises(ArtifactError, match=r"m: GGUF is one file, .*write to m\.gguf"):
        quant.export(source, tmp_path / "m", "gguf")
    target.write_text("mine")
    with pytest.raises(ArtifactError, match="was not written by Bitsweep, so it is not replaced"):
        quant.export(source, target, "gguf", overwrite=True)
    target.unlink()
    card = tmp_path / "m.README.md"
    card.write_text("mine")
    with pytest.raises(ArtifactError, match=r"m\.README\.md exists and is no model card"):
        quant.export(source, target, "gguf", overwrite=True)
    card.unlink()
    quant.export(source, target, "gguf")
    with pytest.raises(ArtifactError, match="add --overwrite"):
        quant.export(source, target, "gguf")
    before = target.read_bytes()
    left = tmp_path / ".m.gguf.partial-elsewhere-1"
    killed = tmp_path / f".m.gguf.partial-{platform.node()}-{2**22 + 1}"
    for path in (left, killed):
        path.write_text("half of a file")
    quant.export(source, target, "gguf", overwrite=True)
    assert target.read_bytes() == before
    assert left.exists(), "its writer may still run"
    assert not killed.exists()


def drop_tokenizer(folder: Path) -> None:
    for path in (*folder.glob("token*.json"), folder / "artifact.json"):
        path.unlink()


def edit_tokenizer(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        whole = json.loads((folder / "tokenizer.json").read_text())
        change(whole)
        (folder / "tokenizer.json").write_text(json.dumps(whole))

    return edit


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (Scheme(3, 32, symmetric=True), "w3g32_sym|has groups of 32, and Q3_K of GGUF need groups"),
        (Scheme(8, 32), "asymmetric codes of 8 bits, for whose grid GGUF has no type"),
        (Scheme(4, 16, symmetric=True), "has groups of 16, and Q4_0 and Q4_K and Q4_1 of GGUF"),
        (Scheme(2), r"\w+ has 96 inputs, and Q2_K of GGUF have blocks of 256"),
        (Scheme(2, 8, levels="ternary"), "ternary levels, which gguf cannot store"),
    ],
)
def test_schemes_without_a_type(tmp_path: Path, scheme: Scheme, words: str) -> None:
    made = families.model("llama")
    weights = {
        name: random_weight(scheme, *module.weight.shape)
        for name, module in made.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    source = quant.save(tmp_path / "a", made, weights, method={"name": "x"})
    with pytest.raises(ArtifactError, match=words):
        quant.export(source, tmp_path / "m.gguf", "gguf")
    assert not list(tmp_path.glob("*m.*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_tokenizer, "has no tokenizer, which a GGUF file holds"),
        (edit_config(lambda c: c.update(hidden_act="gelu")), "has hidden_act=gelu in config.json"),
        (edit_config(lambda c: c["rope_parameters"].update(rope_type="dynamic", factor=2.0)),
         "positions scaled as dynamic are not written"),
        (edit_tokenizer(lambda t: t.update(normalizer={"type": "Lowercase"})),
         "cuts texts in a way without a name in GGUF"),
        (edit_tokenizer(lambda t: t["added_tokens"][0].update(lstrip=True)),
         "tokenizer whose lstrip of the token <.end.> is True"),
        (edit_tokenizer(lambda t: t["model"].update(dropout=0.5)), "model.dropout is 0.5"),
        (edit_tokenizer(lambda t: t.update(model={
            "type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 9, "vocab": t["model"]["vocab"],
        })), "model.type is WordPiece"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_hold(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    source, _ = artifact(tmp_path)
    change(source)
    with pytest.raises(ArtifactError, match=words):
        quant.export(source, tmp_path / "m.gguf", "gguf", verify_files=False)
    assert not list(tmp_path.glob("*m.*"))


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("gemma2", {"layer_types": ["full_attention"] * 2}, r"has layer_types=\['full"),
        ("gemma2", {"attn_logit_softcapping": None}, "has attn_logit_softcapping=None"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "has query_pre_attn_scalar=16"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "has final_logit_softcapping=30"),
        ("phi2", {"qk_layernorm": True}, "k_layernorm.*, for which GGUF's phi2 has no place"),
    ],
)
def test_what_a_family_cannot_hold(
    tmp_path: Path, family: str, fields: dict[str, Any], words: str
) -> None:
    source, _ = artifact(tmp_path, family, **fields)
    with pytest.raises(ArtifactError, match=words):
        quant.export(source, tmp_path / "m.gguf", "gguf")
    assert not list(tmp_path.glob("*m.*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_gemma_are_stored_with_the_1_that_it_adds(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """As llama.cpp's converter does; the model computes with the same sums."""
    source, _ = artifact(tmp_path, "gemma", dtype=dtype)
    file = quant.export(source, tmp_path / "m.gguf", "gguf").folder
    tensors = [each for each in gguf.GGUFReader(file).tensors if "norm" in each.name]
    stored = {each.name: torch.from_numpy(each.data.copy()) for each in tensors}
    state = families.model("gemma").to(dtype).state_dict()
    assert len(stored) == 5
    assert torch.equal(stored["output_norm.weight"], state["model.norm.weight"].float() + 1)
    again = loaded(unpack(file, tmp_path / "out")).state_dict()
    for name in (name for name in state if name.endswith("norm.weight")):
        assert torch.equal(again[name] + 1, state[name].float() + 1), name
    same_model(file, source, tmp_path / "out")


@pytest.mark.parametrize("family", families.FAMILIES)
def test_llama_cpps_window_is_named_only_where_it_is_ignored(tmp_path: Path, family: str) -> None:
    source, _ = artifact(tmp_path, family)
    done = quant.export(source, tmp_path / "m.gguf", "gguf")
    assert any("sliding window" in note for note in done.notes) == (family == "phi3")
    # A name with "phi3" in it would have llama.cpp ask for tokens of Phi-3's vocabulary.
    assert read_gguf(done.folder).metadata["general.name"] == "model w4g32_sym"


def test_another_architecture_and_other_values(tmp_path: Path) -> None:
    source, _ = artifact(tmp_path, model_type="granite")
    with pytest.raises(ArtifactError, match="is a granite model, and only gemma, gemma2, gemma3_t"):
        quant.export(source, tmp_path / "m.gguf", "gguf")
    (tmp_path / "q").mkdir()
    source, weights = artifact(tmp_path / "q", "llama", Scheme(4, 32))
    made = families.model("llama")
    for weight in weights.values():
        weight.scale.fill_(0.1)
    source = quant.save(tmp_path / "inexact", made, weights, method={"name": "x"},
                        tokenizer=tmp_path / "q" / "tokenizer")  # fmt: skip
    with pytest.raises(ArtifactError, match=r"minima .* are not exact in float16, which Q4_1 has"):
        quant.export(source, tmp_path / "m.gguf", "gguf")
    assert not list(tmp_path.glob("*m.*"))
