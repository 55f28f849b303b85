"""Full-precision models over several devices: the map of transformers' loader, hooks of ours."""

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from accelerate.utils.modeling import check_device_map

from harness.config.schema import ModelConfig
from harness.models.folders import load_model
from harness.models.several import connected, device_map, over_devices
from quant.errors import NotEnoughMemory
from quant.spread.connect import devices_of
from quant.spread.place import Over
from quant.spread.split import Room
from tests.quant.architectures import tiny_model

IDS = torch.arange(3, 12)[None]
# transformers asks accelerate for hooks where there are several devices; here is one.
TWICE = Over((Room("cpu"), Room("cpu")))


@pytest.mark.parametrize("name", ["llama", "opt-350m", "bloom", "gpt-neox"])
def test_every_tensor_is_under_one_name_of_the_map(name: str) -> None:
    model = tiny_model(name)
    spread = Over((Room("cuda:0"), Room("cuda:1"))).spread(model)
    found = device_map(spread, model)
    check_device_map(model, found)
    assert "" not in found
    assert spread.blocks not in found
    for tensor, _ in [*model.named_parameters(), *model.named_buffers()]:
        under = [device for path, device in found.items() if f"{tensor}.".startswith(f"{path}.")]
        assert under == [spread.of(tensor)]


def test_a_folder_is_loaded_by_the_map(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    config = ModelConfig("tiny", "local", path=str(tmp_path))
    found = load_model(tmp_path, config, over=TWICE)
    assert devices_of(found) == ("cpu", "cpu")
    assert not found.training
    with torch.inference_mode():
        expected = model(input_ids=IDS, use_cache=False).logits
        assert torch.equal(found(input_ids=IDS, use_cache=False).logits, expected)
    small = Over((Room("cuda:0", 100), Room("cuda:1", 100)))
    with pytest.raises(NotEnoughMemory, match="LlamaForCausalLM needs"):
        load_model(tmp_path, config, over=small)


def test_no_hook_of_accelerate_is_timed() -> None:
    model, whole = tiny_model("opt"), tiny_model("opt")
    spread = TWICE.spread(model)
    hooked = dispatch_model(model, device_map(spread, model), main_device="cpu", force_hooks=True)
    assert any(hasattr(each, "_hf_hook") for each in hooked.modules())
    found = connected(hooked, spread)
    assert not any(hasattr(each, "_hf_hook") for each in found.modules())
    assert not {"to", "cuda", "forward"} & vars(found).keys()
    with torch.inference_mode():
        expected = whole(input_ids=IDS, use_cache=False).logits
        assert torch.equal(found(input_ids=IDS, use_cache=False).logits, expected)


def test_a_device_has_room_for_what_is_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda:0": 10 * 2**30, "cuda:1": 20 * 2**30}
    monkeypatch.setattr("quant.measure.dummy.free_memory", lambda device: free[str(device)])
    shape = {"hidden_size": 64}
    assert over_devices(["cuda:0"], "float16", shape, 8) is None
    over = over_devices(["cuda:0", "cuda:1"], "float16", shape, 100)
    assert over is not None
    assert over.block == 2 * (2 * 100 * 64 * 2)  # two caches of keys and values, 2 bytes a number
    for room in over.rooms:
        assert room.free == int(free[room.device] * 0.98) - 2**30
