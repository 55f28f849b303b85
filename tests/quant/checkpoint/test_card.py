"""Model cards: what they say, from where, and what becomes of the cards of others."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import quant
from quant.checkpoint import verify
from quant.checkpoint.card import add_figures, is_sealed, origin_of, origin_of_export
from quant.checkpoint.choose import written
from quant.checkpoint.folder import CARD, MANIFEST
from quant.checkpoint.tensors import TensorReader
from quant.scheme import Scheme
from tests.quant.tiny_checkpoints import METHOD, quantized

FIGURES = "| text | perplexity |\n|---|---|\n| here | 4.2 |"
THEIRS = "---\nbase_model: org/name\nlicense: other\nlicense_name: odd\n---\n# Mine\n"
CALIB = {"name": "stories", "protocol": "p", "path": None, "sequences": 32, "length": 64}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    model, weights = quantized("llama", Scheme(4, group_size=8, symmetric=True))
    method = {"name": "gptq", "act_order": True, "calib": CALIB}
    return quant.save(tmp_path / "artifact", model, weights, method=method)


def text(folder: Path) -> str:
    return (folder / CARD).read_text(encoding="utf-8")


def test_an_artifact_says_what_it_is(artifact: Path) -> None:
    card = ModelCard(text(artifact))
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["bitsweep", "gptq"],
    }, "nothing is known of base and licence, so nothing is said"
    for words in (
        "LlamaForCausalLM, w4g8_sym, GPTQ v2", "14 quantized linear layers",
        "| method | gptq: act_order true |",
        "| calibration | length 64, name stories, protocol p, sequences 32 |",
        "4 bits, groups of 8, symmetric, uniform levels, minmax grid, float16 scales",
    ):  # fmt: skip
        assert words in card.text, words
    assert "Figures" not in card.text
    assert str(artifact.parent) not in card.text
    assert is_sealed(text(artifact))


@pytest.mark.parametrize("format", ["gptq-v2", "compressed-tensors", "awq"])
def test_bits_per_weight_are_those_of_the_file(artifact: Path, tmp_path: Path, format: str) -> None:
    folder = quant.export(artifact, tmp_path / "out", format).folder
    layers = tuple(quant.load_weights(folder))
    weights = sum(torch.Size(each.shape).numel() for each in quant.load_weights(folder).values())
    with TensorReader(folder) as reader:
        bits = {name: 8 * reader.nbytes(name) for name in reader.names}
        values = {name: torch.Size(reader.shape(name)).numel() for name in reader.names}
    packed = [name for name in bits if name.rpartition(".")[0] in layers]
    others = bits.keys() - set(packed)
    of_layers = sum(bits[name] for name in packed) / weights
    of_all = sum(bits.values()) / (weights + sum(values[name] for name in others))
    said = text(folder)
    assert f"| {of_layers:.3f} of the {weights:,} weights" in said
    assert f"{of_all:.3f} of all tensors" in said


def test_every_format_says_what_its_readers_need(artifact: Path, tmp_path: Path) -> None:
    for name, (format, writer) in written().items():
        refused = writer.refuses(Scheme(4, group_size=8, symmetric=True), None)
        if refused is not None or writer.factored:
            continue
        exported = quant.export(artifact, tmp_path / name, name)
        said = text(exported.folder)
        for note in (format.readers, *exported.notes):
            assert note in said
        assert f"bitsweep export ARTIFACT OUT --format {name}\n" in said
        assert ModelCard(said).data.library_name == format.library


def test_the_same_input_gives_the_same_bytes(artifact: Path, tmp_path: Path) -> None:
    one, other = (quant.export(artifact, tmp_path / name, "awq").folder for name in ("a", "b"))
    assert text(one) == text(other)


def test_the_manifest_does_not_list_the_card(artifact: Path) -> None:
    """Its owner may change it, and the hash of an artifact does not move with it."""
    assert CARD not in json.loads((artifact / MANIFEST).read_text())["files"]
    (artifact / CARD).write_text("mine")
    assert verify(artifact)
    (artifact / CARD).unlink()
    assert verify(artifact)


def test_a_card_of_others_is_kept_and_its_metadata_carried(artifact: Path, tmp_path: Path) -> None:
    (artifact / CARD).write_text(THEIRS)
    first = quant.export(artifact, tmp_path / "a", "compressed-tensors").folder
    assert (first / "README.source.md").read_text() == THEIRS
    assert "README.source.md" in json.loads((first / MANIFEST).read_text())["files"]
    data = ModelCard(text(first)).data
    assert (data.base_model, data.base_model_relation) == ("org/name", "quantized")
    assert (data.license, data.license_name) == ("other", "odd")
    second = quant.export(first, tmp_path / "b", "gptq-v2").folder
    assert (second / "README.source.md").read_text() == THEIRS, "ours between is made again"
    assert ModelCard(text(second)).data.base_model == "org/name"
    assert "compressed-tensors\nbitsweep export ARTIFACT OUT --format gptq-v2\n" in text(second)
    changed = text(second) + "My own words.\n"
    (second / CARD).write_text(changed)
    third = quant.export(second, tmp_path / "c", "gptq-v1").folder
    assert (third / "README.source.md").read_text() == changed
    assert (third / "README.source.source.md").read_text() == THEIRS


@pytest.mark.parametrize("theirs", [b"---\n: [\n---\n", b"---\n- a\n---\n", b"\xff\xfe", b""])
def test_a_card_that_cannot_be_read_says_nothing(artifact: Path, theirs: bytes) -> None:
    (artifact / CARD).write_bytes(theirs)
    found = origin_of_export(artifact, "again")
    assert (found.base, found.licence, found.figures) == ((), {}, "")


def test_figures_come_and_are_replaced_and_carried(artifact: Path, tmp_path: Path) -> None:
    before = text(artifact)
    assert add_figures(artifact, "| old |")
    assert add_figures(artifact, FIGURES)
    assert f"## Figures\n\n{FIGURES}\n" in text(artifact)
    assert "| old |" not in text(artifact)
    assert is_sealed(text(artifact))
    folder = quant.export(artifact, tmp_path / "out", "awq").folder
    assert f"## Figures\n\n{FIGURES}\n" in text(folder)
    assert add_figures(artifact, "")
    assert text(artifact) == before
    (artifact / CARD).write_text(before.replace("gptq", "mine"))
    assert not add_figures(artifact, FIGURES), "its owner changed it"
    assert FIGURES not in text(artifact)
    (artifact / CARD).unlink()
    assert not add_figures(artifact, FIGURES)


def test_the_licence_of_a_base_is_that_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("---\nlicense: mit\nbase_model: org/older\n---\n")
    found = origin_of(tmp_path, "org/base")
    assert (found.base, found.licence) == (("org/base",), {"license": "mit"})
    assert origin_of(tmp_path / "none").licence == {}


def test_metadata_is_yaml_at_the_top(artifact: Path) -> None:
    _, head, _ = text(artifact).split("---\n", 2)
    assert yaml.safe_load(head)["tags"] == ["bitsweep", "gptq"]
    model, weights = quantized("llama", Scheme(2, group_size=8, levels="ternary"))
    folder = quant.save(artifact.parent / "ternary", model, weights, method=METHOD)
    assert ModelCard(text(folder)).data.library_name == "bitsweep"
