"""The operators as torch sees them: schemas, fakes, torch.compile, and what they say when wrong."""

import os
from typing import Any

import pytest
import torch

from cuda_ext import build, packed
from tests.oracles.packed_layers import Layer, kernel_dtypes, random_x


def test_registration(device: str) -> None:
    layer = Layer(4, 256, 9, 64, device)
    held = layer.packed
    tests = ("test_schema", "test_faketensor")
    arguments = (held.tiles, held.scales, held.zeros, held.negative)
    x = random_x(3, 256, kernel_dtypes(device)[0], device)
    torch.library.opcheck(
        torch.ops.bitsweep.packed_linear,
        (x, *arguments, torch.ones(9, device=device), 4, 9, 64),
        test_utils=tests,
    )
    torch.library.opcheck(
        torch.ops.bitsweep.packed_dequantize,
        (*arguments, 4, 256, 9, 64, torch.bfloat16),
        test_utils=tests,
    )
    torch.library.opcheck(torch.ops.bitsweep.repack, (layer.qweight, 4, 256), test_utils=tests)


def test_torch_compile_traces_one_graph(device: str) -> None:
    """fullgraph: no graph break at the operator. aot_eager needs no compiler on the machine."""
    layer = Layer(4, 256, 9, 64, device)
    compiled = torch.compile(
        lambda x: layer.linear(x * 2).relu(), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for batch in (2, 5, 520):
        x = random_x(batch, 256, kernel_dtypes(device)[0], device)
        torch.testing.assert_close(compiled(x), layer.linear(x * 2).relu())


def wrong(device: str, **changes: Any) -> list[Any]:
    layer = Layer(4, 256, 9, 64, device)
    held = layer.packed
    arguments: dict[str, Any] = {
        "x": random_x(2, 256, kernel_dtypes(device)[0], device), "tiles": held.tiles,
        "scales": held.scales, "zeros": held.zeros, "negative": None, "bias": None, "bits": 4,
        "out_features": 9, "group_size": 64,
    }  # fmt: skip
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    found = list(arguments.values())
    return [v.to(device) if isinstance(v, torch.Tensor) else v for v in found]


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values from an address that is one element off."""
    return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view_as(tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": lambda x: x.int()}, "packed_linear: x is int32; pass float32, bfloat16 or float16"),
        ({"x": torch.tensor(1.0)}, "x is a scalar"),
        ({"x": lambda x: x[:1, :128]}, r"tiles is \[2, 2, 8, 16\]; expected \[2, 1, 8, 16\]"),
        ({"tiles": lambda t: t.long()}, "tiles is int64; expected int32"),
        ({"tiles": lambda t: t[:, :1]}, r"tiles is \[2, 1, 8, 16\]; expected \[2, 2, 8, 16\]"),
        ({"tiles": shifted}, "tiles begins at an address that is not a multiple of 16"),
        ({"zeros": shifted}, "zeros begins at an address that is not a multiple of 16"),
        ({"scales": lambda s: s.transpose(1, 2)}, r"scales is \[2, 8, 4\]; expected \[2, 4, 8\]"),
        (
            {"scales": lambda s: s.transpose(1, 2).contiguous().transpose(1, 2)},
            "scales is not contiguous",
        ),
        ({"scales": lambda s: s.double()}, "scales is float64; pass float32, bfloat16 or float16"),
        ({"zeros": lambda z: z.int()}, "zeros is int32; expected uint8"),
        ({"zeros": None}, "neither of zeros .* and negative"),
        ({"negative": torch.zeros(2, 4, 8).half()}, "both of zeros"),
        ({"bias": torch.zeros(8)}, r"bias is \[8\]; expected \[9\]"),
        ({"bias": torch.zeros(9).double()}, "bias is float64; pass float32, bfloat16 or float16"),
        ({"bits": 5}, "bits=5 is not a bit width; choose one of 2, 3, 4, 8"),
        ({"group_size": 16}, "group_size=16 is neither a multiple of 32"),
        ({"out_features": 0}, "out_features=0; pass at least 1"),
    ],
)
def test_wrong_arguments_are_named(device: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bitsweep.packed_linear(*wrong(device, **changes))


def test_wrong_words_are_named(device: str) -> None:
    words = torch.zeros(32, 9, dtype=torch.int32, device=device)
    with pytest.raises(RuntimeError, match=r"repack: qweight is \[32, 9\]; expected \[64, 9\]"):
        torch.ops.bitsweep.repack(words, 8, 256)
    with pytest.raises(RuntimeError, match="repack: qweight is int64; expected int32"):
        torch.ops.bitsweep.repack(words.long(), 4, 256)
    with pytest.raises(RuntimeError, match="repack: in_features=0; pass at least 1"):
        torch.ops.bitsweep.repack(words, 4, 0)


@pytest.mark.gpu
def test_mixed_devices_are_named(cuda: str) -> None:
    arguments = wrong(cuda)
    on_cpu = [arguments[0].cpu(), *arguments[1:]]
    with pytest.raises(RuntimeError, match=r"tiles is on cuda:0 and x on cpu; move them"):
        torch.ops.bitsweep.packed_linear(*on_cpu)
    scales_on_cpu = [*arguments[:2], arguments[2].cpu(), *arguments[3:]]
    with pytest.raises(RuntimeError, match=r"scales is on cpu and x on cuda:0; move them"):
        torch.ops.bitsweep.packed_linear(*scales_on_cpu)


def test_an_instruction_set_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, library: build.Library
) -> None:
    monkeypatch.setitem(os.environ, "BITSWEEP_CPU_ISA", "avx9000")
    with pytest.raises(RuntimeError, match="BITSWEEP_CPU_ISA=avx9000 is unknown; choose avx512"):
        packed.cpu_isa()
