"""Composition of sweeps, and what is refused in one sentence before anything is loaded."""

from pathlib import Path

import pytest
from cells import cell_of

from harness.cell.resolve import make_scheme, resolve
from harness.config.compose import compose_cells
from harness.config.schema import SchemeConfig
from harness.errors import BitsweepError, ConfigError
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


def test_ranges_and_globs_sweep_too() -> None:
    assert overrides("seed=range(0,3)", multirun=True) == [("seed=0",), ("seed=1",), ("seed=2",)]
    found = {each[0] for each in overrides("scheme=glob(w4*)", multirun=True)}
    assert found == {"scheme=w4", "scheme=w4g128", "scheme=w4_sym", "scheme=w4_mse"}


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


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("w4g64", Scheme(4, 64)),
        ("w5", Scheme(5)),
        ("w3g64_sym", Scheme(3, 64, symmetric=True)),
        ("w2g32_mse", Scheme(2, 32, grid="mse")),
        ("w4g128_bf16", Scheme(4, 128, scale_dtype="bfloat16")),
        ("ternary_g16", Scheme(2, 16, levels="ternary")),
    ],
)
def test_a_scheme_needs_no_file(name: str, scheme: Scheme, tmp_path: Path) -> None:
    (cell,) = compose_cells([f"scheme={name}"])
    assert make_scheme(cell.config.scheme) == scheme
    swept = compose_cells([f"sweep=[{{scheme:[{name},w8]}}]"])
    assert [make_scheme(each.config.scheme) for each in swept] == [scheme, Scheme(8)]
    (tmp_path / "experiment").mkdir()
    text = f"# @package _global_\ndefaults:\n  - override /scheme: {name}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    (chosen,) = compose_cells(["experiment=mine"], extra=tmp_path)
    assert make_scheme(chosen.config.scheme) == scheme
    (wider,) = compose_cells([f"scheme={name}", "scheme.group_size=48"])
    assert wider.config.scheme.group_size == 48


def test_results_are_absolute_and_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (cell,) = compose_cells([])
    assert cell.config.paths.results == str(tmp_path / "results")


def test_suites_in_their_order() -> None:
    (cell,) = compose_cells(["suite=[latency,zeroshot,perplexity]"])
    names = [each.suite.name for each in cell_of(cell.config).choices.suites]
    assert names == ["zeroshot", "perplexity", "latency"], "as given, what is timed last"


def test_schemes() -> None:
    assert make_scheme(SchemeConfig(bits=16)) is None
    assert make_scheme(SchemeConfig(bits=3, group_size=128)) == Scheme(bits=3, group_size=128)
    with pytest.raises(ConfigError, match="16 is not quantized"):
        make_scheme(SchemeConfig(bits=16, group_size=128))


REFUSED = [
    # wrong names
    ("scheme=w9", "scheme=w9 is not an option", "8"),
    ("scheme=w4g", "scheme=w4g is not an option", "such as w4g128"),
    ("scheme=w4_nope", "scheme=w4_nope is not an option", "nope"),
    ("model=opt-126m", "did you mean opt-125m", "--help model"),
    ("modle=embedded", "modle is not a key", "did you mean model"),
    ("experiment=quikstart", "did you mean quickstart", "quickstart"),
    ("suite=[perplexity,nope]", "suite=nope is not an option", "latency"),
    ("model.dtyp=float16", "model.dtyp is not a key", "did you mean dtype"),
    ("quant.bits=3", "quant is not a key", "scheme"),
    ("+model.x=1", "nothing reads", "leave the + out"),
    # wrong values
    ("model.context=abc", "model.context", "whole number or null"),
    ("method.act_order=maybe", "method.act_order", "true or false"),
    ("model.dtype=float8", "model.dtype=float8 is unknown", "bfloat16"),
    ("scheme.bits=9", "bits=9 is not a bit width", "2, 3, 4, 5, 6, 7, 8"),
    ("scheme.levels=five", "scheme.levels: there is no module five", "ternary"),
    ("seed=-1", "seed=-1 is too small", "0 or more"),
    ("runtime.timeout_s=0", "leaves no time", "null"),
    ("runtime.device=tpu", "runtime.device=tpu is unknown", "cuda"),
    ("runtime.kernel=marlin", "marlin", "reference"),
    ("runtime.kernel=cuda", "no GPU", "kernel=reference"),
    ("seed=[1", "cannot be read", "quotes"),
    ("scheme=w4,w3", "gives several values", "add -m"),
    # impossible combinations
    ("method=none", "leaves the weights alone", "scheme=w16"),
    ("scheme=w16", "needs something to quantize to", "method=none"),
    ("calib=none", "needs calibration text", "calib=embedded"),
    ("calib.sequences=0", "calib.sequences=0", "method=rtn"),
    ("calib.length=1", "too short", "null"),
    ("method=rtn method.true_sequential=true", "not an option of quant.solvers.rtn", "leave it"),
    ("method=rtn method.damping=0.1", "not an option of quant.solvers.rtn", "method=gptq"),
    ("method=rtn method.damping_ladder=[0.1]", "not an option of", "method=gptq"),
    ("method.dampin=0.1", "method.dampin=0.1 is not an option", "did you mean damping"),
    ("method.damping=much", "method.damping", "a number"),
    ("method=none scheme=w16 method.damping=0.1", "no solver", "method=gptq"),
    ("method.solver=quant.solvers.gptk", "no module quant.solvers.gptk", "--config-dir"),
    ("method.solver=quant.solvers.base", "no SOLVER", "SOLVER = Solver(...)"),
    ("method.solver=gp-tq", "not the name of a module", "quant.solvers.gptq"),
    ("suite.perplexity.module=harness.suites.base", "no SUITE", "SUITE = Suite(...)"),
    ("suite.latency.repeat=2", "suite.latency.repeat=2 is not an option", "did you mean repeats"),
    ("suite.latency.repeats=few", "suite.latency.repeats", "a whole number"),
    ("suite.mine.module=harness.suites.kernels suite.mine.batches=[1]", "called kernels", "rename"),
    ("method.damping_ladder=[0.1,0.05]", "does not rise", "[0.1, 1.0]"),
    ("method.static_groups=true method.group_grid=stale", "has no effect", "static_groups=false"),
    ("scheme=ternary_g8 scheme.symmetric=true", "ternary levels", "symmetric=false"),
    ("suite=[]", "nothing to measure", "suite=[perplexity,latency]"),
    ("suite=[latency] suite.perplexity.batch_size=2", "suite", "suite"),
    ("suite.latency.decode_tokens=9999", "context of 512", "smaller"),
    ("suite.perplexity.protocols=[]", "is empty", "[wikitext2]"),
    ("suite.perplexity.batch_size=0", "too small", "1 or more"),
    ("method.damping=nan", "method.damping=nan is no number", "use a finite one"),
    ("method.damping_ladder=[nan]", "damping_ladder=[nan] does not rise", "larger shares"),
    ("runtime.timeout_s=nan", "runtime.timeout_s=nan is no number", "use a finite one"),
    ("model.expected.embedded=inf", "model.expected.embedded=inf", "use a finite one"),
    ("seed=9223372036854775808", "random numbers", "use 0 to 9223372036854775807"),
    ("calib.seed=99999999999999999999", "random numbers", "use 0 to 9223372036854775807"),
    # missing things
    ("model=local", "needs a folder", "model.path=FOLDER"),
    ("model=local model.path=/nowhere", "is not a folder", "config.json"),
    ("model=hub", "needs to know which", "model.id="),
    ("calib=documents", "reads a local file", "calib.path=<file>"),
    ("calib=text calib.path=/nowhere.txt", "no file or folder /nowhere.txt", "correct the path"),
    ("suite.perplexity.protocols=[wikitex2]", "wikitex2", "did you mean wikitext2"),
    ("suite.perplexity.protocols=[wikitext2]", "could not be downloaded", "wikitext2=<file"),
    ("suite.perplexity.paths.c4=/x", "not measured", "suite.perplexity.protocols"),
    ("suite.zeroshot.files.mine=/nowhere.jsonl", "/nowhere.jsonl", "correct the path"),
]


@pytest.mark.parametrize(("given", "what", "next_step"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_is_impossible_is_said_with_the_next_step(
    given: str, what: str, next_step: str
) -> None:
    def attempt() -> None:
        for cell in compose_cells(given.split(" ")):
            resolve(cell.config)

    with pytest.raises(BitsweepError) as caught:
        attempt()
    message = str(caught.value)
    assert what in message
    assert next_step in message
    assert "\n" not in message, "one sentence on one line"
    assert message.endswith((".", "?"))
