"""runtime.devices: which devices a cell gets, what cannot be, and which keys they are in."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from harness.cell.cells import ResolvedCell
from harness.cell.devices import Devices
from harness.cell.resolve import resolve
from harness.config.compose import compose_cells
from harness.errors import ConfigError
from quant.spread.split import GIB

OPT = ["model=dummy-opt-175b", "suite=[latency]", "runtime=cuda"]
FULL = [*OPT, "method=none", "scheme=w16"]
PACKED = [*OPT, "method=random", "scheme=w3"]
SMALL = ["method=none", "scheme=w16", "suite=[perplexity,latency]", "runtime=cuda"]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """GPUs of 80 GiB that this process sees; add some to have more."""
    found: list[SimpleNamespace] = []

    def properties(device: object) -> SimpleNamespace:
        index = device if isinstance(device, int) else torch.device(str(device)).index or 0
        return found[index]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    return found


def gpu(memory: int = 80 * GIB, name: str = "A100") -> SimpleNamespace:
    return SimpleNamespace(total_memory=memory, name=name, major=8, minor=0, uuid="0")


def cell_for(words: Sequence[str], elsewhere: bool = False) -> ResolvedCell:
    (cell,) = compose_cells(list(words))
    found = resolve(cell.config, elsewhere=elsewhere)
    assert isinstance(found, ResolvedCell)
    return found


def test_full_precision_takes_as_many_as_it_needs_and_three_bits_one(gpus) -> None:
    """The paper's setting for OPT-175B on A100."""
    gpus += [gpu()] * 8
    full, packed = cell_for(FULL).devices, cell_for(PACKED).devices
    assert (full.model, full.of_model) == (5, tuple(f"cuda:{n}" for n in range(5)))
    assert (packed.of_model, packed.of_baseline) == (("cuda:0",), full.of_model)
    assert (full.gpus, packed.gpus) == (5, 5)


def test_what_fits_on_one_device_stays_there_with_its_keys(gpus) -> None:
    gpus += [gpu()]
    alone = cell_for(SMALL)
    gpus += [gpu()] * 3
    among = cell_for(SMALL)
    asked = cell_for([*SMALL, "runtime.devices=1"])
    unasked = cell_for([*SMALL, "runtime.devices=null"])
    assert alone.devices == among.devices == asked.devices == Devices(("cuda",))
    assert alone.keys == among.keys == asked.keys == unasked.keys


def test_several_devices_are_in_the_keys_of_times_alone(gpus) -> None:
    gpus += [gpu()] * 4
    one, two, three = (cell_for([*SMALL, f"runtime.devices={n}"]).keys.stages for n in (1, 2, 3))
    assert one["perplexity"] == two["perplexity"] == three["perplexity"]
    assert len({one["latency"], two["latency"], three["latency"]}) == 3
    named = cell_for([*SMALL, "runtime.devices=[cuda:2,cuda:3]"])
    assert named.devices.of_model == named.devices.of_baseline == ("cuda:2", "cuda:3")
    assert named.place.device == "cuda:2"
    assert named.keys.stages == two
    gpus[3] = gpu(name="H100")
    assert cell_for([*SMALL, "runtime.devices=[cuda:2,cuda:3]"]).keys.stages["latency"] not in (
        one["latency"],
        two["latency"],
    )


def test_all_are_those_that_can_be_seen(gpus) -> None:
    gpus += [gpu()] * 3
    assert len(cell_for([*SMALL, "runtime.devices=all"]).devices.of_model) == 3
    del gpus[1:]
    assert cell_for([*SMALL, "runtime.devices=all"]).devices == Devices(("cuda",))


def test_blocks_that_are_taken_in_turn_stay_on_one(gpus) -> None:
    gpus += [gpu(2**20)] * 3
    words = ["method=none", "scheme=w16", "suite=[perplexity]", "runtime=cuda"]
    assert cell_for(words).devices == Devices(("cuda",))
    streamed = cell_for([*words, "runtime.devices=2", "runtime.stream=always"])
    assert (streamed.devices.model, streamed.place.spread) == (1, False)


def test_on_a_machine_that_is_not_known_devices_are_taken_at_their_word(gpus) -> None:
    gpus += [gpu()]  # of a login node
    assert cell_for([*FULL, "runtime.devices=4"], elsewhere=True).devices.gpus == 4
    assert cell_for(FULL, elsewhere=True).devices.gpus == 1  # what a worker is given
    assert cell_for([*FULL, "runtime.devices=[cuda:0,cuda:2]"], elsewhere=True).devices.gpus == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["runtime.devices=0"],
            "runtime.devices=0 is too small; use a number, all, auto or a list",
        ),
        (["runtime.devices=many"], "runtime.devices=many is unknown; use a number"),
        (["runtime.devices=true"], "runtime.devices=True is unknown"),
        (["runtime.devices=1.5"], "runtime.devices=1.5 is unknown"),
        (["runtime.devices={a: 1}"], "runtime.devices={'a': 1} is unknown"),
        (["runtime.devices=[]"], "runtime.devices=[] names no device"),
        (["runtime.devices=[cuda:0,cuda:0]"], "names cuda:0 twice: name each device once"),
        (["runtime.devices=[cuda:0,cpu]"], "cpu is not one of the devices of runtime.device=cuda"),
        (["runtime.devices=[cuda]"], "cuda is not one of the devices"),
        (["runtime.devices=[cuda:0,cuda:7]"], "cuda:7 is not among the devices that can be seen"),
        (["runtime.devices=3"], "but 2 CUDA devices can be seen here (cuda:0, cuda:1): use"),
        (
            ["runtime.devices=2", "runtime.device=cuda:1"],
            "it names one device: use runtime.device=",
        ),
        (["runtime=cpu", "runtime.devices=2"], "the processor is one device: use runtime=cuda"),
        (["runtime=cpu", "runtime.devices=[cpu,cpu]"], "names cpu twice"),
        (
            ["runtime=cpu", "runtime.devices=[cuda:0,cuda:1]"],
            "cuda:0 is not one of the devices of runtime.device=cpu; use runtime=cuda.",
        ),
    ],
)
def test_devices_that_cannot_be_are_refused(gpus, words: list[str], said: str) -> None:
    gpus += [gpu()] * 2
    with pytest.raises(ConfigError) as refused:
        cell_for([*SMALL, *words])
    assert said in str(refused.value)


def test_how_many_is_said_for_other_machines(gpus) -> None:
    with pytest.raises(ConfigError, match="use a number, such as"):
        cell_for([*FULL, "runtime.devices=all"], elsewhere=True)


def test_what_fits_on_no_device_is_refused_with_figures(gpus) -> None:
    gpus += [gpu()] * 4
    with pytest.raises(ConfigError) as refused:
        cell_for([*FULL, "runtime.devices=4"])
    assert "runtime.devices=4: model=dummy-opt-175b needs 32" in str(refused.value)
    assert "cuda:3 8" in str(refused.value)
    gpus += [gpu()] * 20
    with pytest.raises(ConfigError, match="blocks, fewer than the 24 devices it is to lie on"):
        cell_for([*SMALL, "runtime.devices=24"])


def test_the_plan_says_what_each_device_holds(gpus) -> None:
    gpus += [gpu()] * 8
    said = cell_for(FULL).devices.said()
    assert said is not None
    assert said.startswith("the model lies over 5 devices (cuda:0 6")
    assert said.endswith("GiB), blocks by their bytes; the harness's own loop, no serving engine")
    assert cell_for(PACKED).devices.said() == (
        "its full-precision baseline over 5; the harness's own loop, no serving engine"
    )
    assert cell_for(SMALL).devices.said() is None
