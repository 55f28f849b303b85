"""Composition of sweeps, and what is refused in one sentence before anything is loaded."""

from pathlib import Path

import pytest

from harness.cell.resolve import make_scheme
from harness.config.compose import compose_cells
from harness.errors import ConfigError
from quant.scheme import Scheme


def overrides(*given: str, multirun: bool = False) -> list[tuple[str, ...]]:
    return [cell.overrides for cell in compose_cells(given, multirun)]


def test_one_cell_without_a_sweep() -> None:
    assert overrides("scheme=w3") == [("scheme=w3",)]


def test_a_product_on_the_command_line() -> None:
    assert overrides("method=rtn,gptq", "scheme=w4,w3", multirun=True) == [
        ("method=rtn", "scheme=w4"),
        ("method=rtn", "scheme=w3"),
        ("method=gptq", "scheme=w4"),
        ("method=gptq", "scheme=w3"),
    ]


def test_ranges_sweep_too() -> None:
    assert overrides("seed=range(0,3)", multirun=True) == [("seed=0",), ("seed=1",), ("seed=2",)]


def test_a_glob_lists_files_and_no_scheme_that_was_parsed_from_its_name() -> None:
    compose_cells(["scheme=w4g96"])
    found = {each[0] for each in overrides("scheme=glob(w4*)", multirun=True)}
    names = ("w4", "w4g128", "w4_sym", "w4_mse", "w4g64_head8", "w4g64_head8_emb8")
    assert found == {f"scheme={name}" for name in names}


def test_a_union_of_products_from_the_configuration() -> None:
    sweep = "sweep=[{method:none,scheme:w16},{method:[rtn,gptq],scheme:[w4,w3]}]"
    found = [each[1:] for each in overrides(sweep)]
    assert found == [
        ("method=none", "scheme=w16"),
        ("method=rtn", "scheme=w4"),
        ("method=rtn", "scheme=w3"),
        ("method=gptq", "scheme=w4"),
        ("method=gptq", "scheme=w3"),
    ]


def test_equal_cells_are_kept_once() -> None:
    sweep = "sweep=[{method:rtn,scheme:[w4,w3]},{method:rtn,scheme:w4}]"
    assert len(overrides(sweep)) == 2


def test_strings_with_commas_are_lists_in_a_sweep() -> None:
    assert len(overrides("sweep=[{method:rtn,scheme:'w4,w3'}]")) == 2


def test_the_command_line_multiplies_a_sweep_and_wins_over_it() -> None:
    sweep = "sweep=[{method:none,scheme:w16},{method:[rtn,gptq],scheme:w4}]"
    seeds = compose_cells([sweep, "seed=0,1"], multirun=True)
    assert len(seeds) == 2 * 3
    assert {cell.config.calib.seed for cell in seeds} == {0, 1}, "calibration follows the seed"
    narrowed = compose_cells([sweep, "method=gptq", "scheme=w3"])
    assert len(narrowed) == 1


def test_the_last_of_two_overrides_of_a_key_wins() -> None:
    (cell,) = compose_cells(["scheme=w3", "scheme=w8"])
    assert cell.config.scheme.bits == 8


def test_a_folder_of_the_user_adds_options(tmp_path: Path) -> None:
    (tmp_path / "scheme").mkdir()
    (tmp_path / "scheme" / "mine.yaml").write_text("bits: 4\ngroup_size: 32\n")
    (cell,) = compose_cells(["scheme=mine"], extra=tmp_path)
    assert cell.config.scheme.group_size == 32
    with pytest.raises(ConfigError, match="did you mean mine"):
        compose_cells(["scheme=mime"], extra=tmp_path)
    with pytest.raises(ConfigError, match="not a folder"):
        compose_cells([], extra=tmp_path / "nowhere")


def test_a_scheme_needs_no_file() -> None:
    named = {
        "w4g64": Scheme(4, 64),
        "w5": Scheme(5),
        "w3g64_sym": Scheme(3, 64, symmetric=True),
        "w2g32_mse": Scheme(2, 32, grid="mse"),
        "w4g128_bf16": Scheme(4, 128, scale_dtype="bfloat16"),
        "ternary_g16": Scheme(2, 16, levels="ternary"),
        "w8": Scheme(8),
    }
    swept = compose_cells([f"sweep=[{{scheme:[{','.join(named)}]}}]"])
    assert [make_scheme(each.config.scheme) for each in swept] == list(named.values())


def test_a_scheme_without_a_file_is_changed_and_chosen_as_one_with_a_file(tmp_path: Path) -> None:
    (wider,) = compose_cells(["scheme=w3g64_sym", "scheme.group_size=48"])
    assert make_scheme(wider.config.scheme) == Scheme(3, 48, symmetric=True)
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /scheme: w3g64_sym\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    (chosen,) = compose_cells(["experiment=mine"], extra=tmp_path)
    assert make_scheme(chosen.config.scheme) == Scheme(3, 64, symmetric=True)


def test_results_are_absolute_and_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (cell,) = compose_cells([])
    assert cell.config.paths.results == str(tmp_path / "results")


def test_cells_that_differ_in_the_seed_alone_are_as_hydra_composes_each() -> None:
    swept = compose_cells(["model=embedded", "scheme=w3,w4", "seed=0,1,7"], multirun=True)
    assert [cell.config.seed for cell in swept] == [0, 1, 7] * 2
    for cell in swept:
        (alone,) = compose_cells([o for o in cell.overrides if not o.startswith("seed")])
        alone.config.seed = alone.config.calib.seed = cell.config.seed
        assert cell.config == alone.config
    with pytest.raises(ConfigError, match="seed"):
        compose_cells(["seed=1,x"], multirun=True)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("transform=[awq,awq]", "awq"),
        ("transform=[awq],[hadamard,awq,hadamard]", "hadamard"),
        ("suite=[latency,latency]", "latency"),
        ("sweep=[{method:rtn,transform:[[awq,awq]]}]", "awq"),
    ],
)
def test_an_option_twice_in_a_list_is_refused(given: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"has {name} twice"):
        compose_cells([given], multirun=True)
