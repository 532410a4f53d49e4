"""Measure the packages as a house: rooms, arrows between them, chains of imports, sizes.

    python -m scripts.measure_layout

Prints one table; `tests/test_layout.py` holds the marks that a test can hold.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[1]
PACKAGES = ("indexes", "cit_curate", "cit_train")
# The rooms from the lowest to the highest: a module imports from its own room and from lower ones.
# A room within a room belongs to it. A module that stands alone in the list is a room of its own.
ORDER = (
    "indexes",
    "cit_curate",
    "cit_curate.storage",
    "cit_curate.engines",
    "cit_curate.images",
    "cit_curate.sources",
    "cit_curate.metadata",
    "cit_curate.text_encoder",
    "cit_curate.pool",
    "cit_curate.run",
    "cit_curate.curation",
    "cit_train",
    "cit_train.models",
    "cit_train.evaluation",
    "cit_train.ranks",
    "cit_train.streaming",
    "cit_train.inner_loop",
    "cit_train.loop",
    "cit_train.outer_loop",
    "cit_train.launch",
    "cit_train.studies",
    "cit_train.demo",
    "cit_train.hub",
    "cit_train.doctor_command",
    "cit_train.train_command",
    "cit_train.cli",
)
MAX_ATTRIBUTES, MAX_PARAMETERS = 12, 8

T = TypeVar("T", bound=ast.AST)


@dataclass(frozen=True)
class Import:
    """One module of ours that another one imports; `is_late`: inside a function."""

    module: str
    imported: str
    is_late: bool


class Layout:
    """The modules of the packages, and what they import of each other."""

    def __init__(self, root: Path = ROOT) -> None:
        paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
        self.root = root
        self.paths = {_module(path.relative_to(root)): path for path in sorted(paths)}
        self.trees = {
            module: ast.parse(path.read_text(encoding="utf-8"))
            for module, path in self.paths.items()
        }

    @cached_property
    def imports(self) -> list[Import]:
        """Every import of one of our modules by another, those for types alone left out."""
        return [
            Import(module, imported, is_late)
            for module, tree in self.trees.items()
            for name, is_late in _imported(tree)
            if (imported := self._ours(name)) is not None and imported != module
        ]

    def _ours(self, name: str) -> str | None:
        """The module that an imported name is, or stands in."""
        if name in self.paths:
            return name
        outer = name.rpartition(".")[0]
        return outer if outer in self.paths else None

    @property
    def folders(self) -> dict[str, int]:
        """The modules directly in each folder, `__init__` left out."""
        counts: dict[str, int] = {}
        for path in self.paths.values():
            folder = path.parent.relative_to(self.root).as_posix()
            counts[folder] = counts.get(folder, 0) + (path.name != "__init__.py")
        return counts

    def rooms(self, package: str) -> list[str]:
        """The folders directly in a package."""
        found = {name for name in self.folders if name.startswith(f"{package}/")}
        return sorted(name for name in found if name.count("/") == 1)

    @property
    def back_arrows(self) -> list[Import]:
        """Imports from a lower room of a higher one, those inside functions too."""
        return [
            each
            for each in self.imports
            if ORDER.index(room(each.module)) < ORDER.index(room(each.imported))
        ]

    @cached_property
    def longest_chain(self) -> list[str]:
        """The longest chain of imports at module level.

        Raises:
            ValueError: Imports go round in a circle; the message names it.
        """
        below: dict[str, list[str]] = {module: [] for module in self.paths}
        for each in self.imports:
            if not each.is_late:
                below[each.module].append(each.imported)
        open_modules: list[str] = []

        @cache
        def chain(module: str) -> list[str]:
            if module in open_modules:
                raise ValueError(f"a circle of imports: {' -> '.join([*open_modules, module])}")
            open_modules.append(module)
            longest: list[str] = max((chain(each) for each in below[module]), key=len, default=[])
            open_modules.pop()
            return [module, *longest]

        return max((chain(module) for module in self.paths), key=len)

    @property
    def large_classes(self) -> list[str]:
        """Classes with more than `MAX_ATTRIBUTES` attributes, but for configs."""
        return [
            f"{module}.{node.name} ({count})"
            for module, node in self._nodes(ast.ClassDef)
            if not module.endswith(".config") and (count := _attributes(node)) > MAX_ATTRIBUTES
        ]

    @property
    def large_functions(self) -> list[str]:
        """Functions with more than `MAX_PARAMETERS` parameters, but for those of commands."""
        return [
            f"{module}.{node.name} ({count})"
            for module, node in self._nodes(ast.FunctionDef)
            if "command" not in module.rpartition(".")[2]
            and (count := _parameters(node)) > MAX_PARAMETERS
        ]

    def _nodes(self, kind: type[T]) -> Iterator[tuple[str, T]]:
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, kind):
                    yield module, node

    @property
    def num_lines(self) -> int:
        """Lines of the packages and of `scripts/`."""
        paths = [*self.paths.values(), *(self.root / "scripts").rglob("*.py")]
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def room(module: str) -> str:
    """The entry of `ORDER` that a module belongs to."""
    while module not in ORDER:
        module = module.rpartition(".")[0]
    return module


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(node: ast.AST, *, is_late: bool = False) -> Iterator[tuple[str, bool]]:
    """The full names that a module imports, and whether a function does."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, is_late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((f"{child.module}.{alias.name}", is_late) for alias in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _imported(child, is_late=is_late or isinstance(child, ast.FunctionDef))


def _attributes(node: ast.ClassDef) -> int:
    fields = {ast.unparse(n.target) for n in node.body if isinstance(n, ast.AnnAssign)}
    stored = {
        n.attr
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute)
        and isinstance(n.ctx, ast.Store)
        and ast.unparse(n.value) == "self"
    }
    return len(fields | stored)


def _parameters(node: ast.FunctionDef) -> int:
    arguments = node.args
    names = [each.arg for each in (*arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def main() -> None:
    """Print the table."""
    layout = Layout()
    fullest = max(layout.folders, key=lambda folder: layout.folders[folder])
    rooms = " + ".join(str(len(layout.rooms(package))) for package in PACKAGES[1:])
    rows = [
        ("modules in the fullest folder", f"{layout.folders[fullest]} ({fullest})"),
        ("rooms per package", rooms),
        ("arrows from a lower room to a higher one", str(len(layout.back_arrows))),
        ("longest import chain (no circle)", str(len(layout.longest_chain))),
        ("lines in the packages and scripts/", f"{layout.num_lines:,}"),
        (f"classes with more than {MAX_ATTRIBUTES} attributes", ", ".join(layout.large_classes)),
        (
            f"functions with more than {MAX_PARAMETERS} parameters",
            ", ".join(layout.large_functions),
        ),
    ]
    for name, value in rows:
        print(f"{name:45} {value or 0}")


if __name__ == "__main__":
    main()
