"""Take every figure that does not depend on the clock, and compare those of two commits.

  python tools/same_figures.py take OUT.json [--checkout DIR] [--shared DIR] [--only RUN]
  python tools/same_figures.py compare BEFORE.json AFTER.json [--allow PATTERN]

For changes that must not change a figure: take before, take after, compare. `take` runs the
quickstart and sweeps of a small trained model (SHARED/models/tinystories-656k) that cover all
methods, kinds of scheme and formats, through the command line of the checkout. It stores keys,
hashes, layers and metrics of each record, and the sha256 of all files of each artifact and export,
without figures of time and of a process's memory. `compare` prints one line for each difference in
any bit, and exits with 1 if there are any. --allow excludes announced differences by a pattern for
the text before the colon, such as "*/perplexity/key". Both commits must be taken on one machine.

The packages are not imported, so figures of any commit can be taken, including older ones.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = "models/tinystories-656k"
TEXT = "data/tinystories-valid/tinystories_valid_1M.txt"
THREADS = 2  # fixed, because the order of sums depends on the number of threads

# Fields of a record that are stored; those on time, place and speed are left out.
KEPT = ("key", "cell_key", "schema_version", "status", "error", "config", "inputs")
CLOCK_UNITS = ("s", "ms", "us", "ns", "tokens/s", "GB/s")
CLOCK_NAMES = ("*speedup", "*_share")  # ratios of times
MEMORY_NAMES = ("*peak_memory*", "*working_memory*")
MISSING = object()

# model.name distinguishes cells whose method and scheme have the same names.
PRODUCTS: list[dict[str, Any]] = [
    {"method": "none", "scheme": "w16"},
    {"method": ["rtn", "gptq"], "scheme": ["w8", "w4", "w3", "w2", "w2g128", "ternary_g8"]},
    {"method": ["rtn", "gptq"], "scheme": ["w4_sym", "w3_mse", "w4g128"]},
    {"method": "gptq_actorder", "scheme": ["w4", "w2g32"], "model.name": "actorder"},
    {"method": "gptq", "scheme": "w2g32", "model.name": "stale", "method.group_grid": "stale"},
    {"method": "gptq", "scheme": "w3", "model.name": "in-turn", "method.true_sequential": True},
    {"method": "gptq", "scheme": "w2g32", "model.name": "static", "method.static_groups": True},
    {"method": "gptq", "scheme": "w3", "model.name": "other-seed", "seed": 1},
    {"method": "gptq", "scheme": "w4", "model.name": "bfloat16", "model.dtype": "bfloat16"},
    {"method": "gptq", "scheme": "w3", "model.name": "plain-torch", "runtime.kernel": "reference"},
]
FORMATS = ("gptq-v1", "gptq-v2", "compressed-tensors")
NAME = "tinystories-656k"
EXPORTED = f"{NAME}-gptq-w4g128-s0-*"


@dataclass(frozen=True)
class Place:
    """The checkout, the shared folder of model and text, and the results folder."""

    checkout: Path
    shared: Path
    results: Path

    def harness(self, *arguments: str) -> None:
        """Run a verb of the command line; SystemExit if it fails."""
        environment = {
            "PYTHONPATH": str(self.checkout),
            "HF_HUB_OFFLINE": "1",
            "GOMP_SPINCOUNT": "0",  # threads that spin while they wait starve a busy machine
        }
        command = [sys.executable, "-m", "harness", *arguments]
        done = subprocess.run(
            command, cwd=self.checkout, env={**os.environ, **environment}, stdout=sys.stderr
        )
        if done.returncode != 0:
            raise SystemExit(
                f"same_figures: {' '.join(command)} exited with {done.returncode} in "
                f"{self.checkout}; figures need a run without failures: repair it first."
            )

    def run(self, name: str, *overrides: str) -> None:
        """Run a sweep into the results folder `name`."""
        folder = f"paths.results={self.results / name}"
        self.harness("run", *overrides, "tracker=none", f"runtime.threads={THREADS}", folder)

    def tinystories(self, name: str, products: list[dict[str, Any]], *overrides: str) -> None:
        """Run products of cells of the small trained model, on a few windows of text."""
        named = [{"model.name": NAME, **product} for product in products]
        text = self.shared / TEXT
        self.run(
            name,
            "model=local",
            f"model.path={self.shared / MODEL}",
            "calib=documents",
            f"calib.path={text}",
            "calib.sequences=16",
            "calib.length=256",
            f"suite.perplexity.paths.documents={text}",
            "suite.perplexity.max_windows=16",
            f"sweep={_as_override(named)}",
            *overrides,
        )


def quickstart(place: Place) -> None:
    place.run("quickstart", "experiment=quickstart")


def tinystories(place: Place) -> None:
    """Run all methods and kinds of scheme; then export one result, and measure an export."""
    text = f"suite.divergence.paths.documents={place.shared / TEXT}"
    suites = ("suite=[perplexity_documents,divergence]", "suite.divergence.max_windows=4")
    measured = (*suites, "suite.divergence.protocols=[documents]", text)
    place.tinystories("tinystories", PRODUCTS, *measured)
    (artifact,) = (place.results / "tinystories" / "artifacts").glob(EXPORTED)
    for name in FORMATS:
        target = place.results / "exports" / "artifacts" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        place.harness("export", str(artifact), str(target), "--format", name)
    place.tinystories("exports", PRODUCTS[:1], *measured, f"model.path={target}")


def streamed(place: Place) -> None:
    """Run a quantization with activations on disk, measured block by block."""
    placement = ("runtime.stream=always", "runtime.activations=disk")
    cells = [{"method": "gptq", "scheme": "w3"}]
    place.tinystories("streamed", cells, *placement, "suite=[perplexity_documents]")


RUNS: dict[str, Callable[[Place], None]] = {
    "tinystories": tinystories,
    "streamed": streamed,
    "quickstart": quickstart,
}


def take(checkout: Path, shared: Path, runs: Sequence[str] = tuple(RUNS)) -> dict[str, Any]:
    """Run everything in a temporary folder; return the figures by record and artifact."""
    with tempfile.TemporaryDirectory() as folder:
        for name in runs:
            RUNS[name](Place(checkout.resolve(), shared.resolve(), Path(folder)))
        return figures(Path(folder))


def figures(results: Path) -> dict[str, Any]:
    """The stored figures of records and artifacts in the folders of `results`, by name."""
    found: dict[str, Any] = {}
    for path in sorted(results.glob("*/cells/*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        name = path.relative_to(results).parts[0]
        _add(found, f"{name}/{_identity(record)}", _kept(record, path))
    for path in sorted(results.glob("*/artifacts/*")):
        hashes = {
            str(file.relative_to(path)): _sha256(file)
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
        # The key at the end of the name is in the record too: report a changed key only once.
        name = re.sub(r"-[0-9a-f]{12}$", "", "/".join(path.relative_to(results).parts))
        _add(found, name, hashes)
    return found


def differences(before: Any, after: Any, what: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield (name, "before -> after") of everything that differs in any bit."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in (*before, *(name for name in after if name not in before)):
            pair = before.get(name, MISSING), after.get(name, MISSING)
            yield from differences(*pair, what=(*what, name))
    elif _text(before) != _text(after):  # as text: 0.0 equals -0.0, and 1 equals 1.0
        yield "/".join(what), f"{_brief(before)} -> {_brief(after)}"


def compare(before: Any, after: Any, allowed: Sequence[str] = ()) -> list[str]:
    """The differences, one line each, except those whose name matches a pattern of `allowed`."""
    return [
        f"{what}: {change}"
        for what, change in differences(before, after)
        if not any(fnmatch.fnmatchcase(what, pattern) for pattern in allowed)
    ]


def _identity(record: dict[str, Any]) -> str:
    cell = record["cell"]
    return f"{cell['model']} {cell['method']} {cell['scheme']} s{cell['seed']}/{record['suite']}"


def _kept(record: dict[str, Any], path: Path) -> dict[str, Any]:
    kept = {name: record[name] for name in KEPT}
    kept["bits_per_weight"] = record["cell"]["bits_per_weight"]
    kept["calibration"] = record["cell"]["calibration"]
    kept["layers"] = {
        layer["name"]: {name: value for name, value in layer.items() if name != "seconds"}
        for layer in record["layers"]
    }
    metrics: dict[str, Any] = {}
    for metric in record["metrics"]:
        if not any(fnmatch.fnmatchcase(metric["name"], each) for each in MEMORY_NAMES):
            _add(metrics, f"{metric['name']} {metric['task']}", _kept_of_metric(metric))
    kept["metrics"] = metrics
    samples = record["samples_file"]
    if samples is not None and not any(_by_the_clock(metric) for metric in record["metrics"]):
        kept["samples"] = _sha256(path.with_name(samples))
    return kept


def _kept_of_metric(metric: dict[str, Any]) -> Any:
    """The whole metric, or only its presence if it depends on the clock."""
    if _by_the_clock(metric):
        return {"unit": metric["unit"]}
    return {name: value for name, value in metric.items() if name not in ("name", "task")}


def _by_the_clock(metric: dict[str, Any]) -> bool:
    named = any(fnmatch.fnmatchcase(metric["name"], pattern) for pattern in CLOCK_NAMES)
    return named or metric["unit"] in CLOCK_UNITS


def _add(found: dict[str, Any], name: str, value: Any) -> None:
    """Store a value under a new name; SystemExit for a name that exists."""
    if name in found:
        raise SystemExit(f"same_figures: {name} exists twice; rename one of them.")
    found[name] = value


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _as_override(products: Sequence[dict[str, Any]]) -> str:
    """A list of products in Hydra's grammar: JSON without quotation marks."""
    return json.dumps(products, separators=(",", ":")).replace('"', "")


def _text(value: Any) -> str:
    return "missing" if value is MISSING else json.dumps(value, sort_keys=True)


def _brief(value: Any) -> str:
    """A value for one line; a record or layer is abbreviated."""
    return "there" if isinstance(value, dict) else _text(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    taking = verbs.add_parser("take", help="run a checkout and write its figures to a file")
    taking.add_argument("out", type=Path)
    taking.add_argument("--checkout", type=Path, default=REPOSITORY, help="this one")
    taking.add_argument("--shared", type=Path, default=REPOSITORY.parent / "shared")
    taking.add_argument("--only", action="append", choices=RUNS, help="not all runs")
    comparing = verbs.add_parser("compare", help="print what differs between two files")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--allow", action="append", default=[], metavar="PATTERN")
    options = parser.parse_args()
    if options.verb == "take":
        found = take(options.checkout, options.shared, options.only or tuple(RUNS))
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{options.out}: figures of {len(found)} records and artifacts")
        return 0
    before, after = (
        json.loads(file.read_text(encoding="utf-8")) for file in (options.before, options.after)
    )
    lines = compare(before, after, options.allow)
    print("\n".join(lines) or f"{len(before)} records and artifacts: no figure differs")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
