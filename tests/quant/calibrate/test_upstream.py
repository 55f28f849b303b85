"""Which layer further in front takes a scaling in, by which rows; a wrong try leaves no trace."""

import copy

import pytest
import torch
from torch import Tensor, nn

from quant.calibrate.capture import capture, run_block
from quant.calibrate.structure import learn_structure
from quant.calibrate.upstream import Source, Upstream
from quant.transforms.base import Scaling
from tests.quant.architectures import random_windows, uneven_model


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Gated(nn.Module):
    """A gated MLP with more readers of what the gate is multiplied by, by choice."""

    def __init__(self, kind: str = "silu", reader: str = "nobody") -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(8, 12), nn.Linear(8, 12)
        self.down, self.other = nn.Linear(12, 8), nn.Linear(12, 8)
        self.kind, self.reader = kind, reader

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        gate = self.gate(x)
        inside = nn.functional.silu(gate) * up
        if self.kind == "tanh":
            inside = inside.tanh()
        if self.reader == "twice":
            x = x + self.down(inside)
        more = {
            "layer": lambda: self.other(up),
            "residual": lambda: up[..., :8],
        }.get(self.reader, lambda: 0)()
        return x + self.down(inside) + more


def find(block: nn.Module, taken: tuple[str, ...] = ()) -> tuple[Source | None, Upstream]:
    x = torch.randn(2, 5, 8)
    upstream = Upstream(block.eval(), lambda: block(x), (2, 5), lambda name: name in taken)
    before = copy.deepcopy(block.state_dict())
    source = upstream.find(("down",))
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())
    return source, upstream


def test_the_factor_of_a_gate_is_found_whatever_ran_last() -> None:
    source, _ = find(Gated())
    assert source is not None
    assert source.name == "up"
    assert source.rows.tolist() == list(range(12))
    assert source.tied is None


@pytest.mark.parametrize(
    "block", [Gated("tanh"), Gated(reader="layer"), Gated(reader="residual"), Gated(reader="twice")]
)
def test_what_does_not_pass_scales_on_or_is_read_elsewhere_is_not_taken(block: Gated) -> None:
    assert find(block)[0] is None


def test_layers_that_may_not_change_are_left_out() -> None:
    assert find(Gated(), taken=("up",))[0] is None


def test_a_change_that_cannot_be_is_undone_to_the_last_bit() -> None:
    class Wrong(Scaling):
        """Changes the weights in another way than the inputs."""

        def weight(self, weight: Tensor) -> Tensor:
            return weight / self.scale.to(weight)

    block = Gated()
    source, upstream = find(block)
    assert source is not None
    before = copy.deepcopy(block.state_dict())
    scale = torch.rand(12).double() + 0.5
    assert not upstream.fold(source, Wrong(scale), ("down",))
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
    assert upstream.fold(source, Scaling(scale), ("down",))
    for key in ("up.weight", "up.bias"):
        moved = before[key].double() / scale.view(-1, *[1] * (before[key].dim() - 1))
        torch.testing.assert_close(block.state_dict()[key], moved.float(), rtol=1e-6, atol=0)
    rest = before.keys() - {"up.weight", "up.bias"}
    assert all(torch.equal(block.state_dict()[key], before[key]) for key in rest)


def test_an_error_in_the_block_leaves_the_parameters() -> None:
    block = Gated()
    x, calls = torch.randn(2, 5, 8), []

    def run() -> Tensor:
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("lost")
        return block(x)

    before = copy.deepcopy(block.state_dict())
    upstream = Upstream(block.eval(), run, (2, 5), lambda _: False)
    with pytest.raises(RuntimeError, match="lost"):
        upstream.find(("down",))
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())


HEADS, WIDTH = 4, 8  # of every tiny model


def rows_of(name: str) -> Tensor:
    """The row of the values' matrix by input of the output projection, from the layouts."""
    head = torch.arange(HEADS).repeat_interleave(WIDTH)
    inside = torch.arange(WIDTH).repeat(HEADS)
    if name == "llama":  # two key-value heads, two queries each
        return head // 2 * WIDTH + inside
    if name in ("gpt-neox", "bloom"):  # q, k and v side by side in every head
        return head * 3 * WIDTH + 2 * WIDTH + inside
    if name == "falcon":  # one key and one value behind all queries
        return HEADS * WIDTH + WIDTH + inside
    return 2 * HEADS * WIDTH + torch.arange(HEADS * WIDTH)  # gpt2: q, k, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("llama", "self_attn.o_proj"),
        ("gpt2", "attn.c_proj"),
        ("gpt-neox", "attention.dense"),
        ("bloom", "self_attention.dense"),
        ("falcon", "self_attention.dense"),
    ],
)
def test_rows_of_values_are_read_off(name: str, reader: str, dtype: torch.dtype) -> None:
    model, windows = uneven_model(name).to(dtype), random_windows(3)
    structure = learn_structure(model, windows[0])
    captured = capture(model, structure, [torch.stack(windows)])
    block, first = structure.blocks.modules[0], structure.structures[0]
    call, hidden = captured.calls[0][0], captured.hidden[0]
    before = copy.deepcopy(block.state_dict())
    with torch.no_grad():
        upstream = Upstream(
            block, lambda: run_block(block, first, call, hidden), (3, 24), lambda _: False
        )
        source = upstream.find((reader,))
    assert source is not None
    assert torch.equal(source.rows, rows_of(name))
    assert (source.tied is not None) == (name in ("llama", "falcon"))
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
