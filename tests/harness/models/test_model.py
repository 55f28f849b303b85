"""Models that are complete, incomplete, or not there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import cli
from harness.config.schema import ModelConfig
from harness.errors import ModelError
from harness.models.checkpoints import load_packed
from harness.models.folders import (
    load_model,
    load_tokenizer,
    weights_read,
)
from harness.models.model import StoredModel, find_model
from harness.models.streaming import open_source
from harness.models.whole import require_whole
from quant.checkpoint.make import quantize_to
from quant.config import QuantizationConfig
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.harness.cells import local


def test_the_embedded_model_is_found_without_importing_it() -> None:
    model = find_model(ModelConfig(name="embedded", source="embedded"))
    assert isinstance(model, StoredModel)
    assert (model.folder / "config.json").is_file()


def test_truncated_weights_are_refused_with_the_next_step(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ModelError, match="download or copy them again"):
        load_model(copy, local(copy))


def test_a_broken_tokenizer_is_refused_with_the_next_step(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer could not be read"):
        load_tokenizer(copy, local(copy))


def test_a_model_loads_as_configured(copy: Path) -> None:
    config = local(copy)
    config.dtype, config.attention = "bfloat16", "eager"
    model = load_model(copy, config)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert load_tokenizer(copy, config)("Tom had").input_ids


def test_what_the_loader_would_make_up_or_drop_is_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    for change, said in (
        ({name: None, name + "x": tensors[name]}, f"no values for {name} of OPTForCausalLM"),
        ({"stray": torch.ones(2)}, "hold stray, which OPTForCausalLM does not have"),
        ({name: torch.ones(3, 5)}, rf"{name} \[3, 5\], which is another shape"),
    ):
        changed = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(ModelError, match=said) as loaded:
            load_model(copy, local(copy))
        with pytest.raises(ModelError) as planned:
            require_whole(find_model(local(copy)))
        with pytest.raises(ArtifactError) as streamed:
            open_source(find_model(local(copy)), "cpu", copy)
        assert str(loaded.value) == str(planned.value) == str(streamed.value)
    save_file({**tensors, "model.decoder.version": torch.ones(1)}, file, {"format": "pt"})
    keys = weights_read(copy, load_model(copy, local(copy)))["keys"]
    head, embedding = "lm_head.weight", "model.decoder.embed_tokens.weight"
    assert keys == {
        head: f"tied to {embedding}",
        "model.decoder.version": "a mark of its converter",
    }


CODE = """
from pathlib import Path
from transformers import OPTConfig, OPTForCausalLM
Path({ran!r}).write_text("ran")

class OwnConfig(OPTConfig):
    model_type = "own"

class OwnForCausalLM(OPTForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_when_its_key_says_so(
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    ran = tmp_path / "ran"
    (copy / "own.py").write_text(CODE.format(ran=str(ran)))
    config = json.loads((copy / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto}
    (copy / "config.json").write_text(json.dumps(config))
    chosen = local(copy)
    for attempt in (
        lambda: load_model(copy, chosen),
        lambda: open_source(find_model(chosen), "cpu", tmp_path),
    ):
        with pytest.raises((ModelError, ArtifactError), match=r"model\.trust_remote_code=true"):
            attempt()
    load_tokenizer(copy, chosen)
    assert not ran.exists()

    plain = find_model(chosen)
    chosen.trust_remote_code = True
    trusted = find_model(chosen)
    assert isinstance(plain, StoredModel)
    assert isinstance(trusted, StoredModel)
    assert trusted.fingerprint != plain.fingerprint, "the code decides figures"
    assert trusted.semantics()["trust_remote_code"] is True
    assert type(load_model(copy, chosen)).__name__ == "OwnForCausalLM"
    with open_source(trusted, "cpu", tmp_path) as source:
        assert type(source.model).__name__ == "OwnForCausalLM"
        plan = QuantizationConfig(rtn.SOLVER, Scheme(8))
        artifact = tmp_path / "artifact"
        quantize_to(artifact, source, [], plan, model_hash="x", method={"name": "rtn"})
    assert ran.exists()
    with pytest.raises(ArtifactError, match=r"model\.trust_remote_code=true"):
        load_packed(artifact, "reference", "cpu", "float32", "sdpa")
    packed = load_packed(artifact, "reference", "cpu", "float32", "sdpa", trust=True)
    assert type(packed).__name__ == "OwnForCausalLM"
    verbs = [str(artifact), str(tmp_path / "out"), "--format", "gptq-v1"]
    assert cli.main(["inspect", str(artifact)]) == cli.OK, "it needs no model"
    assert cli.main(["export", *verbs]) == cli.IMPOSSIBLE
    assert "bitsweep export --trust-remote-code" in capsys.readouterr().err
    assert cli.main(["export", *verbs, "--trust-remote-code"]) == cli.OK
    exported = load_packed(tmp_path / "out", "reference", "cpu", "float32", "sdpa", trust=True)
    assert type(exported).__name__ == "OwnForCausalLM"
    (copy / "own.py").write_text(CODE.format(ran=str(ran)) + "# changed")
    changed = find_model(chosen)
    assert isinstance(changed, StoredModel)
    assert changed.fingerprint != trusted.fingerprint
    config["auto_map"]["AutoModelForCausalLM"] = "somebody/else--own.OwnForCausalLM"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="code of another repository"):
        open_source(trusted, "cpu", tmp_path)
