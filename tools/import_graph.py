"""Which module imports which, read from the source, for tests and the architecture's picture.

Late imports count like those at the top of a file. A module is named as Python imports it, a
package by its own name alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


def statements(tree: ast.AST, types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, late ones too; without `types` not those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in [*node.orelse, *(node.body if types else [])]:
                yield from statements(ast.Module([other], []), types)
        else:
            yield from statements(node, types)


def imported_modules(
    module: str, source: str, modules: Mapping[str, Path], types: bool
) -> dict[str, int]:
    """Those of `modules` that one of them imports, each with the line that does so first."""
    package = module if modules[module].name == "__init__.py" else module.rpartition(".")[0]
    found: dict[str, int] = {}
    for node in statements(ast.parse(source), types):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parts if node.level else []), *filter(None, [node.module])])
            whole = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in whole]
        for name in names:
            if name in modules and name != module:
                found.setdefault(name, node.lineno)
    return found


def module_graph(
    root: Path, packages: Sequence[str], types: bool = False
) -> dict[str, dict[str, int]]:
    """Every module of the packages with the modules that it imports, for types alone if asked."""
    modules = {}
    for path in sorted(file for package in packages for file in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {
        name: imported_modules(name, path.read_text(encoding="utf-8"), modules, types)
        for name, path in modules.items()
    }
