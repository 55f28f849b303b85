"""Make the reference run that the README quotes, or compare a run with it.

  python tools/reference.py                    run the quickstart afresh and keep it
  python tools/reference.py --compare RESULTS  hold the records in RESULTS against the kept ones

What does not depend on the machine's speed must agree: full precision and round-to-nearest within
0.1 %, GPTQ within 3 % (its codes follow the rounding of the machine's matrix products), accuracies
within 0.02 and, for GPTQ, 0.05, KL divergences from full precision within 2 % and 35 %. The KL
divergence between kernel and dequantized logits must be within its own bound in both.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.records.record import Metric, Record
from harness.records.store import load_records
from harness.report.build import build_report

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = REPOSITORY / "results" / "reference" / "quickstart"
TITLE = "Quickstart"
RELATIVE = {"perplexity": (0.001, 0.03), "kl_divergence": (0.02, 0.35)}
ABSOLUTE = {"accuracy": (0.02, 0.05), "top1_flip_rate": (0.005, 0.03)}
PARITY = "kernel_kl"


def make() -> None:
    """Run the quickstart in an empty results folder and keep its records and report."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["experiment=quickstart", "tracker=none", f"paths.results={folder}"]
        subprocess.run([sys.executable, "-m", "harness", "run", *arguments], check=True)
        shutil.rmtree(REFERENCE, ignore_errors=True)
        for record in sorted(Path(folder).glob("cells/*/*.json")):
            kept = REFERENCE / record.relative_to(folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record, kept)
    build_report(load_records(REFERENCE), REFERENCE, TITLE)
    print(f"kept {REFERENCE.relative_to(REPOSITORY)}; now run: make readme")


def compare(results: Path) -> list[str]:
    """What in `results` does not agree with the reference; empty when all does."""
    ours, reference = _figures(results), _figures(REFERENCE)
    problems = [f"{' '.join(key)}: missing in {results}" for key in reference if key not in ours]
    for key, found in ours.items():
        if key[-1] == PARITY and found.notes["parity"] != "holds":
            problems.append(f"{' '.join(key)}: {found.value:.2g}, {found.notes['parity']}")
    for key in sorted(set(ours) & set(reference)):
        if key[-1] == PARITY:
            continue
        method, metric = key[1], key[-1]
        value, expected = ours[key].value, reference[key].value
        band = {**RELATIVE, **ABSOLUTE}[metric][method == "gptq"]
        allowed = band * expected if metric in RELATIVE else band
        if abs(value - expected) > allowed:
            problems.append(
                f"{' '.join(key)}: {value:.6g}, the reference has {expected:.6g} ± {allowed:.2g}"
            )
    return problems


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compare", type=Path, metavar="RESULTS", help="a results folder")
    options = parser.parse_args()
    if options.compare is None:
        make()
        return 0
    problems = compare(options.compare)
    print("\n".join(problems) or f"{options.compare} agrees with the reference run")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
