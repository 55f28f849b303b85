"""`seeds=N`: every cell that sees calibration text with N seeds, all others once."""

from pathlib import Path

import pytest

from harness.config.compose import compose_cells
from harness.config.kept import cells_of
from harness.config.schema import Cell
from harness.errors import ConfigError

SWEEP = "sweep=[{method:none,scheme:w16},{method:[rtn,gptq],scheme:w4}]"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "cache"))


def named(cells: list[Cell]) -> list[tuple[str, int]]:
    """The last part of the solver's module, or "none", and the seed of every cell."""
    return [
        (str(each.config.method["solver"]).rpartition(".")[2].lower(), each.config.seed)
        for each in cells
    ]


def test_what_is_calibrated_has_every_seed_and_all_else_one() -> None:
    for _ in range(2):  # composed, then from the cache
        cells = cells_of([SWEEP, "seeds=3"], False)
        assert named(cells) == [("none", 0), ("rtn", 0), ("gptq", 0), ("gptq", 1), ("gptq", 2)]
        assert [each.config.calib.seed for each in cells[2:]] == [0, 1, 2]


def test_a_cell_of_seeds_is_the_cell_of_its_seed() -> None:
    repeated = cells_of(["seeds=2", "scheme=w3"], False)
    alone = [cells_of(["scheme=w3", f"seed={seed}"], False)[0] for seed in (0, 1)]
    assert [each.config for each in repeated] == [each.config for each in alone]
    assert all("seeds" not in word for each in repeated for word in each.overrides)


def test_an_entry_of_a_sweep_counts_its_own_seeds_beside_other_axes() -> None:
    sweep = "sweep=[{method:gptq,scheme:[w4,w3],method.damping:[0.01,0.1],seeds:2},{scheme:w2}]"
    cells = cells_of([sweep], False)
    found = [
        (each.config.scheme.bits, each.config.method["damping"], each.config.seed) for each in cells
    ]
    expected = [
        (bits, damping, seed) for bits in (4, 3) for damping in (0.01, 0.1) for seed in (0, 1)
    ]
    assert found == [*expected, (2, 0.01, 0)]


def test_seeds_count_from_the_seed_and_replace_those_of_a_sweep() -> None:
    assert named(cells_of(["seeds=2", "seed=7"], False)) == [("gptq", 7), ("gptq", 8)]
    listed = "sweep=[{method:gptq,scheme:w4,seed:[4,5]}]"
    assert named(cells_of([listed, "seeds=2"], False)) == [("gptq", 0), ("gptq", 1)]


def test_a_seed_that_is_asked_for_by_name_is_kept() -> None:
    sweep = "sweep=[{method:rtn,scheme:w4,seeds:2},{method:rtn,scheme:w4,seed:1}]"
    assert named(cells_of([sweep], False)) == [("rtn", 0), ("rtn", 1)]


def test_a_transform_sees_text_whatever_the_method() -> None:
    cells = cells_of(["method=rtn", "transform=[equalize]", "seeds=2"], False)
    assert named(cells) == [("rtn", 0), ("rtn", 1)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seeds=0"], "seeds=0 is not a number of seeds; use 1 to 1000"),
        (["seeds=5000"], "seeds=5000 is not a number of seeds"),
        (["seeds=x"], "seeds: .*it takes a whole number"),
        (["seeds=2", "calib.seed=5"], "calib.seed=5 does not follow it"),
        (["seeds=2", "seed=0,1"], r"seed has several values \(0 and 1\)"),
        (["sweep=[{method:gptq,seed:[0,3],seeds:2}]"], r"several values \(0 and 3\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells_of(overrides, True)


def test_a_fixed_text_matters_to_what_sees_it_alone() -> None:
    cells = cells_of(["method=rtn", "calib.seed=5", "seeds=2"], False)
    assert named(cells) == [("rtn", 0)]
    assert len(compose_cells(["method=rtn", "seeds=2"])) == 2, "composed, and marked as repeated"


def test_the_ablation_differs_in_text_and_seed_at_every_size() -> None:
    cells = cells_of(["experiment=calibration", "calib.sequences=4"], False)
    full, rounded, *calibrated = [each.config for each in cells]
    assert full.method["solver"] is None
    assert rounded.seed == 0
    assert {(each.calib.length, each.scheme.bits, str(each.method)) for each in calibrated} == {
        (512, 3, str(calibrated[0].method))
    }
    texts = ("embedded", "embedded-shuffled", "self-generated", "random")
    assert [(each.calib.name, each.seed) for each in calibrated] == [
        (text, seed) for text in texts for seed in (0, 1, 2)
    ]
