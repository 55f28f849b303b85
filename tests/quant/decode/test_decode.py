"""Decoding with a static cache: the tokens and logits of the ordinary decode, graph or not."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from quant.decode import caches, choose
from quant.decode.caches import DynamicDecoder, StaticDecoder
from quant.decode.choose import make_decoder
from tests.quant.architectures import CONFIGS, tiny_model

PROMPT, TOKENS = 9, 12
# What a stream that is being captured refuses: a look at a value on the host, and a tensor made of
# host values.
FORBIDDEN = {"_local_scalar_dense", "is_nonzero", "nonzero", "lift_fresh", "equal"}
WIDE = {"sliding_window": 64}  # a window that all positions of the test fit


class Capturing(TorchDispatchMode):
    """Raises where CUDA would end a capture."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.").split(".")[0]
        if name in FORBIDDEN:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        return func(*args, **(kwargs or {}))


class FakeGraph:
    """A CUDA graph in all but speed: the step is run once under watch, then repeated.

    As on a GPU a replay changes no Python object: it writes to the logits of the captured step.
    """

    def __init__(self) -> None:
        self.warmed = self.replayed = 0

    def __call__(self, warm: Callable[[], None], step: Callable[[], None]) -> Callable[[], None]:
        for _ in range(choose.WARM_STEPS):
            warm()
            self.warmed += 1
        with Capturing():
            step()
        decoder = step.__self__  # type: ignore[attr-defined]
        captured = decoder.logits

        def replay() -> None:
            self.replayed += 1
            held = decoder.logits
            with Capturing():
                step()
            captured.copy_(decoder.logits)
            decoder.logits = held

        return replay


def prompt_of(tokens: int = PROMPT, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 96, (1, tokens), generator=generator)


def model_of(name: str):
    """With an output layer of its own: tied to the embeddings, greedy tokens repeat themselves."""
    sliding = name in ("mistral", "qwen2", "gemma2")
    return tiny_model(name, tie_word_embeddings=False, **(WIDE if sliding else {}))


def run(decoder, prompt, tokens=TOKENS) -> tuple[list[int], torch.Tensor]:
    """The greedy tokens and the logits behind them [tokens + 1, vocabulary]."""
    decoder.prefill(prompt)
    answer, logits = [int(decoder.token)], [decoder.logits.clone()]
    for _ in range(tokens):
        decoder.step()
        answer.append(int(decoder.token))
        logits.append(decoder.logits.clone())
    return answer, torch.cat(logits)


def without_cache(model, prompt, tokens=TOKENS) -> tuple[list[int], torch.Tensor]:
    """The same by full forward passes."""
    logits = []
    with torch.inference_mode():
        for _ in range(tokens + 1):
            logits.append(model(input_ids=prompt, use_cache=False).logits[:, -1])
            prompt = torch.cat([prompt, logits[-1].argmax(-1, keepdim=True)], 1)
    return prompt[0, -tokens - 1 :].tolist(), torch.cat(logits)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mode", [caches.DYNAMIC, caches.STATIC, caches.GRAPH])
def test_every_mode_gives_the_tokens_and_logits_of_full_forward_passes(name, mode) -> None:
    model, prompt = model_of(name), prompt_of()
    graph = FakeGraph()
    if mode == caches.DYNAMIC:
        decoder = DynamicDecoder(model)
    else:
        record = graph if mode == caches.GRAPH else None
        decoder = make_decoder(model, prompt, TOKENS, record, fused=False)
    if name == "falcon" and mode == caches.GRAPH:
        # Its attention makes a tensor of a number at every step.
        assert decoder.mode == caches.STATIC
        assert "no CUDA graph: RuntimeError: operation not permitted" in decoder.reason
        return
    assert decoder.mode == mode
    expected, logits = without_cache(model, prompt)
    found, static_logits = run(decoder, prompt)
    assert found == expected
    assert len(set(found)) > 2  # a model stuck on one token would hide a wrong loop
    torch.testing.assert_close(static_logits, logits, rtol=1e-4, atol=1e-4)
    if mode == caches.GRAPH:
        assert (graph.warmed, graph.replayed) == (choose.WARM_STEPS, TOKENS)
        assert decoder.reason == ""


def test_a_decoder_starts_anew_with_every_prompt() -> None:
    model = model_of("llama")
    decoder = make_decoder(model, prompt_of(), TOKENS, FakeGraph())
    for seed, length in ((1, PROMPT), (2, 5), (1, PROMPT)):
        prompt = prompt_of(length, seed)
        assert run(decoder, prompt)[0] == without_cache(model, prompt)[0]


def test_eager_attention_takes_the_same_masks() -> None:
    model, prompt = model_of("opt"), prompt_of()
    model.set_attn_implementation("eager")
    decoder = make_decoder(model, prompt, TOKENS)
    assert decoder.mode == caches.STATIC
    assert run(decoder, prompt)[0] == without_cache(model, prompt)[0]


def test_packed_layers_decode_in_a_graph(tmp_path) -> None:
    from quant import QuantizationConfig, Scheme, load, quantize_model, save
    from quant.solvers import rtn

    model, prompt = model_of("opt"), prompt_of()
    result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, Scheme(4, 32)))
    save(tmp_path / "q", model, result.weights, method={"name": "rtn"})
    packed = load(tmp_path / "q", dtype=torch.float32)
    decoder = make_decoder(packed, prompt, TOKENS, FakeGraph())
    assert decoder.mode == caches.GRAPH
    assert run(decoder, prompt)[0] == without_cache(packed, prompt)[0]


def test_a_sliding_window_shorter_than_the_positions_is_said() -> None:
    model, prompt = tiny_model("mistral"), prompt_of()  # a window of 8
    decoder = make_decoder(model, prompt, TOKENS, fused=False)
    assert decoder.mode == caches.DYNAMIC
    assert decoder.reason == (
        "no static cache: its sliding window of 8 is shorter than the 21 positions"
    )
    assert run(decoder, prompt)[0] == without_cache(model, prompt)[0]


def test_a_static_cache_that_gives_other_logits_is_not_used(monkeypatch) -> None:
    """A model that ignores its position ids decodes wrongly from a static cache: it is noticed."""
    model, prompt = model_of("llama"), prompt_of()
    forward = type(model).forward

    def careless(self, *args, position_ids=None, **kwargs):
        if position_ids is not None:
            position_ids = position_ids * 0
        return forward(self, *args, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", careless)
    decoder = make_decoder(model, prompt, TOKENS, fused=False)
    assert decoder.mode == caches.DYNAMIC
    assert "standard deviations from those with the dynamic cache" in decoder.reason


def test_a_capture_that_breaks_off_gives_its_cause_and_the_stream_back(monkeypatch) -> None:
    """As torch.cuda.graph does: ending the capture raises too, before it restores the stream."""
    streams: list[object] = []

    class BrokenGraph:
        def __init__(self, graph: object) -> None:
            pass

        def __enter__(self) -> None:
            streams.append(Stream())

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    for name, stand_in in {
        "device": lambda device: nullcontext(),
        "stream": lambda stream: nullcontext(),
        "Stream": lambda device: Stream(),
        "current_stream": lambda device: streams[-1],
        "set_stream": streams.append,
        "CUDAGraph": object,
        "graph": BrokenGraph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    caller = Stream()
    streams.append(caller)

    def step() -> None:
        raise RuntimeError("a copy from the host")

    with pytest.raises(RuntimeError, match="a copy from the host"):
        choose.cuda_graph(torch.device("cuda"))(lambda: None, step)
    assert streams[-1] is caller


def test_running_out_of_memory_is_not_taken_for_an_unsupported_model(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StaticDecoder, "prefill", full)
    with pytest.raises(torch.OutOfMemoryError):
        make_decoder(model_of("opt"), prompt_of(), TOKENS)


def test_a_model_without_a_cache_is_named() -> None:
    class Forgetful(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            return SimpleNamespace(logits=torch.zeros(1, 1, 5), past_key_values=None)

    decoder = make_decoder(Forgetful(), torch.zeros(1, 3).long(), 1, None)
    assert decoder.mode == caches.DYNAMIC
    with pytest.raises(RuntimeError, match="Forgetful returns no past_key_values"):
        decoder.prefill(torch.zeros(1, 3).long())


def test_bytes_of_keys_and_values() -> None:
    model, prompt = model_of("llama"), prompt_of()
    static, dynamic = make_decoder(model, prompt, TOKENS, fused=False), DynamicDecoder(model)
    run(static, prompt)
    run(dynamic, prompt)
    row = 3 * 2 * 2 * 8 * 4  # blocks, keys and values, heads, dim, float32
    assert dynamic.kv_bytes() == (PROMPT + TOKENS) * row
    assert static.kv_bytes() == 32 * row  # 21 positions, rounded up to 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "falcon"])
def test_a_real_cuda_graph_gives_the_same_tokens(name) -> None:
    model, prompt = model_of(name), prompt_of()
    stand_in = make_decoder(model, prompt, TOKENS, FakeGraph())
    if name == "bloom" and stand_in.mode != caches.GRAPH:
        pytest.skip(f"transformers {transformers.__version__}: {stand_in.reason}")
    model, prompt = model.cuda(), prompt.cuda()
    decoder = make_decoder(model, prompt, TOKENS)
    assert (decoder.mode, decoder.reason) == (caches.GRAPH, "")
    expected, logits = without_cache(model, prompt)
    for _ in range(2):  # again after the first sequence has filled the buffers
        found, graph_logits = run(decoder, prompt)
        assert found == expected
        torch.testing.assert_close(graph_logits, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_packed_layers_are_captured_on_a_gpu() -> None:
    from quant.measure.architectures import architecture_config
    from quant.measure.dummy import build_dummy
    from quant.scheme import Scheme

    model = build_dummy(
        architecture_config("opt-125m"), Scheme(4, 128), device="cuda", dtype=torch.float16
    )
    prompt = prompt_of().cuda()
    decoder = make_decoder(model, prompt, TOKENS)
    assert (decoder.mode, decoder.reason) == (caches.GRAPH, "")
    dynamic = DynamicDecoder(model)
    decoder.prefill(prompt)
    dynamic.prefill(prompt)
    for _ in range(TOKENS):
        dynamic.token = decoder.token.clone()
        decoder.step()
        dynamic.step()
        spread = dynamic.logits.float().std()
        assert (decoder.logits - dynamic.logits).float().abs().max() < 0.1 * spread
