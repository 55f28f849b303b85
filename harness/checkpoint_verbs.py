"""`bitsweep export` and `bitsweep inspect`: checkpoints written again, and looked into."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import ConfigError
from quant.levels import uniform
from quant.parts import Part, PartError, find_part


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` shows how it is used.")


def inspect_parser() -> argparse.ArgumentParser:
    """The arguments of `bitsweep inspect`; wrong ones are a ConfigError."""
    parser = _Parser(
        prog="bitsweep inspect",
        description="Show what a quantized checkpoint holds, whoever made it: format, producer, "
        "scheme and zero-points. Every tensor is read and checked.",
    )
    parser.add_argument("folder", type=Path, help="the folder of a quantized model")
    _add_levels(parser)
    return parser


def _add_levels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--levels",
        metavar="MODULE",
        help="an installed module, or a file with its folder, of levels that are not built in",
    )


def _levels(module: str | None) -> tuple[Part, ...]:
    """The module that was named; a file is one of its folder."""
    if module is None:
        return ()
    file = Path(module)
    try:
        found = find_part(file.stem, [file.parent]) if file.is_file() else find_part(module)
    except PartError as error:
        raise ConfigError(f"--levels: {error}") from error
    return (found,)


def export_parser() -> argparse.ArgumentParser:
    """The arguments of `bitsweep export`; wrong ones are a ConfigError."""
    from quant.checkpoint.choose import written

    readers = {name: format.readers for name, (format, _) in written().items()}
    width = max(map(len, readers))
    parser = _Parser(
        prog="bitsweep export",
        description="Write a quantized model again in a format that other tools load: the same "
        "codes, scales and zero-points. docs/checkpoints.md says which format holds what.",
        epilog="formats, and who reads them:\n"
        + "\n".join(f"  {name:{width}}  {who}" for name, who in readers.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("artifact", type=Path, help="a folder under results/artifacts, or any")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--format", required=True, help="one of those below")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model that Bitsweep wrote to OUT before"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files that come with the model: read them first",
    )
    _add_levels(parser)
    return parser


def export_to(
    artifact: Path,
    out: Path,
    format: str,
    overwrite: bool = False,
    levels: str | None = None,
    trust: bool = False,
) -> None:
    """Export and say what was written; ConfigError, one sentence, for what cannot be."""
    _quiet()
    with _sentences():
        from quant import export

        done = export(
            artifact,
            out,
            format,
            overwrite=overwrite,
            levels=_levels(levels),
            trust_remote_code=trust,
        )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {done.layers} quantized layers in {format}, {size:,} bytes, checksums included")
    for note in done.notes:
        print(f"note: {note}")


def inspect(folder: Path, levels: str | None = None) -> None:
    """Print format, producer, scheme and zero-points of a checkpoint, every tensor checked."""
    _quiet()
    with _sentences():
        from quant.checkpoint import load_weights, read_scheme, verify
        from quant.checkpoint.layers import operator_bits
        from quant.checkpoint.operators import summary
        from quant.checkpoint.tensors import TensorReader

        known = _levels(levels)
        checkpoint, scheme = read_scheme(folder, known)
        checked = verify(folder)
        weights = load_weights(folder, verify_files=False, levels=known)
        with TensorReader(folder) as reader:
            kept = operator_bits(reader, checkpoint)
    figures = _figures(weights.values())
    figures.bits += kept
    rows = {
        "format": checkpoint.name,
        "producer": checkpoint.producer or "not named",
        "scheme": scheme.name + (f", {scheme.scale_dtype} scales" if scheme.kind.scaled else ""),
        "bits per weight": f"{figures.bits / figures.weights:.3f}",
        "layers": f"{len(weights)}, {figures.weights:,} weights",
        "act-order": f"{figures.scattered} layers with scattered groups",
        "zero-points": checkpoint.zero_points,
        **({"operators": summary(checkpoint.operators)} if kept else {}),
        "files": "as artifact.json says" if checked else "no artifact.json to check them with",
    }
    if figures.centre is not None:
        # Weights lie around 0, so a version read as the other is off by one code.
        rows["mean code - zero"] = f"{figures.centre:+.3f} (near 0 when zero-points are read right)"
    if checkpoint.format.zeros_of_0 and figures.wrapped:
        rows["zero-points of 0"] = f"{figures.wrapped}, {checkpoint.format.zeros_of_0}"
    for name, value in rows.items():
        print(f"{name + ':':18} {value}")


@dataclass
class _Figures:
    """Sums over all layers."""

    weights: int = 0
    bits: float = 0.0
    scattered: int = 0
    wrapped: int = 0
    offset: float | None = None

    @property
    def centre(self) -> float | None:
        """Mean of code - zero-point over all weights; None without zero-points."""
        return None if self.offset is None else self.offset / self.weights


def _figures(weights: Any) -> _Figures:
    total = _Figures()
    for weight in weights:
        outputs, inputs = weight.shape
        total.weights += outputs * inputs
        total.bits += weight.scheme.bits_per_weight(inputs) * outputs * inputs
        total.scattered += weight.group_index is not None
        if weight.zero is not None and weight.scheme.kind == uniform.LEVELS:
            zeros = weight.zero[:, weight.column_groups()]
            difference = weight.codes.double().sum() - zeros.double().sum()
            total.offset = (total.offset or 0.0) + float(difference)
            total.wrapped += int((weight.zero == 0).sum())
    return total


@contextmanager
def _sentences() -> Iterator[None]:
    """Errors of quant as errors of the request."""
    from quant.errors import ArtifactError, SchemeError

    try:
        yield
    except (ArtifactError, SchemeError) as error:  # a module of levels may have no right LEVELS
        raise ConfigError(str(error)) from error


def _quiet() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
