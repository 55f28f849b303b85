"""`bitsweep export` and `bitsweep inspect`: checkpoints written again, and looked into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import ConfigError
from quant.parts import Part, PartError, find_part


def format_readers() -> dict[str, str]:
    """The formats that `export` writes, and who reads each."""
    from quant.checkpoint.choose import written

    return {name: format.readers for name, (format, _) in written().items()}


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
        from quant.checkpoint.inspection import inspect

        found = inspect(folder, _levels(levels))
    scheme = found.scheme
    rows = {
        "format": found.format,
        "producer": found.producer or "not named",
        "scheme": scheme.name + (f", {scheme.scale_dtype} scales" if scheme.kind.scaled else ""),
        "bits per weight": f"{found.bits_per_weight:.3f}",
        "layers": f"{found.layers}, {found.weights:,} weights",
        "act-order": f"{found.scattered} layers with scattered groups",
        "zero-points": found.zero_points,
        **({"operators": found.operators} if found.operators else {}),
        "files": "as artifact.json says"
        if found.verified
        else "no artifact.json to check them with",
    }
    if found.mean_offset is not None:
        # Weights lie around 0, so a version read as the other is off by one code.
        said = f"{found.mean_offset:+.3f} (near 0 when zero-points are read right)"
        rows["mean code - zero"] = said
    if found.zeros_of_0 is not None:
        rows["zero-points of 0"] = found.zeros_of_0
    for name, value in rows.items():
        print(f"{name + ':':18} {value}")


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
