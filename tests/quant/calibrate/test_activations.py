"""Stores of hidden states give back what was put, from wherever they keep it."""

from pathlib import Path

import pytest
import torch

from quant.calibrate.activations import Activations, activation_store
from quant.calibrate.stream import Workplace, quantize_model
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.scheme import Scheme
from quant.solvers import gptq
from tests.quant.architectures import random_windows, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_put_comes_back(place: str, dtype: torch.dtype, tmp_path: Path) -> None:
    batches = [torch.randn(2, n, 16).to(dtype) for n in (3, 5, 3)]
    batches[1][0, 0, 0], batches[1][0, 0, 1] = torch.nan, torch.inf
    with activation_store(place, CPU, tmp_path / "a") as store:
        for batch in batches:
            store.append(batch.clone())
        for _ in range(2):  # reading takes nothing away
            same(store, batches)
        batches[1] = torch.randn(2, 5, 16).to(dtype)
        store[1] = batches[1].transpose(0, 1).contiguous().transpose(0, 1)
        same(store, batches)
    assert not list(tmp_path.iterdir())


def same(store: Activations, batches: list[torch.Tensor]) -> None:
    assert len(store) == len(batches)
    for index, batch in enumerate(batches):
        found = store[index]
        assert found.dtype == batch.dtype
        torch.testing.assert_close(found, batch, rtol=0, atol=0, equal_nan=True)


def test_files_hold_the_plain_numbers_and_leavings_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "000007").write_bytes(b"of a run that was killed")
    with activation_store("disk", CPU, tmp_path / "a") as store:
        store.append(torch.arange(6.0).reshape(1, 2, 3))
        (file,) = (tmp_path / "a").iterdir()
        assert file.read_bytes() == torch.arange(6.0).numpy().tobytes()
        file.write_bytes(b"1234")
        with pytest.raises(QuantizationError, match="was cut short while it was in use: 4 of 24"):
            store[0]
        with pytest.raises(ValueError, match="batch 0"):
            store[0] = torch.zeros(1, 2, 4)


def test_places_that_are_not_there() -> None:
    for place, folder in (("cuda", None), ("tape", None), ("disk", None)):
        with (
            pytest.raises(QuantizationError, match=f"activations={place}"),
            activation_store(place, CPU, folder),
        ):
            pass


def test_the_place_changes_no_bit_of_the_result(tmp_path: Path) -> None:
    found = []
    for place in ("cpu", "disk"):
        workplace = Workplace(activations=place, folder=tmp_path / "a")
        plan = QuantizationConfig(gptq.SOLVER, Scheme(3, group_size=16), batch_tokens=50)
        found.append(quantize_model(tiny_model("opt"), random_windows(5), plan, None, workplace))
    for name, weight in found[0].weights.items():
        assert torch.equal(weight.codes, found[1].weights[name].codes)
        assert torch.equal(weight.scale, found[1].weights[name].scale)
