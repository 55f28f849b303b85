"""The benchmark: its arithmetic, its tables and what it refuses. No test looks at the times."""

import json
from pathlib import Path

import pytest
import torch

from cuda_ext import build, packed
from cuda_ext.bench import __main__ as command
from cuda_ext.bench import bench, contenders, crossover, products, readers, shapes, timing
from cuda_ext.bench.crossover import Crossing, meeting


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, library: build.Library) -> None:
    """One small shape, few bytes to read and a small cache, so that everything is quick."""
    monkeypatch.setitem(shapes.SHAPES, "tiny", (256, 64))
    monkeypatch.setitem(products.READ_BYTES, "cpu", 2**16)
    monkeypatch.setattr(products, "last_level_cache", lambda device: 2**16)
    monkeypatch.setattr(crossover, "ROWS", {"cpu": (1, 200)})


def test_shapes_are_chosen_by_name_model_or_all() -> None:
    assert shapes.chosen("opt-175b-fc2,llama-7b") == [
        "opt-175b-fc2",
        "llama-7b-up",
        "llama-7b-down",
    ]
    assert shapes.chosen("all") == list(shapes.SHAPES)
    assert shapes.SHAPES["opt-175b-fc2"] == (49152, 12288)
    with pytest.raises(ValueError, match="shape 'opt-17' is unknown; choose from llama-7b-up"):
        shapes.chosen("opt-17")


def test_a_shape_may_say_its_sizes() -> None:
    assert shapes.chosen("512x256,llama-8b-kv") == ["512x256", "llama-8b-kv"]
    assert shapes.sizes("512x256") == (512, 256)
    assert shapes.sizes("llama-8b-kv") == (4096, 1024)
    with pytest.raises(ValueError, match="shape '512x0' is unknown"):
        shapes.chosen("512x0")


def test_copies_are_four_times_the_cache() -> None:
    assert timing.copies_for(10, cache=100) == 40
    assert timing.copies_for(7, cache=100) == 58
    assert timing.copies_for(10**9, cache=100) == 2


def test_bytes_are_those_of_weight_and_activations(tiny: None) -> None:
    """256 inputs, 64 outputs, 3 rows of float32; 4 bits with 3 bytes for each of 2 groups a row."""
    rivals = {rival.name: rival for rival in contenders(256, 64, 3, 128, (2, 4))}
    moved = 4 * 3 * (256 + 64)
    assert rivals["float32 linear"].bytes == 4 * 256 * 64 + moved
    assert rivals["packed 4 bits"].bytes == 256 * 64 // 2 + 2 * 64 * 3 + moved
    assert rivals["packed 4 bits bfloat16"].bytes == 256 * 64 // 2 + 2 * 64 * 3 + moved // 2
    assert rivals["torch int4 bfloat16"].bytes == 256 * 64 // 2 + 4 * 2 * 64 + moved // 2
    assert all(len(rival.steps) * rival.bytes >= 4 * 2**16 for rival in rivals.values())
    assert [reader.name for reader in readers("cpu")] == ["read"]


def test_the_contenders_agree(tiny: None) -> None:
    """What is timed is the product: the packed ones and their bfloat16 layer give the same."""
    rivals = {rival.name: rival for rival in contenders(256, 64, 3, 128, (4,))}
    ours = rivals["packed 4 bits"].steps[0]()
    half = rivals["packed 4 bits bfloat16"].steps[0]()
    assert isinstance(ours, torch.Tensor)
    assert isinstance(half, torch.Tensor)
    torch.testing.assert_close(half.float(), ours, rtol=0.05, atol=0.05 * float(ours.abs().max()))


def test_a_row_says_what_its_time_means(tiny: None) -> None:
    rows, bandwidth = bench((256, 64), 2, group=128, bits=(4,), seconds=0.01)
    assert [row.name for row in rows] == [
        "float32 linear",
        "packed 4 bits",
        "packed 4 bits bfloat16",
        "torch int4 bfloat16",
    ]
    assert rows[0].speedup == 1
    for row in rows:
        assert row.shape == "256x64"
        assert row.p10_ms <= row.ms <= row.p90_ms
        assert row.share == pytest.approx(row.gb_per_s / bandwidth)


def test_tables_and_json(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "rows.json"
    arguments = ["--device", "cpu", "--shapes", "tiny", "--batches", "1,2", "--bits", "3"]
    assert command.main([*arguments, "--seconds", "0.01", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "tiny 256 -> 64, batch 2, reads " in text
    kept = json.loads(file.read_text())
    assert kept["machine"]["isa"] == packed.cpu_isa()
    assert [row["batch"] for row in kept["rows"]] == [1, 1, 2, 2]
    assert all(row["bandwidth_gb_per_s"] > 0 for row in kept["rows"])


def test_instruction_sets_beside_each_other(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shapes", "tiny", "--batches", "1", "--bits", "3", "--seconds", "0.01"]
    assert command.main([*arguments, "--isa"]) == 0
    text = capsys.readouterr().out
    best = packed.ISAS.index(packed.cpu_isa())
    assert all(f"packed 3 bits {isa}" in text for isa in packed.ISAS[: best + 1])


def test_crossover(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--shapes", "tiny", "--bits", "4", "--seconds", "0.01"]
    assert command.main([*arguments, "--crossover"]) == 0
    text = capsys.readouterr().out
    assert "tiny, 4 bits, float32" in text
    assert "tiny, 4 bits, bfloat16" in text


def test_where_the_ways_meet() -> None:
    def line(*pairs: tuple[float, float]) -> list[Crossing]:
        return [Crossing("s", 4, "float16", 2**i, a, b) for i, (a, b) in enumerate(pairs)]

    assert meeting(line((1, 2), (2, 2), (4, 2), (8, 3)), "float16") == 4
    assert meeting(line((1, 2), (3, 2), (2, 2.5), (8, 3)), "float16") == 8  # not by luck at 2
    assert meeting(line((1, 2), (2, 3)), "float16") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "gpt-5"], "shape 'gpt-5' is unknown"),
        (["--bits", "5"], "bits are 2, 3, 4, 8"),
        (["--bits", "four"], "invalid literal"),
        (["--device", "cuda", "--isa"], "--isa compares instruction sets of the CPU"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert command.main(["--device", "cuda"]) == 1
    assert "no benchmark: kernel='cuda' is not available: no GPU" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu(
    cuda: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, bandwidth = bench("llama-8b-kv", 1, group=128, bits=(4,), seconds=0.2, device="cuda")
    assert [row.name for row in rows][:2] == ["float16 linear", "packed 4 bits"]
    assert "torch int4 bfloat16" in {row.name for row in rows}
    assert 100 < bandwidth < 20_000
    assert all(0 < row.p10_ms <= row.ms <= row.p90_ms < 100 for row in rows)


def test_every_contender_follows_every_other() -> None:
    """One that comes after a large product finds the caches full of what it read."""
    asked: list[str] = []
    names = ("a", "b", "c")
    rivals = [timing.Contender(n, [lambda n=n: asked.append(n)], 1) for n in names]
    times = timing.measure(rivals, 0.05, "cpu")
    rounds = [tuple(asked[at : at + 3]) for at in range(3, len(asked), 3)]
    assert {tuple(sorted(found)) for found in rounds} == {names}
    assert len(set(rounds)) == 6
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys(names, len(rounds))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--bits=2,3,2", "--bits names 2 twice"),
        ("--batches=1,1", "--batches names 1 twice"),
    ],
)
def test_what_is_named_twice_is_refused(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu", option])
    assert message in capsys.readouterr().err
