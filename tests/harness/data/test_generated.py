"""Windows that the model writes: held against sampling by hand, token by token, in numpy."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from harness.config.schema import CellConfig
from harness.data import generated, protocols
from harness.data.protocols import CALIBRATION, ProtocolError
from harness.run.memory import planned_memory
from harness.run.stage import run_cell
from quant.memory.plan import MemoryPlanError
from tests.harness.cells import cell_of
from tests.harness.suites.byte_model import byte_model, byte_tokenizer

LENGTH = 12


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return byte_model()


def written(model: LlamaForCausalLM, sequences: int = 3, seed: int = 5, path: str | None = None):
    found = protocols.windows(
        "self-generated",
        byte_tokenizer(),
        LENGTH,
        use=CALIBRATION,
        path=path,
        sequences=sequences,
        seed=seed,
        load_model=lambda: model,
    )
    return found, [window.tolist() for window in found.windows]


def by_hand(model: LlamaForCausalLM, prompt: list[int], draws: np.ndarray) -> list[int]:
    """Sample after a prompt: each position by its draw, in a pass of its own without a cache."""
    ids = list(prompt)
    while len(ids) < LENGTH:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
        chances = np.exp(logits.astype(np.float64) - logits.max())
        chances[0] = 0.0  # <s> is special
        sums = np.cumsum(chances)
        ids.append(int(np.searchsorted(sums, draws[len(ids)] * sums[-1], side="right")))
    return ids


def draws_of(seed: int, windows: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((windows, LENGTH), generator=generator, dtype=torch.float64).numpy()


def test_each_token_is_the_one_of_its_draw(model: LlamaForCausalLM) -> None:
    _, found = written(model)
    draws = draws_of(5, 3)
    for ids, draw in zip(found, draws, strict=True):
        first = 1 + int(draw[1] * 256)  # of all but <s>
        assert ids == by_hand(model, [0, first], draw)


def test_documents_are_continued_from_their_beginnings(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("Tom<|endoftext|>Anna had<|endoftext|>A very long beginning of a text")
    found, windows = written(model, path=str(file))
    assert found.source == "the model itself, after beginnings of texts.txt"
    prompts = [byte_tokenizer()(text)["input_ids"] for text in ("Tom", "Anna had", "A very long b")]
    draws = draws_of(5, 3)
    expected = [
        by_hand(model, prompt[:LENGTH], draw) for prompt, draw in zip(prompts, draws, strict=True)
    ]
    assert windows == expected
    with pytest.raises(ProtocolError, match=r"the range of texts\.txt has only 3"):
        written(model, sequences=4, path=str(file))


def test_batches_and_settings_of_the_model_do_not_matter(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, windows = written(model, sequences=5)
    monkeypatch.setattr(generated, "BATCH", 2)
    own = GenerationConfig(repetition_penalty=5.0, top_k=1, do_sample=True, eos_token_id=7)
    monkeypatch.setattr(model, "generation_config", own)
    again, _ = written(model, sequences=5)
    assert again.token_hash == found.token_hash
    assert model.generation_config is own
    assert written(model, seed=6)[0].token_hash != found.token_hash
    assert all(0 not in ids[1:] for ids in windows), "special tokens are not drawn"


def test_draws_follow_the_distribution_of_the_model(model: LlamaForCausalLM) -> None:
    count = 4000
    draws = torch.rand((count, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    barred = torch.zeros(257, dtype=torch.bool)
    found = generated.continued(model, [[5]] * count, draws, barred)[:, 1]
    with torch.no_grad():
        chances = model(torch.tensor([[5]])).logits[0, -1].double().softmax(-1)
    common = chances > 0.01
    seen = torch.bincount(found, minlength=257) / count
    error = (chances * (1 - chances) / count).sqrt()
    assert common.sum() > 3
    assert ((seen - chances).abs()[common] < 4 * error[common]).all()


def test_logits_that_are_not_finite_are_named(model: LlamaForCausalLM) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ProtocolError, match="logits are not finite"):
        written(broken)


def test_without_a_model_a_text_is_asked_for() -> None:
    with pytest.raises(ProtocolError, match="none is in memory here; choose a text"):
        protocols.windows("self-generated", byte_tokenizer(), 8, use=CALIBRATION, sequences=1)


def test_a_cell_calibrates_on_its_own_text(tiny_cell: Callable[..., CellConfig]) -> None:
    config = tiny_cell(
        "method=gptq", "calib=self-generated", "calib.path=null", "calib.sequences=4", latency=False
    )
    cell = cell_of(config)
    run_cell(cell, lambda _: None)
    record = cell.find("quantization")
    assert record is not None
    assert record.status == "ok"
    assert record.inputs["calibration source"] == "the model itself"
    assert {layer.tokens for layer in record.layers} == {4 * 32}
    other = tiny_cell("method=gptq", "calib=self-generated", "calib.path=null", "seed=1")
    assert cell_of(other).keys.cell != cell.keys.cell


def test_a_model_that_does_not_fit_cannot_write_its_text(
    tiny_cell: Callable[..., CellConfig],
) -> None:
    config = tiny_cell(
        "method=gptq", "calib=self-generated", "calib.path=null", "runtime.stream=always",
        latency=False,
    )  # fmt: skip
    with pytest.raises(MemoryPlanError, match=r"must be in memory as a whole; .*choose a text"):
        planned_memory(cell_of(config))
