"""Who makes the input of a layer, and who else reads it: seen, not told by names."""

import pytest
import torch
from torch import Tensor, nn

from quant.calibrate.neighbours import Maker, find_neighbours


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Block(nn.Module):
    """A norm, two layers that read it, and one more reader by choice."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 8)
        self.reader = reader

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.drop(self.norm(self.first(x)))
        if self.reader == "twice":
            self.norm(x)
        view = made.reshape(-1, 8).detach()[None].view(-1, 8)
        both = (self.q(view) * self.k(view)).reshape(x.shape)
        if self.reader == "residual":
            both += made
        elif self.reader == "in place":
            made.add_(1)
        elif self.reader == "item":
            both = both * made[0, 0, 0].item()
        return both + self.last(x), (made if self.reader == "output" else both)


def maker_of(reader: str) -> Maker | str:
    block = Block(reader).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        found = find_neighbours(block, [("q", "k"), ("last",), ("first",)], lambda: block(x)[0])
        assert torch.equal(found.output, block(x)[0])
    assert (
        found.makers["last",]
        == found.makers["first",]
        == ("no module of the block makes its input")
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())
    return found.makers["q", "k"]


def test_the_norm_is_found_through_views_and_what_hands_it_on() -> None:
    maker = maker_of("nobody")
    assert isinstance(maker, Maker)
    assert (maker.name, maker.readers) == ("norm", {"q", "k"})


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        ("residual", "aten.add_.Tensor also reads what norm makes"),
        ("in place", "aten.add_.Tensor also reads what norm makes"),
        ("item", "aten._local_scalar_dense.default also reads what norm makes"),
        ("output", "the output of the block also reads what norm makes"),
        ("twice", "norm, which makes its input, runs 2 times in a pass"),
    ],
)
def test_every_other_reader_is_seen(reader: str, words: str) -> None:
    assert maker_of(reader) == words


def test_a_layer_of_another_group_is_another_reader() -> None:
    block = Block("nobody").eval()
    x = torch.randn(2, 3, 8)
    found = find_neighbours(block, [("q",), ("k",)], lambda: block(x)[0])
    assert found.makers["q",] == "k also reads what norm makes"


def test_linear_layers_make_inputs_too_and_layers_that_run_twice_have_none() -> None:
    chain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    x = torch.randn(3, 8)
    found = find_neighbours(chain, [("1",)], lambda: chain(x))
    assert isinstance(found.makers["1",], Maker)
    assert found.makers["1",].name == "0"
    again = nn.Sequential(chain[0], chain[1], chain[1])
    found = find_neighbours(again, [("1",)], lambda: again(x))
    assert found.makers["1",] == "1 runs 2 times in a pass"


def test_sources_are_seen_through_operators_and_end_at_parameters() -> None:
    """Of what is made in place or at an address that was free again, too."""

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
            self.norm, self.act = nn.LayerNorm(8), nn.SiLU()
            self.out, self.gate, self.up, self.down = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.norm(self.q(x)), self.k(x), self.v(x)
            x = x + self.out(torch.softmax(q @ k.mT, -1) @ v)
            gate = self.act(self.gate(x.clone()))
            gate *= self.up(x.clone())
            return x + self.down(gate.view(2, 3, 8))

    block, x = Mixing().eval(), torch.randn(2, 3, 8)
    groups = [("q",), ("out",), ("gate",), ("down",)]
    with torch.no_grad():
        found = find_neighbours(block, groups, lambda: block(x)).sources
    assert found == {
        ("q",): (),
        ("out",): ("v", "k"),
        ("gate",): ("out",),
        ("down",): ("up", "gate"),
    }
