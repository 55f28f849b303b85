"""Make the reference run that the README quotes, or compare a run with it.

  python tools/reference.py                    run the quickstart and store its records
  python tools/reference.py --compare RESULTS  compare the records in RESULTS with the stored ones
  python tools/reference.py --keep RESULTS     store the records of experiment=real/smollm2 that
                                               RESULTS has, finished or not, for the README
  python tools/reference.py --keep-peers RESULTS   all records of RESULTS, of experiment=peers
  python tools/reference.py --keep-ordering RESULTS   the same of experiment=real/smollm2_ordering
  python tools/reference.py --keep-ablation RESULTS   the same of experiment=methods/ablation
  python tools/reference.py --keep-product RESULTS   the perplexities of experiment=methods/product
  python tools/reference.py --keep-activations RESULTS   (--keep-allocation, --keep-equal-bytes)
                                               those of experiment=methods/activations, and so on
  python tools/reference.py --keep-calibration RESULTS   the same of experiment=calibration, and the
                                               plot that the README shows

Everything except timings must agree: quantized weights in every bit, figures in every digit that
tables print (an accuracy may differ by its tied documents). If one of the two was calibrated in
fast arithmetic, whose codes depend on the rounding of the machine's matrix products, tolerances
apply: 3 % of a perplexity, 0.05 of an accuracy, 35 % of a KL divergence from full precision, 0.03
of the flips. The KL divergence between kernel and dequantized logits must be within its bound in
both.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness.config.experiments import experiment
from harness.records.absent import FOLDER
from harness.records.record import QUANTIZATION, Metric, Record
from harness.records.roots import Roots
from harness.records.store import load_records, read_record, write_atomically
from harness.report.build import build_report
from harness.report.by_calibration import SUFFIX
from harness.report.table import measured, small
from quant.arithmetic import PORTABLE
from tools.ablation_table import EXPERIMENT as METHODS
from tools.kept import REPOSITORY, folder_of
from tools.ordering_table import EXPERIMENT as ORDER
from tools.product_table import EXPERIMENT as METHODS_PRODUCT
from tools.protocol_tables import PROTOCOLS
from tools.real_table import EXPERIMENT

REFERENCE = folder_of("quickstart")
TITLE = "Quickstart"
REAL = folder_of(EXPERIMENT)
PEERS = folder_of("peers")
ORDERING = folder_of(ORDER)
CALIBRATION = folder_of("calibration")
ABLATION = folder_of(METHODS)
# Tolerances for codes that depend on the rounding of the machine.
RELATIVE = {"perplexity": 0.03, "kl_divergence": 0.35}
ABSOLUTE = {"accuracy": 0.05, "top1_flip_rate": 0.03}
PARITY = "kernel_kl"


def make() -> None:
    """Run the quickstart in an empty results folder and store its records and report."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["experiment=quickstart", "tracker=none", f"paths.results={folder}"]
        subprocess.run([sys.executable, "-m", "harness", "run", *arguments], check=True)
        shutil.rmtree(REFERENCE, ignore_errors=True)
        _copy(Path(folder), REFERENCE)
    build_report(load_records(REFERENCE), REFERENCE, TITLE)
    print(f"kept {REFERENCE.relative_to(REPOSITORY)}; now run: make readme")


def keep(results: Path) -> list[str]:
    """Store the records of the real model in a results folder; sentences on what stands against it.

    Records of other models and methods than the experiment's are left out, and nothing is stored if
    one names a folder of this machine, or one of another sweep's cell has the place of one.
    """
    asked = experiment(EXPERIMENT)
    wanted = {(cell.model, cell.method, cell.scheme, cell.seed) for cell in asked.cells}
    kept = {path: record for path, record in _found(results).items() if _asked(record) in wanted}
    if not kept:
        return [f"{results} has no record of experiment={EXPERIMENT}: run it with paths.results"]
    done = len({_asked(record) for record in kept.values()})
    return _store(kept, results, REAL, f"{done} of {len(wanted)} cells")


def keep_all(
    results: Path, place: Path, experiment: str, wanted: Callable[[Record], bool] = lambda _: True
) -> list[str]:
    """Store the records of a results folder that are wanted as those of an experiment."""
    kept = {path: record for path, record in _found(results).items() if wanted(record)}
    if not kept:
        return [
            f"{results} has no records: run experiment={experiment} with paths.results={results}"
        ]
    done = len({record.cell_key for record in kept.values()})
    return _store(kept, results, place, f"{done} cells")


def keep_peers(results: Path) -> list[str]:
    """Store the records of the producers side by side."""
    return keep_all(results, PEERS, "peers")


def keep_ordering(results: Path) -> list[str]:
    """Store the records of the paper's order on the real model."""
    return keep_all(results, ORDERING, ORDER)


def keep_ablation(results: Path) -> list[str]:
    """Store the records of the methods under one protocol."""
    return keep_all(results, ABLATION, METHODS)


def keep_figures(results: Path, experiment: str) -> list[str]:
    """Store the figures of an experiment's models without their layers, which no table shows."""
    return keep_all(
        results, folder_of(experiment), experiment, lambda each: each.suite != QUANTIZATION
    )


def keep_calibration(results: Path) -> list[str]:
    """Store the records of the ablation of calibration texts, with its plot."""
    problems = keep_all(results, CALIBRATION, "calibration")
    if not problems:
        with tempfile.TemporaryDirectory() as folder:
            for file in build_report(load_records(CALIBRATION), Path(folder), "Calibration"):
                if file.stem == f"perplexity_{SUFFIX}":
                    place = CALIBRATION / file.relative_to(folder)
                    place.parent.mkdir(exist_ok=True)
                    shutil.copyfile(file, place)
    return problems


def _found(results: Path) -> dict[Path, Record]:
    return {
        path: read_record(path)
        for folder in ("cells", FOLDER)
        for path in sorted((results / folder).glob("*/*.json"))
    }


def _store(kept: dict[Path, Record], results: Path, place: Path, what: str) -> list[str]:
    """Put records in the place of those that `place` has; sentences on what stands against it."""
    roots = Roots.of([("results", results)])
    problems = [
        f"{path} names a folder of this machine: it was written by hand or by an older version"
        for path, record in kept.items()
        if roots.clean(record) != record
    ]
    if not problems:
        shutil.rmtree(place, ignore_errors=True)
        for path, record in kept.items():
            # Without the scores of single documents, which are not stored.
            shared = record.model_copy(update={"samples_file": None})
            write_atomically(
                place / path.relative_to(results), shared.model_dump_json(indent=1) + "\n"
            )
        print(f"kept {len(kept)} records of {what}; now run: make readme")
    return problems


def _asked(record: Record) -> tuple[str, str, str, int]:
    cell = record.cell
    return cell.model, cell.method, cell.scheme, cell.seed


def _copy(results: Path, reference: Path) -> None:
    for record in sorted(results.glob("cells/*/*.json")):
        kept = reference / record.relative_to(results)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record, kept)


def compare(results: Path) -> list[str]:
    """Differences of `results` from the reference, one sentence each."""
    ours, reference = _figures(results), _figures(REFERENCE)
    loose = _rounded(results) | _rounded(REFERENCE)
    problems = _other_weights(results, loose)
    problems += [f"{' '.join(key)}: missing in {results}" for key in reference if key not in ours]
    for key, found in ours.items():
        if key[-1] == PARITY and found.notes["parity"] != "holds":
            problems.append(f"{' '.join(key)}: {found.value:.2g}, {found.notes['parity']}")
    for key in sorted(set(ours) & set(reference)):
        if key[-1] == PARITY:
            continue
        metric, value, expected = key[-1], ours[key].value, reference[key].value
        if key[:4] not in loose:
            allowed = _ties(ours[key], reference[key])
            if abs(value - expected) > allowed + 1e-9 and _print(ours[key]) != _print(
                reference[key]
            ):
                problems.append(
                    f"{' '.join(key)}: {_print(ours[key])}, the reference has "
                    f"{_print(reference[key])}; portable arithmetic prints the same digits"
                )
            continue
        band = {**RELATIVE, **ABSOLUTE}[metric]
        allowed = band * expected if metric in RELATIVE else band
        if abs(value - expected) > allowed:
            problems.append(
                f"{' '.join(key)}: {value:.6g}, the reference has {expected:.6g} ± {allowed:.2g}"
            )
    return problems


def _rounded(folder: Path) -> set[tuple[str, ...]]:
    """Cells whose codes depend on the machine's rounding: calibrated in fast arithmetic."""
    return {
        _cell(record)
        for record in load_records(folder)
        if record.cell.calibration is not None and record.environment.get("arithmetic") != PORTABLE
    }


def _other_weights(results: Path, loose: set[tuple[str, ...]]) -> list[str]:
    """Cells whose quantized weights differ from the reference in any bit."""
    ours, reference = _weights(results), _weights(REFERENCE)
    return [
        f"{' '.join(cell)}: other weights than the reference ({ours[cell][:12]}, not "
        f"{reference[cell][:12]}); they are the same on every machine"
        for cell in sorted(set(ours) & set(reference) - loose)
        if ours[cell] != reference[cell]
    ]


def _weights(folder: Path) -> dict[tuple[str, ...], str]:
    records = load_records(folder)
    return {_cell(r): r.inputs["weights"] for r in records if "weights" in r.inputs}


def _print(metric: Metric) -> str:
    """The figure with the digits of tables."""
    if metric.name == "kl_divergence":
        return small(metric.value)
    scale = 100 if metric.unit == "fraction" else 1
    stderr = None if metric.stderr is None else scale * metric.stderr
    return measured(scale * metric.value, stderr)


def _ties(*metrics: Metric) -> float:
    """The largest difference of an accuracy that tied choices explain."""
    return max(int(m.notes.get("ties", 0)) / m.n if m.n else 0.0 for m in metrics)


def _figures(folder: Path) -> dict[tuple[str, ...], Metric]:
    names = {*RELATIVE, *ABSOLUTE, PARITY}
    found: dict[tuple[str, ...], Metric] = {}
    for record in load_records(folder):
        for metric in record.metrics:
            if metric.name in names:
                found[(*_cell(record), metric.task, metric.name)] = metric
    return found


def _cell(record: Record) -> tuple[str, ...]:
    cell = record.cell
    return cell.model, cell.method, cell.scheme, f"seed={cell.seed}"


# What stores the records of a further option --keep-NAME, and their experiment.
KEPT: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "peers": (keep_peers, "peers"),
    "ordering": (keep_ordering, ORDER),
    "calibration": (keep_calibration, "calibration"),
    "ablation": (keep_ablation, METHODS),
    "product": (partial(keep_figures, experiment=METHODS_PRODUCT), METHODS_PRODUCT),
    **{
        each.name: (partial(keep_figures, experiment=each.experiment), each.experiment)
        for each in PROTOCOLS
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compare", type=Path, metavar="RESULTS", help="a results folder")
    parser.add_argument("--keep", type=Path, metavar="RESULTS", help="of experiment=real/smollm2")
    for name, (_, asked) in KEPT.items():
        of = f"of experiment={asked}"
        option = f"--keep-{name.replace('_', '-')}"
        parser.add_argument(option, dest=name, type=Path, metavar="RESULTS", help=of)
    options = parser.parse_args()
    for store, given in (
        (keep, options.keep),
        *((store, getattr(options, name)) for name, (store, _) in KEPT.items()),
    ):
        if given is not None:
            problems = store(given)
            print(*problems, sep="\n", end="\n" if problems else "")
            return 1 if problems else 0
    if options.compare is None:
        make()
        return 0
    problems = compare(options.compare)
    print("\n".join(problems) or f"{options.compare} agrees with the reference run")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
