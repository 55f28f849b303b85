"""bitsandbytes' checkpoints against a textbook, and everything in them that cannot be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quant
from quant.audit.grids import clipped, rounded
from quant.checkpoint.choose import parse
from quant.checkpoint.layers import read_layer
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.weight import QuantizedWeight
from tests.oracles.textbook_bitsandbytes import TABLES, dequantized, state, state_4bit
from tests.quant.checkpoint.bnb_folders import configuration, write
from tests.quant.tiny_checkpoints import edit_config, edit_tensors, logits, read_as_written

LAYER = "model.layers.1.mlp.down_proj"  # [40, 72]: blocks of 64 straddle its rows
KINDS = [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True), ("int8", False)]
NAMES = {"nf4": "nf4g64_fp32", "fp4": "bnbfp4g64_fp32", "int8": "bnbint8_fp32"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """NF4 with double quantization, and LLM.int8."""
    parent = tmp_path_factory.mktemp("bitsandbytes")
    write(parent / "nf4", "nf4", nested=True)
    write(parent / "int8", "int8")
    return {kind: parent / kind for kind in ("nf4", "int8")}


def stored_of(kind: str, outputs: int, inputs: int, **options: Any) -> QuantizedWeight:
    tensors = state(kind, outputs, inputs, nested=options.pop("nested", False), seed=3)
    return read_layer({**tensors, **options}, configuration(kind), layer="layer")


@pytest.mark.parametrize(("kind", "nested"), KINDS)
def test_weights_logits_and_sizes_are_the_textbooks(
    tmp_path: Path, kind: str, nested: bool
) -> None:
    plain, layers = write(tmp_path / "a", kind, nested=nested)
    found = read_as_written(tmp_path / "a", plain, layers)
    assert (found.format, found.producer) == ("bitsandbytes", "bitsandbytes")
    assert (found.scheme.name, found.mean_offset) == (NAMES[kind], None)
    checkpoint, _ = quant.checkpoint.read_scheme(tmp_path / "a")
    assert ("double quantization" in checkpoint.evidence) == nested


def test_a_large_layer_has_the_published_bits() -> None:
    """QLoRA: 0.5 bits for absmax in blocks of 64, 0.127 with double quantization."""
    for nested, published in ((False, 4.5), (True, 4.127)):
        tensors = state("nf4", 1024, 1024, nested=nested, seed=0)
        bits = 8 * sum(tensor.nbytes for tensor in tensors.values()) / 2**20
        assert bits == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_any_shape_and_storage(kind: str) -> None:
    for outputs, inputs in ((3, 5), (4, 64), (2, 128), (5, 96), (1, 1)):
        tensors = state(kind, outputs, inputs, nested=False, seed=1)
        weight = read_layer(tensors, configuration(kind))
        assert torch.equal(weight.dequantize(), dequantized(tensors))
    large = state_4bit(kind, 3, 512, nested=True, blocksize=256)
    weight = read_layer(large, configuration(kind))
    assert (weight.scheme.group_size, weight.scale.shape) == (256, (3, 2))
    assert torch.equal(weight.dequantize(), dequantized(large))
    tensors = state(kind, 4, 64, nested=False, seed=1)
    expected = dequantized(tensors)
    for dtype in (torch.bfloat16, torch.float32, torch.int8):
        packed = tensors["weight"].view(-1).view(dtype)[:, None]
        assert torch.equal(
            read_layer({**tensors, "weight": packed}, configuration(kind)).dequantize(),
            expected,
        )


def test_configurations_without_a_quant_method_are_read() -> None:
    """transformers before 4.34 named none."""
    early = {"load_in_8bit": True, "llm_int8_threshold": 6.0}
    assert (parse(early, "here").name, parse(early, "here").bits) == ("bitsandbytes", 8)
    default = {"load_in_4bit": True, "quant_method": "bitsandbytes"}
    assert parse(default, "here").scheme("float32").kind.name == "bnb_fp4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bnb_4bit_quant_type": "af4"}, "bnb_4bit_quant_type='af4' cannot be read; only nf4, fp4"),
        ({"load_in_8bit": True}, "load_in_4bit=true and load_in_8bit=true; expected one"),
        ({"load_in_4bit": False}, "load_in_4bit=false and load_in_8bit=false; expected one"),
        ({"load_in_4bit": "yes"}, "load_in_4bit='yes' cannot be read; expected true or false"),
    ],
)
def test_configurations_that_cannot_be_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=f"here: quantization_config.*{message}"):
        parse({**configuration("nf4"), **change}, "here")


KEY = "weight.quant_state.bitsandbytes__nf4"


def say(**values: Any) -> Callable[[Tensor], Tensor]:
    def apply(stored: Tensor) -> Tensor:
        said = {**json.loads(bytes(stored.tolist())), **values}
        return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)

    return apply


def at(index: int, value: float) -> Callable[[Tensor], Tensor]:
    def apply(stored: Tensor) -> Tensor:
        stored.view(-1)[index] = value
        return stored

    return apply


def test_absmax_is_computed_in_the_type_that_it_names() -> None:
    """float16 where a model in float16 was saved after a pass on a processor with AVX512-BF16."""
    tensors = state("nf4", 4, 128, nested=True, seed=2)
    tensors[KEY] = say(nested_dtype="float16")(tensors[KEY])
    weight = read_layer(tensors, configuration("nf4", nested=True))
    assert torch.equal(weight.dequantize(), dequantized(tensors))
    assert torch.equal(weight.scale, weight.scale.half().float())


def absent(_: Tensor) -> None:
    return None


@pytest.mark.parametrize(
    ("kind", "part", "change", "message"),
    [
        ("nf4", KEY, absent, rf"{KEY} is missing"),
        ("nf4", KEY, say(quant_type="af4"), "says quant_type='af4', but its name says nf4"),
        ("nf4", KEY, say(blocksize=63), "says blocksize=63; expected one of 32, 64"),
        ("nf4", KEY, say(blocksize=128), "blocksize=128, but other layers have 64"),
        ("nf4", KEY, say(shape=[40, 71]), r"weight is .*1440 bytes; .*column of 1420 bytes"),
        ("nf4", KEY, say(shape=[72, 40]), r"holds \[72, 40\] codes, but config.json .*\[40, 72\]"),
        ("nf4", KEY, say(shape=[2880]), r"says shape=\[2880\]; expected the two positive"),
        ("nf4", KEY, say(dtype="int8"), "says dtype='int8'"),
        ("nf4", KEY, say(nested_offset="x"), "says nested_offset='x'; expected a finite number"),
        ("nf4", KEY, say(nested_dtype="int8"), "says nested_dtype='int8'"),
        ("nf4", KEY, say(nested_blocksize=0), "says nested_blocksize=0; expected one of"),
        ("nf4", KEY, lambda t: t[:-1], "holds no JSON"),
        ("nf4", KEY, lambda t: t.float(), "expected JSON as a vector of uint8"),
        ("nf4", "weight", lambda t: t[:-1], r"weight is torch.uint8 \[1439, 1\]"),
        ("nf4", "weight", lambda t: t.view(40, 36), r"weight is torch.uint8 \[40, 36\]"),
        ("nf4", "weight.absmax", absent, "weight.absmax is missing"),
        ("nf4", "weight.absmax", lambda t: t[:-1], "weight.absmax is .*; shape=.*make it"),
        ("nf4", "weight.quant_map", absent, "weight.quant_map is missing"),
        ("nf4", "weight.quant_map", at(3, -0.5), r"quant_map\[3\] is -0.5, but nf4 has -0.3949175"),
        ("nf4", "weight.quant_map", at(3, torch.nan), r"quant_map\[3\] is nan"),
        ("nf4", "weight.nested_absmax", absent, "weight.nested_absmax is missing"),
        ("nf4", "weight.nested_absmax", at(0, torch.inf), "nested_absmax has NaN or infinite"),
        ("nf4", "weight.nested_quant_map", absent, "weight.nested_quant_map is missing"),
        ("nf4", "weight.nested_quant_map", lambda t: t[:-1], r"nested_quant_map is .*\[255\]"),
        ("int8", "SCB", absent, "SCB is missing"),
        ("int8", "SCB", lambda t: t[:-1], r"SCB is .*; the 40 rows of .*weight make"),
        ("int8", "SCB", lambda t: t.half(), "SCB is torch.float16"),
        ("int8", "SCB", at(2, torch.nan), "SCB has NaN or infinite"),
        ("int8", "SCB", at(2, -1.0), "SCB holds -1, but it is the largest magnitude"),
        ("int8", "weight", lambda t: t[:-1], r"SCB is .*; the 39 rows of .*weight"),
        ("int8", "weight", lambda t: t[:, :-1], r"holds \[40, 71\] codes, but config.json"),
        ("int8", "weight", lambda t: t.half(), "weight is torch.float16 .*; expected an int8"),
        ("int8", "weight", absent, "tensor .*weight is in none of its files"),
        ("int8", "weight_format", lambda t: t + 1, "weight_format=1 is a layout of early GPU"),
    ],
)
def test_what_cannot_be_is_named(
    folders: dict[str, Path],
    tmp_path: Path,
    kind: str,
    part: str,
    change: Callable[[Tensor], Tensor | None],
    message: str,
) -> None:
    shutil.copytree(folders[kind], tmp_path / "a")

    def damage(tensors: dict[str, Tensor]) -> None:
        changed = change(tensors.pop(f"{LAYER}.{part}").clone())
        if changed is not None:
            tensors[f"{LAYER}.{part}"] = changed.contiguous()

    edit_tensors(damage)(tmp_path / "a")
    with pytest.raises(ArtifactError, match=message) as caught:
        quant.load(tmp_path / "a")
    assert LAYER in str(caught.value)


def test_nothing_of_a_layer_without_its_state_is_loaded(tmp_path: Path) -> None:
    """All marks gone: the codes alone are no weight of the model's shape."""
    write(tmp_path / "a", "nf4")

    def bare(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if n.startswith(f"{LAYER}.weight.")]:
            del tensors[name]

    edit_tensors(bare)(tmp_path / "a")
    with pytest.raises(ArtifactError, match=rf"{LAYER}.weight is \[1440, 1\], but config.json"):
        quant.load(tmp_path / "a")


def test_nested_tensors_without_their_state_are_refused() -> None:
    extra = {"weight.nested_absmax": torch.ones(1)}
    with pytest.raises(ArtifactError, match=r"nested_absmax is stored, but its quant_state names"):
        stored_of("nf4", 4, 64, **extra)


def test_absmax_that_a_cpu_kernel_transposed_is_refused() -> None:
    """bitsandbytes 0.50 saves it so after a pass on a CPU with AVX512-BF16, and misreads it."""
    transposed = {"weight.absmax": torch.ones(2, 4, dtype=torch.bfloat16)}
    with pytest.raises(ArtifactError, match=r"transposed for a CPU kernel.*before anything runs"):
        stored_of("nf4", 4, 128, **transposed)


def test_other_settings_than_the_tensors_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a", "nf4")
    edit_config(lambda c: c["quantization_config"].update(bnb_4bit_quant_type="fp4"))(
        tmp_path / "a"
    )
    with pytest.raises(ArtifactError, match=r"bitsandbytes__fp4 is missing, which says how"):
        quant.load(tmp_path / "a")
    edit_config(lambda c: c.update(quantization_config=configuration("int8")))(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"no tensor ends in \.SCB"):
        quant.load(tmp_path / "a")


def test_export_names_what_formats_cannot_store(tmp_path: Path) -> None:
    write(tmp_path / "a", "nf4")
    with pytest.raises(ArtifactError, match="has nf4 levels, which gptq-v2 cannot store"):
        quant.export(tmp_path / "a", tmp_path / "b", "gptq-v2")
    with pytest.raises(ArtifactError, match=r"mlp.*_proj is nf4g8_fp32 and the checkpoint nf4g64"):
        quant.export(tmp_path / "a", tmp_path / "b", "bitsweep")
    assert not (tmp_path / "b").exists()
    write(tmp_path / "c", "int8")
    exported = quant.export(tmp_path / "c", tmp_path / "d", "bitsweep").folder
    ours = quant.load(exported, levels=["quant.checkpoint.bnb.int8"])
    assert torch.equal(logits(ours), logits(quant.load(tmp_path / "c")))


@pytest.mark.parametrize("kind", NAMES)
def test_rounding_finds_the_nearest_level(kind: str) -> None:
    """The audit rounds on the stored grids, and the levels are a scheme like any other."""
    on = stored_of(kind, 6, 128)
    values = torch.randn(6, 128, generator=torch.Generator().manual_seed(1)) / 10
    found = rounded(values, on)
    ends = [on.scale.repeat_interleave(128 // on.scale.shape[1], 1)[..., None]]
    table = torch.tensor(TABLES[kind]) if kind in TABLES else torch.arange(-127, 128) / 127
    levels = ends[0] * table
    nearest = (values[..., None] - levels).abs().amin(-1)
    torch.testing.assert_close((found.dequantize() - values).abs(), nearest, rtol=0, atol=1e-6)
    again = rounded(on.dequantize(), on).dequantize()
    assert torch.equal(again, on.dequantize())
    assert 0 <= clipped(values, on) < 1

    scheme = Scheme(on.scheme.bits, 64, levels=on.scheme.levels)
    solved = rtn.solve(values, scheme).weight
    biggest = values.unflatten(1, (2, 64)).abs().amax(-1)
    assert torch.equal(solved.scale, biggest.half())
    assert float((solved.dequantize() - values).norm() / values.norm()) < 0.15
    assert not rtn.solve(torch.zeros(2, 64), scheme).weight.dequantize().any()
