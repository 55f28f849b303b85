"""The harness on a model over two real GPUs: loading by transformers' map, times and peaks of both.

Not in tests/harness, whose fixtures need more packages than a machine with GPUs may have.
"""

from pathlib import Path

import pytest
import torch

from quant.measure.architectures import architecture_config
from quant.measure.dummy import build_dummy
from quant.spread.connect import spread_of
from quant.spread.place import Over
from quant.spread.split import Room
from tests.quant.architectures import tiny_model

COUNT = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(COUNT < 2, reason=f"needs two NVIDIA GPUs, and {COUNT} can be seen"),
]
OVER = Over((Room("cuda:0"), Room("cuda:1")))
PROMPT = torch.arange(3, 12)[None]


def test_the_loader_of_transformers_puts_blocks_there(tmp_path: Path) -> None:
    pytest.importorskip("omegaconf")
    pytest.importorskip("accelerate")
    from harness.config.schema import ModelConfig
    from harness.models.folders import load_model

    tiny_model("llama").save_pretrained(tmp_path)
    config = ModelConfig("tiny", "local", path=str(tmp_path))
    one, two = load_model(tmp_path, config, "cuda:0"), load_model(tmp_path, config, "", OVER)
    assert not any(hasattr(each, "_hf_hook") for each in two.modules())
    for name, parameter in two.named_parameters():
        if name.startswith(spread_of(two).blocks):
            assert str(parameter.device) == spread_of(two).of(name)
    with torch.inference_mode():
        expected = one(input_ids=PROMPT.cuda(), use_cache=False).logits
        found = two(input_ids=PROMPT.cuda(), use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_times_and_peaks_are_of_both() -> None:
    pytest.importorskip("pydantic")
    pytest.importorskip("psutil")
    from harness.suites.memory import measure_peak
    from harness.suites.timing import place_notes, stopwatch_of

    devices = ("cuda:0", "cuda:1")
    model = build_dummy(architecture_config("opt-125m"), None, over=OVER, dtype=torch.float16)
    assert place_notes(model)["devices"] == "2"
    ids = PROMPT.cuda()
    _, milliseconds = stopwatch_of("cuda:0", devices[1:])(lambda: model(input_ids=ids))
    assert milliseconds > 0

    def step() -> None:
        for device in devices:
            torch.empty(2**26, dtype=torch.uint8, device=device)

    assert measure_peak(step, devices).working_bytes == pytest.approx(2 * 2**26, rel=0.05)
