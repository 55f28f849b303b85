"""Parts: solvers, transforms and suites, each a module that ends in its spec, imported by name.

There is no registry. A module is imported when the user's configuration names it, from the
installed packages or from the user's folder, and only its spec is used.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

OWN_PACKAGES = ("bitsweep", "harness", "quant", "cuda_ext")
# Modules of a user's folder get a prefix, so that a file random.py does not hide another module.
_PREFIX = "bitsweep_part_"

Spec = TypeVar("Spec")


class PartError(ValueError):
    """A part cannot be loaded: its module is missing, cannot be imported or has no spec."""


@dataclass(frozen=True)
class Part:
    """A reference to a module that ends in a spec; it is pickled by name.

    module  dotted name, as the configuration gives it.
    file    the module's file in a user's folder; None for an installed module.
    sha256  sha256 of the source when the part was found; None for a built-in module, whose spec has
            a version.
    """

    module: str
    file: Path | None = None
    sha256: str | None = None

    @property
    def import_name(self) -> str:
        """Name of the module in sys.modules, unique for every file and content."""
        if self.file is None:
            return self.module
        return _PREFIX + hashlib.sha256(f"{self.file} {self.sha256}".encode()).hexdigest()[:16]

    @property
    def where(self) -> str:
        """The module's name and file, for messages."""
        return self.module if self.file is None else str(self.file)

    def load(self, attribute: str, kind: type[Spec]) -> Spec:
        """Return the spec in `attribute` of the module; PartError if missing or not a `kind`."""
        spec = getattr(self.import_module(), attribute, None)
        if spec is None:
            raise PartError(
                f"{self.where} does not end in a spec: it has no {attribute}; add "
                f"{attribute} = {kind.__name__}(...) at its end."
            )
        if not isinstance(spec, kind):
            raise PartError(
                f"{self.where}: {attribute} is a {type(spec).__name__}, not a {kind.__name__}; "
                f"make it with {kind.__module__}.{kind.__name__}(...)."
            )
        return spec

    def import_module(self) -> ModuleType:
        """Import the module; PartError, with the cause, if that fails.

        A source that has changed since the part was found is refused, because its results would be
        stored under the key of the old source.
        """
        if self.import_name in sys.modules:
            return sys.modules[self.import_name]
        source = _source(self.module) if self.file is None else self.file
        try:
            content = b"" if self.sha256 is None or source is None else source.read_bytes()
        except OSError as error:
            raise PartError(f"{self.where} cannot be read ({error}); put it back.") from error
        if self.sha256 is not None and hashlib.sha256(content).hexdigest() != self.sha256:
            raise PartError(
                f"{self.where} was changed after the run was planned, so figures of the new code "
                "would be stored under the key of the old: run the same command again."
            )
        try:
            if self.file is None:
                return importlib.import_module(self.module)
            return _execute(self.import_name, self.file, content)
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split())
            raise PartError(
                f"{self.where} cannot be imported ({type(error).__name__}: {text}); correct the "
                "module or the name under which the configuration asks for it."
            ) from error


def find_part(module: str, folders: Sequence[Path] = ()) -> Part:
    """Find the part that a configuration names: a file in one of `folders`, or an installed module.

    Modules of Bitsweep's own packages are not looked up in folders. Only the parent packages of the
    module are imported. Raises PartError if there is neither a file nor an installed module.
    """
    if not all(piece.isidentifier() for piece in module.split(".")):
        raise PartError(
            f"{module!r} is not the name of a module; write it with dots, as in quant.solvers.gptq."
        )
    ours = module.partition(".")[0] in OWN_PACKAGES
    relative = Path(*module.split(".")).with_suffix(".py")
    for folder in () if ours else folders:
        if (folder / relative).is_file():
            file = (folder / relative).absolute()
            return Part(module, file, hashlib.sha256(file.read_bytes()).hexdigest())
    source = _source(module)
    if source is None:
        places = "" if ours else "".join(f", nor is {each / relative} a file" for each in folders)
        raise PartError(
            f"there is no module {module}{places}; correct the name, install its package, or put "
            "the file into the folder that --config-dir names."
        )
    return Part(module, None, None if ours else hashlib.sha256(source.read_bytes()).hexdigest())


def _source(module: str) -> Path | None:
    """Return the file of an installed module; None if there is none."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    except (Exception, SystemExit) as error:  # a parent package may raise anything on import
        text = " ".join(str(error).split())
        raise PartError(
            f"the package of {module} cannot be imported ({type(error).__name__}: {text}); "
            "correct it."
        ) from error
    return None if found is None or not found.has_location else Path(str(found.origin))


def _execute(name: str, file: Path, content: bytes) -> ModuleType:
    """Return a module made from exactly this content; cached bytecode is not used."""
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        exec(compile(content, str(file), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module
