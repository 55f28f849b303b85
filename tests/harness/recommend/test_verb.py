"""`bitsweep recommend`: what it prints, its exit status, and the next step where it has none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import cli
from tests.harness.recommend.conftest import cell, sweep

Keep = Callable[..., Path]
Said = pytest.CaptureFixture[str]


def run(capsys: Said, *words: str) -> tuple[int, str, str]:
    status = cli.main(["recommend", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def line(out: str, *words: str) -> str:
    (found,) = [each for each in out.splitlines() if each.split()[: len(words)] == list(words)]
    return found


def test_the_answer_has_cells_verdicts_and_evidence(keep: Keep, capsys: Said) -> None:
    status, out, err = run(
        capsys, str(keep(sweep())), "--max-gb", "0.1", "--context", "1000", "--max-kld", "0.02"
    )
    assert (status, err) == (cli.OK, "")
    assert out.splitlines()[0] == "m: at most 0.1 GB at 1000 tokens; KL divergence at most 0.02"
    gptq = line(out, "GPTQ", "w4")
    assert "recommended" in gptq
    assert gptq.split()[3:] == ["4.00", "8.00", "17.5", "2", "0.00100", "[8.04e-04,", "0.00120]"]
    assert "best figures" in line(out, "full", "prec.")
    assert "worse" in line(out, "RTN", "w4")
    assert "too far" in line(out, "GPTQ", "w3")
    assert "worse than full prec. float32: embedded perplexity +0.5" in out
    assert "too far: KL divergence of embedded 0.0500 > 0.02" in out
    assert "in pieces of 100 tokens" in " ".join(out.split())
    (recommended,) = [each for each in out.splitlines() if each.startswith("Recommended: ")]
    assert recommended == (
        "Recommended: GPTQ w4, 17.5 MB at 1000 tokens, "
        "KL divergence 0.00100 [8.04e-04, 0.00120] (embedded), 500 tokens/s."
    )
    assert "The evidence does not separate it from full prec. float32" in out
    assert "17.5 MB instead of 65.5 MB and 2 ms a token instead of 3" in out
    assert "p ≥ 0.05 after Holm's correction over 4 comparisons" in out
    assert "Made by: bitsweep run model=" in out


def test_json_has_the_same_for_programs(keep: Keep, capsys: Said) -> None:
    status, out, _ = run(capsys, str(keep(sweep())), "--max-kld", "0.02", "--json")
    found = json.loads(out)
    assert status == cli.OK
    assert (found["recommended"], found["best"]) == ("GPTQ w4", "full prec. float32")
    assert found["limits"]["max_kld"] == 0.02
    assert found["limits"]["context"] == 4096
    cells = {each["cell"]: each for each in found["cells"]}
    assert cells["GPTQ w4"]["serving_bytes"] == 16e6 + 4096e3 + 5e5
    assert cells["GPTQ w4"]["model_bits_per_weight"] == 8.0
    assert cells["GPTQ w3"]["fits"] is False
    (accuracy,) = [each for each in cells["RTN w4"]["against_best"] if each["figure"] == "accuracy"]
    assert (accuracy["lost"], accuracy["gained"], accuracy["significant"]) == (8.0, 0.0, True)
    assert all(len(each["keys"][0]) == 64 for each in found["cells"])


def test_where_nothing_fits_it_says_what_would(keep: Keep, capsys: Said) -> None:
    results = str(keep(sweep()))
    status, out, err = run(capsys, results, "--max-gb", "0.001", "--context", "1000")
    assert status == cli.FAILED
    assert "too big" in line(out, "GPTQ", "w3")
    assert "the smallest, GPTQ w3, takes 13.5 MB at 1000 tokens. Raise --max-gb to 0.0136" in err
    status, _, err = run(capsys, results, "--max-gb", "1", "--min-accuracy", "0.99")
    assert status == cli.FAILED
    assert "loosen one of them, or run other methods and schemes" in err


def test_a_suite_that_was_run_nowhere_is_named_with_its_command(keep: Keep, capsys: Said) -> None:
    untimed = [each for each in sweep() if each.suite != "latency"]
    status, out, err = run(capsys, str(keep(untimed)), "--max-gb", "8")
    assert (status, out) == (cli.IMPOSSIBLE, "")
    assert "has no figures of suite=latency, which this question needs" in err
    assert "method=gptq" in err
    assert "suite=[latency]" in err
    few = [each for each in sweep() if each.suite in ("latency", "zeroshot")]
    status, _, err = run(capsys, str(keep(few, "few")), "--max-kld", "0.1")
    assert status == cli.IMPOSSIBLE
    assert "suite=[divergence]" in err
    timed = [each for each in sweep() if each.suite == "latency"]
    status, _, err = run(capsys, str(keep(timed, "timed")))
    assert status == cli.IMPOSSIBLE
    assert "suite=[divergence]" in err


def test_cells_that_lack_a_suite_are_left_out_with_the_command(keep: Keep, capsys: Said) -> None:
    records = [each for each in sweep() if (each.cell.method, each.suite) != ("rtn", "divergence")]
    status, out, _ = run(capsys, str(keep(records)), "--max-kld", "0.02")
    assert status == cli.OK
    assert "not measured" in line(out, "RTN", "w4")
    (command,) = [each for each in out.splitlines() if each.startswith("To measure RTN w4: ")]
    assert "suite=[divergence] suite.divergence.some=settings" in command  # as the others were
    alone = [each for each in sweep() if each.cell.method == "rtn" or each.suite == "latency"]
    status, _, err = run(capsys, str(keep(alone, "alone")), "--min-accuracy", "0.9")
    assert status == cli.FAILED
    assert "but full prec. float32, GPTQ w4, GPTQ w3 may: run the commands above." in err


def test_models_are_not_mixed(keep: Keep, capsys: Said) -> None:
    other = cell("rtn", "w4", 5, kl=0.01, shift=0.1, lost=(1,), model="other")
    results = str(keep([*sweep(), *other]))
    status, _, err = run(capsys, results)
    assert status == cli.IMPOSSIBLE
    assert "has 2 models, whose figures are not comparable: choose one with --model, of m, " in err
    status, out, _ = run(capsys, results, "--model", "other")
    assert status == cli.OK
    assert "Recommended: RTN w4" in out
    assert "No other cell keeps to them." in out
    status, _, err = run(capsys, results, "--model", "third")
    assert "has no model third: it has m, other." in err


def test_a_context_that_the_model_does_not_take_is_refused(keep: Keep, capsys: Said) -> None:
    status, _, err = run(capsys, str(keep(sweep())), "--context", "9000", "--max-gb", "1")
    assert status == cli.IMPOSSIBLE
    assert "--context 9000 is longer than m takes: use 8192 or less." in err


def test_folders_without_records_are_refused(tmp_path: Path, capsys: Said) -> None:
    status, _, err = run(capsys, str(tmp_path / "none"))
    assert status == cli.IMPOSSIBLE
    assert "there is no folder" in err
    status, _, err = run(capsys, str(tmp_path))
    assert "holds no records: make some with `bitsweep run`" in err


def test_memory_before_quality_says_what_the_best_has_more(keep: Keep, capsys: Said) -> None:
    status, out, _ = run(capsys, str(keep(sweep())), "--max-kld", "0.1", "--prefer", "memory")
    assert status == cli.OK
    assert "Recommended: GPTQ w3" in out
    assert "memory before quality" in out
    assert "full prec. float32 has the best KL divergence of what keeps to the limits: " in out
    assert "choice accuracy -12.0 [" in out


def test_a_limit_that_cuts_an_interval_is_said_of_the_answer(keep: Keep, capsys: Said) -> None:
    _, out, _ = run(capsys, str(keep(sweep())), "--max-kld", "0.0011", "--max-gb", "0.03")
    assert "Recommended: GPTQ w4" in out
    assert "Not surely within the limits: KL divergence of embedded keeps to 0.0011, but" in out


def test_equal_costs_are_not_named(keep: Keep, capsys: Said) -> None:
    records = [
        *cell("rtn", "w4", 16, 1.5, kl=0.002, shift=0.0005, lost=(3, 95)),
        *cell("gptq", "w4", 16, 2.0, kl=0.001, shift=0.0004, lost=(4,)),
    ]
    _, out, _ = run(capsys, str(keep(records)))
    assert "so it is as good with 1.5 ms a token instead of 2: " in out
