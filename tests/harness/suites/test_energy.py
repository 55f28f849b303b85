"""Energy counters: made-up powercap trees, a made-up NVML, wrap-around, and what is absent."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.suites import energy
from harness.suites.energy import (
    Counter,
    Meter,
    gpu_meter,
    open_meter,
    rapl_meter,
    why_too_short,
)

MOST = 262_143_328_850  # µJ, a common max_energy_range_uj


def zone(root: Path, name: str, what: str, value: int = 0, most: int = MOST) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{what}\n")
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


def open_rapl(root: Path) -> Meter:
    found = rapl_meter(root)
    assert isinstance(found, Meter), found
    return found


def test_packages_and_their_memory_are_summed_and_nothing_twice(tmp_path: Path) -> None:
    counted = [
        zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000),
        zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000),
        zone(tmp_path, "intel-rapl:0:1", "dram", 200_000),
    ]
    twice = [
        zone(tmp_path, "intel-rapl:0:0", "core", 700_000),
        zone(tmp_path, "intel-rapl:2", "psys", 9_000_000),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000),
    ]
    meter = open_rapl(tmp_path)
    assert meter.what == "RAPL (package-0, dram, package-1)"
    start = meter.read()
    for folder, more in zip([*counted, *twice], (3.5, 0.5, 0.25, 100, 100, 100), strict=True):
        file = folder / "energy_uj"
        file.write_text(str(int(file.read_text()) + int(more * 1e6)))
    assert meter.joules(start, meter.read()) == pytest.approx(4.25)


def test_a_counter_that_wrapped_around_goes_on(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", MOST - 1_000_000)
    meter = open_rapl(tmp_path)
    start = meter.read()
    (folder / "energy_uj").write_text("999999")
    assert meter.joules(start, meter.read()) == pytest.approx(2.0)  # 10^6 up to the end, then 10^6


def test_a_counter_that_fell_and_does_not_wrap_gives_nothing() -> None:
    meter = Meter("NVML", 0.1, (Counter(lambda: 0, 1e-3),))
    assert meter.joules((500,), (20,)) is None  # the driver was loaded anew
    assert meter.joules((500,), (2500,)) == pytest.approx(2.0)
    assert meter.joules(None, (2500,)) is None


def test_counters_of_root_alone_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")

    def refuse(file: Path) -> int:  # the tests may run as root, whom no mode keeps out
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(energy, "_number", refuse)
    found = rapl_meter(tmp_path)
    assert isinstance(found, str)
    assert "intel-rapl:0/energy_uj can be read by root alone" in found
    assert "chmod a+r" in found


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "powercap"):
        assert rapl_meter(root) == f"this machine shows no energy counters in {root}"
    zone(tmp_path, "intel-rapl:0", "package-0")
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("nonsense")
    found = rapl_meter(tmp_path)
    assert isinstance(found, str)
    assert "cannot be read" in found


def test_a_counter_that_vanishes_costs_its_figure_alone(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0")
    meter = open_rapl(tmp_path)
    start = meter.read()
    (folder / "energy_uj").unlink()
    assert meter.read() is None
    assert meter.joules(start, None) is None


class NVMLError(Exception):
    pass


def made_up_nvml(readings: list[int | Exception]) -> SimpleNamespace:
    asked: list[str] = []

    def total(handle: str) -> int:
        found = readings.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def by_uuid(name: str) -> str:
        asked.append(name)
        return f"handle of {name}"

    return SimpleNamespace(
        NVMLError=NVMLError,
        asked=asked,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )


def test_nvml_counts_the_board_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    module = made_up_nvml([100, 1_000, 251_000])
    monkeypatch.setitem(sys.modules, "pynvml", module)
    meter = gpu_meter("cuda:1", uuid=lambda device: f"GPU-of-{device}")
    assert isinstance(meter, Meter)
    assert module.asked == ["GPU-of-cuda:1"]
    assert meter.joules(meter.read(), meter.read()) == pytest.approx(250.0)


def test_boards_of_several_gpus_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_uuid", lambda device: f"GPU-of-{device}")
    # A reading when each is opened, then the start and the end of both.
    module = made_up_nvml([0, 0, 1_000, 5_000, 3_000, 9_000])
    monkeypatch.setitem(sys.modules, "pynvml", module)
    meter = open_meter("cuda:0", ["cuda:2"])
    assert isinstance(meter, Meter)
    assert module.asked == ["GPU-of-cuda:0", "GPU-of-cuda:2"]
    assert meter.what == "NVML (the boards of 2 GPUs)"
    assert meter.joules(meter.read(), meter.read()) == pytest.approx(6.0)
    monkeypatch.setitem(sys.modules, "pynvml", made_up_nvml([0, NVMLError("lost")]))
    assert open_meter("cuda:0", ["cuda:2"]) == "NVML does not give the energy of cuda:2 (lost)"


def test_nvml_that_is_not_there_or_does_not_count_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in str(gpu_meter("cuda"))
    monkeypatch.setitem(sys.modules, "pynvml", made_up_nvml([NVMLError("Not Supported")]))
    found = gpu_meter("cuda", uuid=str)
    assert found == "NVML does not give the energy of cuda (Not Supported)"


def test_too_few_updates_are_no_measurement() -> None:
    nvml = Meter("NVML", 0.1, ())
    assert why_too_short(nvml, [1000.0, 2000.0]) == ""
    assert why_too_short(nvml, [1200.0, 320.0]) == (
        "tokens were decoded for 0.32 s, and NVML needs 1 s: raise suite.latency.decode_tokens"
    )
    assert why_too_short(Meter("RAPL", 1e-3, ()), [320.0]) == ""
