"""A method and a suite of a user's folder, word for word those of docs/extending.md.

They run through the command line to the table. What is incomplete is refused in one sentence that
names the missing part, before anything is loaded.
"""

import csv
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import cli
from harness.records.record import Record
from harness.records.store import load_records

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
# The files of a user's folder, as the page gives them.
FILES = dict(re.findall(r"^`mine/([\w/.]+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.M | re.S))
SOLVER, SUITE = FILES["halve.py"], FILES["toy.py"]
METHOD, CHOICE = FILES["method/halve.yaml"], FILES["suite/toy.yaml"]
LEVELS, SCHEME = FILES["quantiles.py"], FILES["scheme/qt3.yaml"]


def write_files(root: Path) -> Path:
    """A user's folder, laid out like conf/, with the modules beside the YAML files."""
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "mine")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One place for all that is refused: of the same YAML files cells are composed once."""
    return tmp_path_factory.mktemp("refused")


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def run(
    folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """bitsweep run; cells have processes of their own, which one server forks for all tests."""

    def start(*overrides: str) -> Done:
        status = cli.main([
            "run", "--config-dir", str(folder), "model=local", f"model.path={tiny_model}",
            "model.name=tiny", "tracker=none", "runtime.threads=1",
            f"paths.results={tmp_path / 'results'}", *overrides,
        ])  # fmt: skip
        return Done(status, *capsys.readouterr())

    return start


Run = Callable[..., Done]


def records(tmp_path: Path) -> dict[tuple[str, str], Record]:
    found = load_records(tmp_path / "results")
    return {(record.cell.method, record.suite): record for record in found}


def test_a_method_and_a_suite_of_the_user_reach_the_table(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run("-m", "method=halve,rtn", "scheme=w8", "suite=[toy]")
    assert done.status == cli.OK, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "w8" in line]
    assert {row[0] for row in rows} == {"Halved", "RTN"}
    assert "size of weights" in done.stdout
    found = records(tmp_path)
    halved, rounded = (found[name, "toy"].metrics[0].value for name in ("halve", "rtn"))
    assert halved == pytest.approx(rounded / 2, rel=0.02), "the user's solver made these weights"
    made = found["halve", "quantization"]
    assert {layer.method for layer in made.layers} == {"halve"}
    assert made.config["method"] == {"name": "halve", "factor": 0.5}
    with (tmp_path / "results/reports/run/tables/toy.csv").open() as file:
        values = {line["method"]: float(line["mean_size"]) for line in csv.DictReader(file)}
    assert values == {"Halved": pytest.approx(halved), "RTN": pytest.approx(rounded)}
    again = run("-m", "method=halve,rtn", "scheme=w8", "suite=[toy]")
    assert "0 to run" in again.stderr, "its work is kept as that of any other"
    assert cli.main(["report", str(tmp_path / "results"), "--config-dir", str(folder)]) == cli.OK
    assert "size of weights" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "results")]) == cli.OK
    assert "mean_size" in capsys.readouterr().out, "without the code, by the metric's own name"


def test_options_and_the_code_itself_are_in_the_key(run: Run, folder: Path, tmp_path: Path) -> None:
    doubled = SOLVER.replace("options.factor * weight", "2 * options.factor * weight")
    for name, overrides, text in (
        ("one", [], SOLVER),
        ("quarter", ["method.factor=0.25"], SOLVER),
        ("double", [], doubled),
    ):
        (folder / "halve.py").write_text(text)
        done = run("method=halve", "scheme=w8", "suite=[toy]", f"name={name}", *overrides)
        assert done.status == cli.OK, done.stderr
        assert "2 stages: 2 to run" in done.stderr
        assert ("Halved times 0.25" in done.stdout) == bool(overrides)
    keys = {record.cell_key for record in load_records(tmp_path / "results")}
    assert len(keys) == 3


def test_a_solver_of_an_installed_package(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "theirs" / "solvers"
    package.mkdir(parents=True)
    (folder / "halve.py").rename(package / "halve.py")
    (folder / "method" / "halve.yaml").write_text("# Theirs.\nsolver: theirs.solvers.halve\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    done = run("method=halve", "scheme=w8", "suite=[toy]", "method.factor=2")
    assert done.status == cli.OK, done.stderr
    assert "Halved times 2" in done.stdout


def test_a_spec_travels_to_the_process_of_its_cell_with_a_lambda_in_it(
    run: Run, folder: Path
) -> None:
    text = SOLVER.replace("solve=solve", "solve=lambda *given: solve(*given)")
    (folder / "halve.py").write_text(text)
    done = run("method=halve", "scheme=w8", "suite=[toy]")
    assert done.status == cli.OK, done.stderr


def test_levels_of_the_user_reach_the_table(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From weights to an artifact that is measured, told apart by code, and read when trusted."""
    done = run("method=rtn", "scheme=qt3", "suite=[toy]")
    assert done.status == cli.OK, done.stderr
    assert "qt3" in done.stdout
    found = records(tmp_path)
    made = found["rtn", "quantization"]
    assert made.config["scheme"]["levels"] == "quantiles"
    for layer in made.layers:
        assert layer.scheme == "qt3"
        assert layer.bits_per_weight == 3 + 8 * 16 / layer.inputs
    (artifact,) = (tmp_path / "results" / "artifacts").iterdir()
    model = [f"model.path={artifact}", "model.name=again", "method=none", "scheme=w16"]
    read = run(*model, "suite=[toy]", "model.levels=quantiles")
    assert read.status == cli.OK, read.stderr
    loaded = records(tmp_path)["loaded", "toy"]
    assert loaded.cell.scheme == "qt3"
    assert loaded.metrics[0].value == found["rtn", "toy"].metrics[0].value
    plan = ["plan", "model=local", *model, "suite=[toy]", "--config-dir", str(folder)]
    export = ["export", str(artifact), str(tmp_path / "out"), "--format", "gptq-v2"]
    trusted = ["--levels", str(folder / "quantiles.py")]
    for arguments, sentence in (
        (plan, "levels='quantiles' are not Bitsweep's own"),
        (["inspect", str(artifact)], "--levels MODULE"),
        ([*export, *trusted], "has quantiles levels, which gptq-v2 cannot store"),
    ):
        assert cli.main(arguments) == cli.IMPOSSIBLE
        assert sentence in capsys.readouterr().err
    assert cli.main(["inspect", str(artifact), *trusted]) == cli.OK
    assert "qt3, float16 scales" in capsys.readouterr().out
    for text, sentence in (
        (LEVELS.replace("values=None", "values=8"), "tensors are not those that the quantiles"),
        ("LEVELS = 3\n", "LEVELS is a int, not a Levels"),
        ("raise ValueError('no')\n", "cannot be imported (ValueError: no)"),
    ):
        (folder / "quantiles.py").write_text(text)
        assert cli.main(["inspect", str(artifact), *trusted]) == cli.IMPOSSIBLE
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("scheme/qt3.yaml", SCHEME.replace("quantiles\n", "nothing\n"), "no module nothing"),
        ("quantiles.py", "LEVELS = 3\n", "LEVELS is a int, not a Levels"),
        ("quantiles.py", LEVELS.replace('"quantiles"', '"uniform"'), "a part of Bitsweep"),
        ("quantiles.py", LEVELS.replace('prefix="qt"', 'prefix="w"'), "names a scheme w3, which"),
        ("quantiles.py", LEVELS.replace("values=None", "values=0"), "values=0 is below 1"),
    ],
)
def test_levels_that_cannot_be_are_refused_in_one_sentence(
    file: str,
    text: str,
    sentence: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(place / "mine", ignore_errors=True)
    folder = write_files(place / "mine")
    (folder / file).write_text(text)
    arguments = ["plan", "--config-dir", str(folder), "method=rtn", "scheme=qt3", "suite=[toy]"]
    assert cli.main([*arguments, f"paths.results={place / 'results'}"]) == cli.IMPOSSIBLE
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1


def lines_of(text: str) -> str:
    """The module without its spec."""
    return re.sub(r"^(SOLVER|SUITE) = .*\n", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("file", "text", "overrides", "sentence"),
    [
        ("halve.py", lines_of(SOLVER), [], "has no SOLVER; add SOLVER = Solver(...)"),
        ("halve.py", SOLVER + "SOLVER = 3\n", [], "SOLVER is a int, not a Solver"),
        (
            "halve.py",
            SOLVER.replace("solve=solve", "solve=None"),
            [],
            "solve=None is not a function",
        ),
        ("halve.py", SOLVER.replace("frozen=True", ""), [], "is not a frozen dataclass"),
        ("halve.py", "import nothing_like_it\n", [], "No module named 'nothing_like_it'"),
        ("halve.py", SOLVER, ["method.factr=1"], "did you mean factor"),
        ("halve.py", SOLVER, ["method.factor=half"], "method.factor"),
        ("halve.py", SOLVER, ["method.factor=0"], "method.factor=0.0 leaves no weight"),
        ("method/halve.yaml", "# Nothing.\nfactor: 1.0\n", [], "method has no solver"),
        ("method/halve.yaml", "# Wrong.\nsolver: helve\n", [], "there is no module helve"),
        ("toy.py", lines_of(SUITE), [], "has no SUITE; add SUITE = Suite(...)"),
        ("toy.py", SUITE.replace(", table=TABLE", ""), [], "table"),
        ("toy.py", SUITE.replace("@dataclass\n", ""), [], "is not a dataclass"),
        ("suite/toy.yaml", "# A toy.\ntoy:\n  scale: 1.0\n", [], "suite toy is not selected"),
        ("suite/toy.yaml", "# A toy.\ntoy: 5\n", [], "suite.toy=5 names no module"),
        ("suite/toy.yaml", "# A toy.\ntoy: [\n", [], "toy.yaml cannot be read"),
        ("halve.py", SOLVER.replace('"halve"', '"gptq"'), [], "the name of a part of Bitsweep"),
        ("halve.py", SOLVER.replace('"halve"', '"none"'), [], "the name of a part of Bitsweep"),
        ("halve.py", SOLVER.replace('"halve"', '""'), [], "use letters, digits and _"),
        (
            "halve.py",
            SOLVER.replace("factor: float", "module: float = 1\n    factor: float"),
            [],
            "an option named module",
        ),
        ("halve.py", "import sys\nsys.exit(3)\n", [], "SystemExit: 3"),
        ("halve.py", SOLVER.replace("return []", "return None"), [], "describe returned None"),
        ("halve.py", SOLVER, ["method.factor=nan"], "is not finite"),
        ("halve.py", SOLVER, ["method.module=quant.solvers.gptq"], "named by method.solver"),
        ("method/gptq.yaml", METHOD, [], "conf/ has a file of that name too"),
        (
            "toy.py",
            SUITE.replace("scale: float", 'path: str = ""\n    scale: float'),
            [],
            "add inputs=",
        ),
        ("toy.py", SUITE.replace("run=run", "run=None"), [], "run=None is not a function"),
        ("suite/toy.yaml", CHOICE.replace("toy:\n", "toys:\n"), [], "called toy: rename"),
    ],
)
def test_what_is_incomplete_is_refused_in_one_sentence(
    file: str,
    text: str,
    overrides: list[str],
    sentence: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(place / "mine", ignore_errors=True)
    folder = write_files(place / "mine")
    (folder / file).write_text(text)
    arguments = ["plan", "--config-dir", str(folder), "method=halve", "suite=[toy]", *overrides]
    assert cli.main([*arguments, f"paths.results={place / 'results'}"]) == cli.IMPOSSIBLE
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
    assert not (place / "results").exists()


def test_modules_of_one_written_name_are_told_apart(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "sub").mkdir()
    for name, where in (("tenth", "sub/halve.py"), ("whole", "sub_halve.py")):
        (folder / where).write_text(SOLVER.replace('"halve"', f'"{name}"').replace("Halved", name))
        module = where.removesuffix(".py").replace("/", ".")
        (folder / "method" / f"{name}.yaml").write_text(f"# One of two.\nsolver: {module}\n")
    done = run("-m", "method=tenth,whole", "scheme=w8", "suite=[toy]")
    assert done.status == cli.OK, done.stderr
    assert {method for method, _ in records(tmp_path)} == {"tenth", "whole"}


def test_code_that_changes_during_a_run_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    """The solver edits its own file when it is first called, as a user might meanwhile."""
    text = SOLVER.replace(
        "def solve(weight, scheme, prepared, options, layer):\n",
        "def solve(weight, scheme, prepared, options, layer):\n"
        "    open(__file__, 'a').write('# edited\\n')\n",
    )
    (folder / "halve.py").write_text(text)
    done = run("-m", "method=halve", "scheme=w8,w7", "suite=[toy]")
    assert done.status == cli.FAILED
    assert "was changed after the run was planned" in done.stderr
    found = load_records(tmp_path / "results")
    assert {record.cell.scheme for record in found if record.status == "ok"} == {"w8"}
