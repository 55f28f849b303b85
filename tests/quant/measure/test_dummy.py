"""Dummy models: memory as predicted, finite logits, the same by seed, refused when too large."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import NotEnoughMemory, SchemeError
from quant.levels.base import load_levels
from quant.linear import QuantLinear, pack, packed_shapes, unpack
from quant.measure import dummy, roofline
from quant.measure.architectures import ARCHITECTURES, ArchitectureError, architecture_config
from quant.measure.dummy import build_dummy, predict_memory, random_packed
from quant.scheme import Scheme
from tests.quant.architectures import BLOCKS, CONFIGS, LINEARS_PER_BLOCK, VOCABULARY

SCHEMES = (
    Scheme(3),
    Scheme(4, 16),
    Scheme(4, 32),  # 48 inputs end in a short group
    Scheme(6, 32),
    Scheme(2, 16, levels="ternary"),
    Scheme(8, symmetric=True, scale_dtype="float32"),
)
KERNELS = ("reference", "auto")


def tiny_config(name: str):
    kind, changes = CONFIGS[name]
    return kind(**{"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, **changes})


def tokens() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_is_built_packed_as_predicted(name: str, kernel: str) -> None:
    scheme = Scheme(3, 16)
    model = build_dummy(tiny_config(name), scheme, kernel=kernel)
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert len(layers) == LINEARS_PER_BLOCK[name] * BLOCKS
    need = predict_memory(tiny_config(name), scheme, dtype=torch.float32, kernel=layers[0].kernel)
    held = sum(
        buffer.nbytes for each in layers for key, buffer in each.named_buffers() if key != "bias"
    )
    assert held == need.packed
    assert roofline.weight_bytes(model) == need.model
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    with torch.inference_mode():
        logits = model(input_ids=tokens()).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.1


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kind_of_scheme(scheme: Scheme, kernel: str) -> None:
    config = tiny_config("llama")  # 48 inputs do not fill their last word at 3 bits
    model = build_dummy(config, scheme, kernel=kernel)
    resolved = next(m.kernel for m in model.modules() if isinstance(m, QuantLinear))
    need = predict_memory(config, scheme, dtype=torch.float32, kernel=resolved)
    assert roofline.weight_bytes(model) == need.model
    with torch.inference_mode():
        assert torch.isfinite(model(input_ids=tokens()).logits).all()


@pytest.mark.parametrize("name", ["opt", "bloom", "llama", "gpt2"])
def test_full_precision_in_place(name: str) -> None:
    config = tiny_config(name)
    model = build_dummy(config, None, dtype=torch.bfloat16)
    need = predict_memory(config, None, dtype=torch.bfloat16, kernel="reference")
    assert need.packed == need.transient == 0
    assert roofline.weight_bytes(model) == need.dense
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        assert torch.isfinite(model(input_ids=tokens()).logits).all()


def test_tied_embeddings_stay_one_tensor() -> None:
    model = build_dummy(tiny_config("opt"), Scheme(4))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_seed_decides() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        return build_dummy(tiny_config("opt"), Scheme(4), seed=seed).state_dict()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_activations_keep_their_size_through_many_blocks() -> None:
    config = tiny_config("opt")
    config.num_hidden_layers = 96
    model = build_dummy(config, Scheme(3), dtype=torch.float32)
    with torch.inference_mode():
        states = model.model.decoder(input_ids=tokens()).last_hidden_state
        assert 0.1 < states.std() < 10


@settings(deadline=None, max_examples=40)
@given(
    bits=st.sampled_from([2, 3, 4, 5, 6, 7, 8, "ternary"]),
    inputs=st.integers(1, 9).map(lambda n: 8 * n),
    outputs=st.integers(1, 40),
    group=st.sampled_from([None, 8, 20]),
)
def test_random_codes_are_codes(bits, inputs, outputs, group) -> None:
    """Whatever the shape: valid codes, nothing behind the last one, scales that are no nonsense."""
    ternary = bits == "ternary"
    scheme = Scheme(2 if ternary else bits, group, levels="ternary" if ternary else "uniform")
    packed = random_packed(scheme, inputs, outputs, torch.Generator().manual_seed(inputs))
    assert {name: tuple(t.shape) for name, t in packed.items()} == packed_shapes(
        scheme, inputs, outputs
    )
    weight = unpack(packed, scheme, inputs)
    assert int(weight.codes.max()) <= scheme.max_code
    assert (weight.scale > 0).all()

    again = pack(weight)
    assert all(torch.equal(again[name], packed[name]) for name in packed)


def test_random_weights_have_the_variance_they_promise() -> None:
    for scheme in (Scheme(2), Scheme(3), Scheme(4, 64), Scheme(8), Scheme(2, levels="ternary")):
        packed = random_packed(scheme, 512, 512, torch.Generator().manual_seed(0))
        weight = unpack(packed, scheme, 512).dequantize()
        assert weight.std() * 512**0.5 == pytest.approx(1, abs=0.25), scheme.name
        if scheme.levels != "ternary":
            assert abs(weight.mean()) * 512**0.5 < 0.05, scheme.name


def test_what_does_not_fit_is_refused_with_figures(monkeypatch) -> None:
    monkeypatch.setattr(dummy, "free_memory", lambda device: 100 * 2**30)

    def never(*_: object) -> None:
        raise AssertionError("allocated before the memory was checked")

    monkeypatch.setattr(dummy, "_pack_blocks", never)
    with pytest.raises(NotEnoughMemory) as refused:
        build_dummy(architecture_config("opt-66b"), None, dtype=torch.float16)
    message = str(refused.value)
    assert "OPTForCausalLM needs 122." in message
    assert "100.00 GiB are free" in message


def test_memory_of_the_sizes_that_are_to_be_timed() -> None:
    """Hand-counted parameters: OPT-66B holds 65.7 billion, OPT-175B 174.6 billion."""

    def need(name: str, scheme: Scheme | None):
        return predict_memory(architecture_config(name), scheme, dtype=torch.float16, kernel="cpu")

    def parameters(hidden: int, layers: int) -> int:
        block = 12 * hidden**2 + 13 * hidden  # matrices, their biases and two norms
        return layers * block + (50272 + 2050) * hidden + 2 * hidden

    assert need("opt-66b", None).model == 2 * parameters(9216, 64)
    three = need("opt-175b", Scheme(3, 128))
    codes = 96 * 12 * 12288**2 * 3 // 8
    grids = 96 * 12 * 12288**2 // 128 * 3
    assert three.packed == codes + grids
    assert three.dense == 2 * (parameters(12288, 96) - 96 * 12 * 12288**2)
    assert three.model == 70_623_264_768


def test_every_architecture_has_a_config() -> None:
    for name in ARCHITECTURES:
        assert architecture_config(name).model_type in ("opt", "bloom", "llama")


def test_a_config_file_is_taken(tmp_path: Path) -> None:
    tiny_config("qwen3").save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        assert architecture_config(str(path)).model_type == "qwen3"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        (json.dumps({"hidden_size": 8}), "model_type=None is not a model"),
        (json.dumps({"model_type": "gtp"}), "model_type='gtp' is not a model"),
        (None, "neither a name .*opt-175b.* nor a config.json"),
    ],
)
def test_bad_architectures_are_named(tmp_path: Path, content, sentence) -> None:
    file = tmp_path / "some.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ArchitectureError, match=sentence):
        architecture_config(str(file))


def test_levels_without_random_weights_are_refused() -> None:
    silent = replace(load_levels("uniform"), name="silent", draw=None)
    with pytest.raises(SchemeError, match="silent levels have no random weights"):
        build_dummy(tiny_config("opt"), Scheme(4, levels=silent))
