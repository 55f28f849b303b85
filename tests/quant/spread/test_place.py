"""Models that are loaded, or made up, over several devices have the weights of one device."""

from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, LlamaConfig, OPTConfig

from quant import QuantizationConfig, Scheme, load, quantize_model, save
from quant.checkpoint.loader import dequantize_layers
from quant.errors import ModelStructureError, NotEnoughMemory
from quant.measure.dummy import build_dummy
from quant.solvers import rtn
from quant.spread.connect import devices_of, spread_of
from quant.spread.place import Over, parts_of
from quant.spread.split import Room
from tests.quant.architectures import tiny_model
from tests.quant.spread.several import here, names, several, spread_loaded

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 64}
LLAMA = LlamaConfig(**SHAPE, intermediate_size=48, max_position_embeddings=32)
OPT = OPTConfig(**SHAPE, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=32)
BLOOM = BloomConfig(hidden_size=32, n_layer=3, n_head=2, vocab_size=64)
IDS = torch.arange(3, 9)[None]


def over(count: int, free: int | None = None) -> Over:
    return Over(tuple(Room(name, free) for name in names(count)))


def tensors(model) -> dict[str, torch.Tensor]:
    return {
        name: here(tensor.detach())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }


def require_same(found, whole, home: str) -> None:
    """The same tensors, bit for bit, and the same logits."""
    expected = tensors(whole)
    assert tensors(found).keys() == expected.keys()
    for name, tensor in tensors(found).items():
        assert torch.equal(tensor, expected[name]), name
    for name, tensor in [*found.named_parameters(), *found.named_buffers()]:
        outside = not name.startswith(f"{spread_of(found).blocks}.")
        assert outside or str(tensor.device) == spread_of(found).of(name)
    with torch.inference_mode():
        logits = found(input_ids=IDS.to(home), use_cache=False).logits
        assert torch.equal(here(logits), whole(input_ids=IDS, use_cache=False).logits)


@pytest.mark.parametrize(
    ("config", "scheme"),
    [(LLAMA, None), (OPT, None), (BLOOM, "w3"), (LLAMA, "w4g32_head8"), (OPT, "w4g32_head8")],
    ids=["llama", "opt", "bloom-w3", "llama-head8", "opt-head8"],
)
def test_random_weights_are_those_of_one_device(config, scheme) -> None:
    if scheme == "w4g32_head8":
        chosen = Scheme(4, 32, head=Scheme(8, 32))
    else:
        chosen = None if scheme is None else Scheme(3)
    options = {"kernel": "reference", "seed": 3, "attn_implementation": "eager"}
    whole = build_dummy(config, chosen, **options)
    with several():
        found = build_dummy(config, chosen, over=over(3), **options)
        assert devices_of(found) == names(3)
        require_same(found, whole, names(1)[0])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread") / "q"
    model = tiny_model("llama")
    result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, Scheme(4, 16)))
    save(folder, model, result.weights, method={"name": "rtn"})
    return folder


def test_an_artifact_is_loaded_to_where_its_parts_lie(artifact: Path) -> None:
    options = {"kernel": "reference", "dtype": torch.float32}
    whole = load(artifact, **options)
    with several() as devices:
        found = load(artifact, over=over(2), **options)
        assert spread_of(found).said().startswith("privateuseone:0: embeddings, ")
        devices.crossed.clear()
        require_same(found, whole, names(1)[0])
        # Of the forward pass: hidden states, positions and their cosines and sines to the second
        # device, once for all of its blocks, and logits, or what a tied head reads, back.
        there, back = devices.crossed[names(2)], devices.crossed[names(2)[::-1]]
        config = found.config
        width = config.hidden_size // config.num_attention_heads
        assert there == IDS.numel() * (config.hidden_size + 2 * width + 1)
        tied = spread_of(found).head is None
        assert back == IDS.numel() * (config.hidden_size if tied else config.vocab_size)
        dequantize_layers(found, torch.float32)
        dequantize_layers(whole, torch.float32)
        require_same(found, whole, names(1)[0])


def test_parts_count_shared_tensors_once() -> None:
    tied, own = tiny_model("llama", tie_word_embeddings=True), tiny_model("llama")
    size = sum(each.nbytes for each in [*tied.parameters(), *tied.buffers()])
    assert parts_of(tied).all == size
    assert parts_of(tied).last == 0
    assert parts_of(own).last == own.lm_head.weight.nbytes
    assert parts_of(own).all == sum(each.nbytes for each in [*own.parameters(), *own.buffers()])


def test_what_does_not_fit_is_refused_before_anything_is_read(artifact: Path) -> None:
    with pytest.raises(NotEnoughMemory, match="spread over 2 devices as evenly"):
        load(artifact, over=over(2, free=1000))
    with pytest.raises(NotEnoughMemory, match="LlamaForCausalLM needs"):
        build_dummy(LLAMA, None, over=over(2, free=1000))


def test_blocks_that_share_a_weight_stay_together() -> None:
    model = tiny_model("llama")
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ModelStructureError) as refused:
        over(3).spread(model)
    assert "model.layers.0.mlp.up_proj.weight and model.layers.2.mlp.up_proj.weight are one" in str(
        refused.value
    )


def test_a_model_whose_blocks_know_of_another_is_refused() -> None:
    """A block that reads what lies with another one, past its arguments."""
    model = tiny_model("llama")
    first, last = model.model.layers[0], model.model.layers[2]
    norm = first.input_layernorm
    last.input_layernorm.forward = lambda hidden: norm.weight * hidden
    with several(), pytest.raises(ModelStructureError, match="does not run over 3 devices"):
        spread_loaded(model, 3)
