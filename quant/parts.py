"""Parts: a solver, transform or suite is one module that ends in its spec and is imported by name.

Nothing registers itself. A module is imported when the user's configuration names it, from the
installed packages or from a folder of the user's, and only its spec is used.
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

OWN_PACKAGES = ("quant", "harness", "cuda_ext")
# Modules of a user's folder get names of their own, so that a file random.py hides no other module.
_PREFIX = "bitsweep_part_"

Spec = TypeVar("Spec")


class PartError(ValueError):
    """A part that cannot be had: no such module, or one without its spec."""


@dataclass(frozen=True)
class Part:
    """A reference to a module that ends in a spec; it travels between processes by name.

    module  dotted name, as the configuration gives it.
    file    where the module lies in a user's folder; None for an installed one.
    """

    module: str
    file: Path | None = None

    @property
    def import_name(self) -> str:
        """The name of the module in sys.modules."""
        return self.module if self.file is None else _PREFIX + self.module.replace(".", "_")

    def load(self, attribute: str, kind: type[Spec]) -> Spec:
        """The spec in `attribute` of the module; PartError unless it is there and a `kind`."""
        module = self.import_module()
        where = self.module if self.file is None else str(self.file)
        spec = getattr(module, attribute, None)
        if spec is None:
            raise PartError(
                f"{where} does not end in a spec: it has no {attribute}; add "
                f"{attribute} = {kind.__name__}(...) at its end."
            )
        if not isinstance(spec, kind):
            raise PartError(
                f"{where}: {attribute} is a {type(spec).__name__}, not a {kind.__name__}; make it "
                f"with {kind.__module__}.{kind.__name__}(...)."
            )
        return spec

    def import_module(self) -> ModuleType:
        """Import the module; PartError, with the cause, when that fails."""
        if self.import_name in sys.modules:
            return sys.modules[self.import_name]
        try:
            if self.file is None:
                return importlib.import_module(self.module)
            return _import_file(self.import_name, self.file)
        except Exception as error:
            where = self.module if self.file is None else str(self.file)
            raise PartError(
                f"{where} cannot be imported ({type(error).__name__}: {error}); correct the module "
                "or the name under which the configuration asks for it."
            ) from error

    def code_hash(self) -> str | None:
        """sha256 of the module's source; None for our own, whose specs bear version numbers."""
        if self.file is None and self.module.partition(".")[0] in OWN_PACKAGES:
            return None
        file = self.file or _source(self.module)
        return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def find_part(module: str, folders: Sequence[Path] = ()) -> Part:
    """The part that a configuration names: a file in one of the folders, or an installed module.

    PartError when there is neither. Nothing but the packages above the module is imported.
    """
    if not all(piece.isidentifier() for piece in module.split(".")):
        raise PartError(
            f"{module!r} is not the name of a module; write it with dots, as in quant.solvers.gptq."
        )
    relative = Path(*module.split(".")).with_suffix(".py")
    for folder in folders:
        if (folder / relative).is_file():
            return Part(module, (folder / relative).absolute())
    if _source(module) is None:
        places = "".join(f", nor is {folder / relative} a file" for folder in folders)
        raise PartError(
            f"there is no module {module}{places}; correct the name, install its package, or put "
            "the file into the folder that --config-dir names."
        )
    return Part(module)


def _source(module: str) -> Path | None:
    """The file of an installed module; None when there is none."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return None if found is None or found.origin is None else Path(found.origin)


def _import_file(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
