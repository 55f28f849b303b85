"""The block-by-block replay equals the model, or says that it cannot."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from quant.calibrate.capture import capture, check_streaming, streamed_logits
from quant.calibrate.structure import learn_structure
from quant.errors import ModelStructureError
from quant.tiling import CHECKED_LOGITS
from tests.quant.architectures import CONFIGS, random_windows, tiny_model


def plain_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


# The default is sdpa where the architecture has it; eager makes masks and attention outputs differ.
@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_streamed_logits_equal_a_plain_forward_pass(name: str, attention: str | None) -> None:
    model = tiny_model(name, **({"attn_implementation": attention} if attention else {}))
    window_a, window_b, *more = random_windows(5)
    model_structure = check_streaming(model, window_a, window_b)
    batch = torch.stack(more)
    assert torch.equal(streamed_logits(model, batch, model_structure), plain_logits(model, batch))
    assert torch.equal(
        streamed_logits(model, window_b[:9], model_structure),
        plain_logits(model, window_b[None, :9])[0],
    )


class _Largest(TorchDispatchMode):
    """Numbers of the largest tensor that an operator makes, views and the inputs apart."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tensors(result):
            if (
                each._base is None
                and "detach" not in str(function)
                and "alias" not in str(function)
            ):
                self.numbers = max(self.numbers, each.numel())
        return result


def test_the_check_makes_logits_of_some_positions_only() -> None:
    vocabulary = 4096
    model = tiny_model("llama", vocab_size=vocabulary)
    long = [torch.arange(200) % 90 + 3 + at for at in range(2)]
    with _Largest() as largest:
        check_streaming(model, *long)
    # The table of embeddings seen by an operator is no new tensor; the logits are the largest.
    assert largest.numbers == CHECKED_LOGITS * vocabulary


def test_a_difference_before_the_last_positions_is_caught() -> None:
    model = tiny_model("llama")
    calls = []

    def drift(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        calls.append(1)
        output = output.clone()
        output[:, 0] += 0.01 * len(calls)
        return output

    model.model.layers[-1].register_forward_hook(drift)
    long = [torch.arange(100) % 90 + 3, torch.arange(100).flip(0) % 90 + 3]
    with pytest.raises(ModelStructureError, match="inputs of the head of the block-by-block repl"):
        check_streaming(model, *long)


def test_a_single_block_has_no_next_block_to_look_at() -> None:
    for name in ("bloom", "llama"):
        model = tiny_model(name, num_hidden_layers=1)
        check_streaming(model, *random_windows(2))


def test_half_precision_streams_too() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    check_streaming(model, *random_windows(2))


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("opt", ["q k v", "out", "fc1", "fc2"]),
        ("llama", ["q k v", "o", "gate up", "down"]),
        ("phi", ["q k v fc1", "dense", "fc2"]),  # attention and MLP read the same norm
        ("gpt2", ["c_attn", "c_proj", "c_fc", "c_proj"]),
    ],
)
def test_layers_with_the_same_input_share_a_group_in_order_of_execution(
    name: str, groups: list[str]
) -> None:
    model_structure = learn_structure(tiny_model(name), random_windows(1)[0])
    for structure in model_structure.structures:
        short = [
            " ".join(layer.split(".")[-1].removesuffix("_proj") for layer in group)
            if name != "gpt2"
            else " ".join(layer.split(".")[-1] for layer in group)
            for group in structure.groups
        ]
        assert short == groups


def test_a_layer_that_does_not_run_stands_alone() -> None:
    model = tiny_model("opt")
    model.model.decoder.layers[1].spare = nn.Linear(32, 32)
    model_structure = learn_structure(model, random_windows(1)[0])
    assert model_structure.structures[1].groups[-1] == ("spare",)
    assert ("spare",) not in model_structure.structures[0].groups


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)


@pytest.mark.parametrize("name", ["qwen2", "bloom", "falcon", "gemma2"])
def test_masks_and_positions_take_the_memory_of_one_batch(name: str) -> None:
    model = tiny_model(name, attn_implementation="eager")
    windows = random_windows(12)
    model_structure = learn_structure(model, windows[0])

    def storages(count: int) -> set[int]:
        captured = capture(model, model_structure, [window[None] for window in windows[:count]])
        assert len(captured.hidden) == count
        arguments = [(call.args, call.kwargs) for calls in captured.calls for call in calls]
        found = list(tensors(arguments))
        assert found  # these models pass tensors
        return {tensor.data_ptr() for tensor in found}

    assert len(storages(12)) == len(storages(1))


def test_the_model_is_left_as_it_was_even_after_an_error() -> None:
    model = tiny_model("opt").train()
    window, other = random_windows(2)
    check_streaming(model, window, other)
    with pytest.raises(IndexError):
        streamed_logits(model, torch.tensor([3, 10_000]))
    for module in model.modules():
        assert module.training
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_forward_that_someone_else_replaced_is_put_back() -> None:
    model = tiny_model("opt")
    block = model.model.decoder.layers[1]
    original = block.forward
    block.forward = lambda *args, **kwargs: original(*args, **kwargs)
    replaced = block.forward
    check_streaming(model, *random_windows(2))
    assert block.forward is replaced


def test_a_block_that_depends_on_more_than_its_arguments_is_caught() -> None:
    model = tiny_model("opt")
    block = model.model.decoder.layers[1]
    calls = []

    def drift(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        calls.append(1)
        return output + 0.01 * len(calls) * torch.arange(output.shape[-1])

    block.register_forward_hook(drift)
    with pytest.raises(ModelStructureError, match=r"OPTForCausalLM: .*differ by up to \d\.\d+ "):
        check_streaming(model, *random_windows(2))


def test_hidden_states_that_change_between_blocks_are_caught() -> None:
    model = tiny_model("opt")
    block = model.model.decoder.layers[2]
    block.register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))
    with pytest.raises(ModelStructureError, match=r"layers\.1 \(OPTDecoderLayer\) is not handed"):
        check_streaming(model, *random_windows(2))


def test_blocks_that_run_out_of_order_are_caught() -> None:
    model = tiny_model("opt")
    layers = model.model.decoder.layers
    layers[2].register_forward_pre_hook(lambda *_: [layers[0](torch.zeros(1, 2, 32))] * 0 or None)
    with pytest.raises(ModelStructureError, match=r"in the order \[0, 1, .*not each once"):
        learn_structure(model, random_windows(1)[0])


def test_learning_the_structure_keeps_the_hidden_states_of_one_block() -> None:
    model = tiny_model("llama", num_hidden_layers=20)
    (window,) = random_windows(1)
    shape = (1, len(window), model.config.hidden_size)
    alive = 0

    def count(*_: object) -> None:
        nonlocal alive
        found = (x for x in gc.get_objects() if type(x) is Tensor)
        alive = sum(x.shape == shape for x in found)

    model.model.layers[-1].register_forward_pre_hook(count)
    learn_structure(model, window)
    assert 0 < alive < 10
