"""`bitsweep export` and `bitsweep inspect`: convert and examine checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import ConfigError
from quant.budget import AnyScheme, Budget
from quant.parts import Part, PartError, find_part


def format_readers() -> dict[str, str]:
    """The formats that `export` writes, with the tools that read them."""
    from quant.checkpoint.choose import exported

    return {name: format.readers for name, format in exported().items()}


def export_to(
    artifact: Path,
    out: Path,
    format: str,
    overwrite: bool = False,
    levels: str | None = None,
    trust: bool = False,
) -> None:
    """Export and print what was written; ConfigError if it is not possible."""
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
            on_note=lambda note: print(f"note: {note}", flush=True),
        )
    size = out.stat().st_size
    if out.is_dir():
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    checksums = ", checksums included" if out.is_dir() else ""
    print(f"{out}: {done.layers} quantized layers in {format}, {size:,} bytes{checksums}")


def inspect(folder: Path, levels: str | None = None) -> None:
    """Check every tensor of a checkpoint; print format, producer, scheme and zero-points.

    Of a GGUF file print the types of its tensors, their bits per weight, and whether it is read.
    """
    _quiet()
    from quant.checkpoint.gguf.file import SUFFIX

    if folder.suffix == SUFFIX and folder.is_file():
        _inspect_gguf(folder)
        return
    with _sentences():
        from quant.checkpoint.inspection import inspect

        found = inspect(folder, _levels(levels))
    scheme = found.scheme
    rows = {
        "format": found.format,
        "producer": found.producer or "not named",
        "scheme": _named(scheme),
        **({"schemes": found.mixture} if found.mixture else {}),
        **({"forms": found.forms} if found.forms else {}),
        "bits per weight": f"{found.bits_per_weight:.3f}",
        "layers": f"{found.layers}, {found.weights:,} weights",
        **({} if found.forms else {"act-order": f"{found.scattered} layers with scattered groups"}),
        "zero-points": found.zero_points,
        **({"operators": found.operators} if found.operators else {}),
        "files": "as artifact.json says"
        if found.verified
        else "no artifact.json to check them with",
    }
    if found.mean_offset is not None:
        # Weights are centred on 0; a version read as the other is off by one code.
        said = f"{found.mean_offset:+.3f} (near 0 when zero-points are read right)"
        rows["mean code - zero"] = said
    if found.zeros_of_0 is not None:
        rows["zero-points of 0"] = found.zeros_of_0
    for name, value in rows.items():
        print(f"{name + ':':18} {value}")


def _named(scheme: AnyScheme) -> str:
    if isinstance(scheme, Budget):
        return f"{scheme.name}, the most bits per weight of a layer"
    return scheme.name + (f", {scheme.scale_dtype} scales" if scheme.kind.scaled else "")


def _inspect_gguf(path: Path) -> None:
    with _sentences():
        from quant.checkpoint.gguf.describe import describe

        found = describe(path)
    weights = sum(kind.weights for kind in found.kinds.values())
    rows = {
        "format": f"GGUF, architecture {found.architecture or 'not named'}",
        "name": found.name or "not named",
        "tokenizer": found.tokenizer,
        "bits per weight": f"{found.bits_per_weight:.3f}",
        "tensors": f"{sum(kind.tensors for kind in found.kinds.values()):,}, {weights:,} weights",
        "file": f"{found.file_bytes:,} bytes",
    }
    for name, value in rows.items():
        print(f"{name + ':':18} {value}")
    print(f"\n{'type':9} {'tensors':>8} {'weights':>16} {'bytes':>16} {'bits/weight':>12}")
    for name, kind in found.kinds.items():
        print(
            f"{name:9} {kind.tensors:8,} {kind.weights:16,} {kind.bytes:16,} "
            f"{kind.bits_per_weight:12.4f}"
        )
    for key in found.not_understood:
        print(f"note: {key} is not understood and not read")
    if found.refused is not None:
        print(f"note: it cannot be run: {found.refused}")


def _levels(module: str | None) -> tuple[Part, ...]:
    """The named module of levels; a file is imported from its folder."""
    if module is None:
        return ()
    file = Path(module)
    try:
        found = find_part(file.stem, [file.parent]) if file.is_file() else find_part(module)
    except PartError as error:
        raise ConfigError(f"--levels: {error}") from error
    return (found,)


@contextmanager
def _sentences() -> Iterator[None]:
    """Context: turn errors of quant into ConfigErrors."""
    from quant.errors import ArtifactError, SchemeError

    try:
        yield
    except (ArtifactError, SchemeError) as error:  # a module may have invalid LEVELS
        raise ConfigError(str(error)) from error


def _quiet() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
