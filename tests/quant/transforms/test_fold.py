"""A module takes a change of coordinates in exactly, or not at all."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from quant.transforms.base import Scaling
from quant.transforms.fold import fold

WIDTH = 16


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True)
class Rotation:
    """x' = x R for an orthogonal R."""

    matrix: Tensor

    def inputs(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x)

    def weight(self, weight: Tensor) -> Tensor:
        return weight @ self.matrix.to(weight)

    def hessian(self, matrix: Tensor) -> Tensor:
        return self.matrix.to(matrix).T @ matrix @ self.matrix.to(matrix)


def uneven(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            # Gemma's weights are small; near -1 the sum with 1 has few bits left.
            size = 0.3 if isinstance(module, GemmaRMSNorm) else 1
            value.copy_(size * torch.randn(value.shape, generator=generator))
    return module


def powers() -> Scaling:
    return Scaling(2.0 ** torch.arange(-3, 5).repeat(2).double())


def rotation() -> Rotation:
    square = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2))
    return Rotation(torch.linalg.qr(square.double()).Q)


NORMS = {
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "without bias": lambda: nn.LayerNorm(WIDTH, bias=False),
    "RMSNorm": lambda: LlamaRMSNorm(WIDTH),
    "1 + weight": lambda: GemmaRMSNorm(WIDTH),
}
LINEARS = {
    "Linear": lambda: nn.Linear(12, WIDTH),
    "square": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "Conv1D": lambda: Conv1D(WIDTH, 12),
    "square Conv1D": lambda: Conv1D(WIDTH, WIDTH),
}


@pytest.mark.parametrize("make", [*NORMS.values(), *LINEARS.values()], ids=[*NORMS, *LINEARS])
def test_a_scaling_goes_into_norms_and_linear_layers(make) -> None:
    module, change = uneven(make()), powers()
    x = torch.randn(2, 5, 12 if make in (LINEARS["Linear"], LINEARS["Conv1D"]) else WIDTH)
    before = module(x)
    assert fold(module, change, (x,), {})
    torch.testing.assert_close(module(x), change.inputs(before).float(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "Linear"])
def test_powers_of_two_move_no_bit(name: str, dtype: torch.dtype) -> None:
    module = uneven((NORMS | LINEARS)[name]()).to(dtype)
    x = torch.randn(2, 5, 12 if name == "Linear" else WIDTH).to(dtype)
    if name != "Linear":  # float16 loses bits of numbers under 2^-14
        x = x.sign() * x.abs().clamp(min=0.1)
    before, change = module(x), powers()
    assert fold(module, change, (x,), {})
    assert torch.equal(module(x).double(), change.inputs(before))


def test_a_rotation_goes_into_linear_layers_alone() -> None:
    for make in LINEARS.values():
        module, change = uneven(make()), rotation()
        x = torch.randn(2, 5, 12 if make in (LINEARS["Linear"], LINEARS["Conv1D"]) else WIDTH)
        before = module(x)
        assert fold(module, change, (x,), {})
        torch.testing.assert_close(module(x), change.inputs(before), rtol=1e-5, atol=1e-5)
    for make in NORMS.values():
        refused(uneven(make()))


def refused(module: nn.Module, change: object = None) -> None:
    """Nothing is changed."""
    before = copy.deepcopy(module.state_dict())
    assert not fold(module, change or rotation(), (torch.randn(2, 5, WIDTH),), {})
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_what_cannot_take_it_in_stays_as_it_is() -> None:
    class Squared(nn.Module):
        """Uses its weight in a way that nobody guesses."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight**2 + 1

    for module in (Squared(), nn.LayerNorm(WIDTH, elementwise_affine=False), nn.ReLU()):
        refused(module, powers())
    # In half precision 1 + weight loses what large scales leave of it.
    refused(uneven(GemmaRMSNorm(WIDTH)).bfloat16(), Scaling(torch.full((WIDTH,), 50.0).double()))
