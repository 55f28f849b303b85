"""The fused decode step against the model's own forward; models it cannot take."""

import pytest
import torch

from cuda_ext import packed as packed_kernels
from quant import QuantizationConfig, Scheme, load, quantize_model, save
from quant.decode import caches
from quant.decode.choose import make_decoder
from quant.decode.description import Unsupported
from quant.decode.fused import PLAIN_TOGETHER, TOGETHER, FusedDecoder
from quant.decode.open import halved
from quant.solvers import rtn
from tests.quant.architectures import CONFIGS, tiny_model

PROMPT, TOKENS = 9, 12
WIDE_HEADS = {"hidden_size": 64, "head_dim": 16, "max_position_embeddings": 128}
FAMILIES = {
    "llama": WIDE_HEADS,
    "qwen3": WIDE_HEADS,
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "max_position_embeddings": 128},
    "bloom": {"hidden_size": 64},
    "gpt-neox": {"hidden_size": 64, "max_position_embeddings": 128},
    "phi": {"hidden_size": 64, "max_position_embeddings": 128},
}
NOT_TAKEN = {
    "opt-350m": "its embeddings have another width than its layers",
    "gemma": "its activation is GELUTanh, not SiLU",
    "gemma2": "Gemma2DecoderLayer differs from Llama's in post_feedforward_layernorm",
    "gpt2": "GPT2Model is not built like Llama, OPT, BLOOM, GPT-NeoX, Phi",
    "llama": "a head is 8 wide, no multiple of 16",
}


def wide(name: str, **changes):
    """A tiny model of a family that a step takes."""
    return tiny_model(name, **{**FAMILIES[name], "tie_word_embeddings": False, **changes})


def llama(name: str = "llama", **changes):
    return tiny_model(name, **{**WIDE_HEADS, "tie_word_embeddings": False, **changes})


def prompt_of(tokens: int = PROMPT, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 96, (1, tokens), generator=torch.Generator().manual_seed(seed))


def run(decoder, prompt, tokens: int = TOKENS) -> tuple[list[int], torch.Tensor]:
    decoder.prefill(prompt)
    answer, logits = [int(decoder.token)], [decoder.logits.clone()]
    for _ in range(tokens):
        decoder.step()
        answer.append(int(decoder.token))
        logits.append(decoder.logits.clone())
    return answer, torch.cat(logits)


def without_cache(model, prompt, tokens: int = TOKENS) -> tuple[list[int], torch.Tensor]:
    logits = []
    with torch.inference_mode():
        for _ in range(tokens + 1):
            logits.append(model(input_ids=prompt, use_cache=False).logits[:, -1])
            prompt = torch.cat([prompt, logits[-1].argmax(-1, keepdim=True)], 1)
    return prompt[0, -tokens - 1 :].tolist(), torch.cat(logits)


def packed(model, scheme: Scheme, folder):
    result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, scheme))
    save(folder, model, result.weights, method={"name": "rtn"})
    return load(folder, dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", [None, *(Scheme(bits, 32) for bits in (2, 3, 4, 8))], ids=str)
def test_tokens_and_logits_are_those_of_full_forward_passes(scheme, family, tmp_path) -> None:
    model = wide(family)
    if scheme is not None:
        model = packed(model, scheme, tmp_path / "q")
    decoder = make_decoder(model, prompt_of(), TOKENS)
    assert (decoder.mode, decoder.reason) == (caches.FUSED, "")
    for seed, length in ((0, PROMPT), (1, 3)):  # it starts anew with every prompt
        prompt = prompt_of(length, seed)
        expected, logits = without_cache(model, prompt)
        found, fused = run(decoder, prompt)
        assert found == expected
        assert (logits[0] - logits[-1]).abs().max() > 0.01  # tokens and positions matter
        torch.testing.assert_close(fused, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"tie_word_embeddings": True}, id="tied"),
        pytest.param({"attention_bias": True, "mlp_bias": True}, id="biases"),
        pytest.param({"num_attention_heads": 2, "num_key_value_heads": 1}, id="one-key-head"),
        pytest.param({"intermediate_size": 43, "hidden_size": 52}, id="odd-sizes"),
        pytest.param(
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
            id="stretched-positions",
        ),
    ],
)
def test_shapes_and_settings(changes) -> None:
    model, prompt = llama(**changes), prompt_of()
    decoder = make_decoder(model, prompt, TOKENS)
    assert decoder.mode == caches.FUSED
    expected, logits = without_cache(model, prompt)
    found, fused = run(decoder, prompt)
    torch.testing.assert_close(fused, logits, rtol=1e-4, atol=1e-4)
    assert found == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_prompt_gives_the_logits_of_tokens_one_by_one(family, tmp_path) -> None:
    """The same bits on the portable kernels; the others take one token by whole numbers."""
    model, prompt = packed(wide(family), Scheme(4, 32), tmp_path / "q"), prompt_of(TOGETHER + 9)
    together, single = (FusedDecoder(model, 100) for _ in range(2))
    together.prefill(prompt)
    single.prefill(prompt[:, :1])
    for at in range(1, prompt.shape[1]):
        single.token = prompt[:, at : at + 1].contiguous()
        single.step()
    torch.testing.assert_close(single.logits, together.logits, rtol=0, atol=1e-4)
    if packed_kernels.cpu_isa() == "portable":
        assert torch.equal(together.logits, single.logits)


def test_a_long_prompt_of_plain_layers_goes_through_the_forward_of_the_model() -> None:
    """The product with plain weights is slower there, and a baseline must not be."""
    model, calls = llama(), []
    decoder = FusedDecoder(model, 80)
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for length, forwards in ((PLAIN_TOGETHER, 0), (PLAIN_TOGETHER + 1, 1)):
        found = run(decoder, prompt_of(length))
        assert len(calls) == forwards
        calls.clear()
        expected = without_cache(model, prompt_of(length))
        calls.clear()
        assert found[0] == expected[0]
        torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


def test_any_number_of_threads_gives_the_same_bits(tmp_path) -> None:
    model, prompt = packed(llama(), Scheme(3, 32), tmp_path / "q"), prompt_of()
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5, 19):  # above 16 of them a part of a stage has several threads
            torch.set_num_threads(number)
            found.append(run(FusedDecoder(model, 32), prompt)[1])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_other_models_fall_back_and_say_why(name) -> None:
    model, prompt = tiny_model(name), prompt_of()
    decoder = make_decoder(model, prompt, TOKENS)
    assert decoder.mode in (caches.STATIC, caches.DYNAMIC)
    assert f"no fused step: {NOT_TAKEN[name]}" in decoder.reason
    assert run(decoder, prompt)[0] == without_cache(model, prompt)[0]


def test_every_architecture_is_decoded_rightly_by_whatever_is_chosen() -> None:
    for name in CONFIGS:
        model, prompt = tiny_model(name), prompt_of()
        assert (
            run(make_decoder(model, prompt, 4), prompt, 4)[0]
            == (without_cache(model, prompt, 4)[0])
        )


def test_a_sliding_window_shorter_than_the_positions_is_said() -> None:
    decoder = make_decoder(llama("mistral", sliding_window=8), prompt_of(), TOKENS)
    assert decoder.mode == caches.DYNAMIC
    assert decoder.reason.startswith(
        "no fused step: its sliding window of 8 is shorter than the 21"
    )


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param("opt", {"activation_function": "gelu", "enable_bias": False}, id="galactica"),
        pytest.param("gpt-neox", {"hidden_act": "gelu_new"}, id="gelu-by-its-tanh"),
        pytest.param("gpt-neox", {"use_parallel_residual": False}, id="one-after-the-other"),
        pytest.param("gpt-neox", {"attention_bias": False}, id="no-biases-of-attention"),
        pytest.param("phi", {"num_key_value_heads": 2}, id="shared-keys"),
        pytest.param("bloom", {"n_head": 3, "hidden_size": 48}, id="three-heads"),
        pytest.param("qwen3", {"head_dim": 32}, id="wide-heads"),
    ],
)
def test_settings_of_families(family, changes) -> None:
    model, prompt = wide(family, **changes), prompt_of()
    decoder = make_decoder(model, prompt, TOKENS)
    assert (decoder.mode, decoder.reason) == (caches.FUSED, "")
    expected, logits = without_cache(model, prompt)
    found, fused = run(decoder, prompt)
    torch.testing.assert_close(fused, logits, rtol=1e-4, atol=1e-4)
    assert found == expected


def test_opt_without_room_for_the_positions_is_said() -> None:
    """Its own forward raises at the first position without a row; a step must not go on."""
    model, prompt = wide("opt", max_position_embeddings=20), prompt_of()
    with pytest.raises(Unsupported, match="it has 20 positions, fewer than 21"):
        FusedDecoder(model, PROMPT + TOKENS)
    decoder = FusedDecoder(model, 20)
    found = run(decoder, prompt, 20 - PROMPT)
    assert found[0] == without_cache(model, prompt, 20 - PROMPT)[0]
    with pytest.raises(IndexError, match="position 20 of a model with 20"):
        decoder.step()


def test_rotations_by_length_are_refused_and_no_module_is_changed() -> None:
    """A dynamic module rewrites its frequencies for the longest position that it is asked for."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = wide("llama", max_position_embeddings=16, rope_parameters=rope)
    before, prompt = model.model.rotary_emb.inv_freq.clone(), prompt_of(12)
    decoder = make_decoder(model, prompt, 2)
    assert "its rotations (dynamic) depend on the length of the text" in decoder.reason
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    assert run(decoder, prompt, 2)[0] == without_cache(model, prompt, 2)[0]


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("opt", {"do_layer_norm_before": False}, "its norms come behind the parts of a layer"),
        ("opt", {"_remove_final_layer_norm": True}, "it has no norm before the head"),
        ("phi", {"qk_layernorm": True}, "it has LayerNorms of queries and keys"),
        ("gpt-neox", {"hidden_act": "gelu_10"}, "its activation is ClippedGELUActivation"),
        (
            "opt",
            {"activation_function": "silu"},
            "its activation is SiLUActivation, not ReLU or GELU",
        ),
        (
            "opt",
            {"layer_norm_elementwise_affine": False},
            "its norm is LayerNorm without weight and bias, not an RMSNorm or LayerNorm",
        ),
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "its layers add to their normed inputs",
        ),
    ],
)
def test_what_a_family_may_do_otherwise_is_named(name, changes, reason) -> None:
    with pytest.raises(Unsupported, match=reason):
        FusedDecoder(wide(name, **changes), 32)


def test_what_modules_do_not_show_is_seen_in_the_logits() -> None:
    """A forward that scales its logits is not what the modules say."""
    model, prompt = llama(), prompt_of()
    model.lm_head.register_forward_hook(lambda *args: args[2] * 1.5)
    decoder = make_decoder(model, prompt, TOKENS)
    assert decoder.mode == caches.STATIC
    assert "no fused step: its logits at the prompt are" in decoder.reason


def test_other_types_kernels_and_operators_are_named(tmp_path) -> None:
    with pytest.raises(Unsupported, match=r"its activations are torch\.bfloat16"):
        FusedDecoder(llama().bfloat16(), 32)
    model = packed(llama(), Scheme(5, 32), tmp_path / "q")  # 5 bits have no kernel
    with pytest.raises(Unsupported, match=r"a layer is multiplied by cpu \(dequantizes first\)"):
        FusedDecoder(model, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_head_that_was_stored_in_16_bits_is_read_as_such(family, dtype) -> None:
    model, prompt = wide(family), prompt_of()
    assert FusedDecoder(model, 32).spared_bytes() == 0
    head = model.lm_head.weight
    with torch.no_grad():
        head.copy_(head.to(dtype).float())
    assert halved(head).dtype == dtype
    decoder = FusedDecoder(model, 32)
    assert decoder.spared_bytes() == head.nbytes // 2
    torch.testing.assert_close(
        run(decoder, prompt)[1], without_cache(model, prompt)[1], rtol=1e-4, atol=1e-4
    )


def test_bytes_of_keys_and_values_and_the_parts_of_a_step() -> None:
    model, prompt = llama(), prompt_of()
    decoder = FusedDecoder(model, PROMPT + TOKENS)
    run(decoder, prompt)
    assert decoder.kv_bytes() == (PROMPT + TOKENS) * 3 * 2 * 2 * 16 * 4
    parts = decoder.parts_ms()
    assert set(parts) == {"kernels", "attention", "rest"}
    assert all(0 < value < 1000 for value in parts.values())
    for _ in range(32 - PROMPT - TOKENS):
        decoder.step()
    with pytest.raises(RuntimeError, match="step_run: position=32 and 1 tokens go past the 32"):
        decoder.step()
