"""The tree under test: where its `acestep` is, and that no other `acestep` gets in its way."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "acestep"


class TreeError(ValueError):
    """The path holds no `acestep` package; the message is one line."""


class Absent(Exception):  # noqa: N818 (an outcome, not a mistake)
    """The tree under test does not have what a case is about."""


class ImportFailed(Exception):  # noqa: N818
    """A module of the tree is there but cannot be imported; the message says what is missing."""


class Blocked(ImportFailed):
    """Something that does not come with the tree is missing: a library, or weights.

    Attributes:
        library: the import name of the missing library, or empty.
    """

    def __init__(self, message: str, library: str = "") -> None:
        super().__init__(message)
        self.library = library


@dataclass(frozen=True)
class Tree:
    """A checkout or installation that holds the package.

    Attributes:
        root: the folder that holds `acestep`.
        own: whether it is the `acestep` that comes with this suite.
        origin: where it was copied from, if `root` is a copy.
    """

    root: Path
    own: bool
    origin: Path | None = None

    @property
    def package(self) -> Path:
        """The folder of the package itself."""
        return self.root / PACKAGE

    @property
    def shown(self) -> Path:
        """The path that people know it by."""
        return self.origin or self.root

    @property
    def kin(self) -> bool:
        """Whether it has this repository's own surface, which most cases of the suite are about."""
        return self.own or self.has_module(f"{PACKAGE}.device.choosing")

    def files(self) -> list[Path]:
        """The package's Python files, without its tests and what it carries of other projects."""
        return [f for f in sorted(self.package.rglob("*.py")) if not _is_beside(f, self.package)]

    def module_names(self) -> list[str]:
        """Full names of all public modules of the package, by their files."""
        names = []
        for file in self.files():
            parts = file.relative_to(self.root).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if all(part.isidentifier() and not part.startswith("_") for part in parts):
                names.append(".".join(parts))
        return names

    def has_module(self, name: str) -> bool:
        """Whether the tree has a file or folder for a module of this full name."""
        path = self.root.joinpath(*name.split("."))
        return path.with_suffix(".py").is_file() or path.is_dir()


_OTHERS = frozenset({"third_parts", "third_party", "vendor", "tests", "test", "node_modules"})


def _is_beside(file: Path, package: Path) -> bool:
    """Whether a file is a test, or another project's."""
    stem = file.stem
    test = stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"
    return test or bool(_OTHERS.intersection(file.relative_to(package).parts[:-1]))


def locate(path: str | Path | None) -> Tree:
    """The tree at a path (its root, or the package's folder), or the one beside this suite.

    Raises:
        TreeError: there is no package there.
    """
    beside = Path(__file__).resolve().parent.parent
    if path is None:
        if (beside / PACKAGE).is_dir():
            return Tree(beside, own=True)
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise TreeError("no acestep is installed; name a checkout with --tree=PATH")
        return Tree(Path(next(iter(spec.submodule_search_locations))).resolve().parent, own=False)
    root = Path(path).expanduser().resolve()
    for candidate in (root, root / "src", root.parent if root.name == PACKAGE else root):
        if (candidate / PACKAGE).is_dir():
            return Tree(candidate, own=candidate == beside)
    raise TreeError(f"--tree={path}: no folder '{PACKAGE}' in it; give the root of a checkout")


class TreeFinder:
    """Answers for `acestep` before anything else does, from one tree only.

    Installed copies, editable installs and the current folder are not asked, also where the
    tree lacks a module, and also where its package has no `__init__.py`.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of the tree, None for other packages.

        Raises:
            ModuleNotFoundError: the tree has no such module.
        """
        if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
            return None
        within = [str(self.tree.root)] if name == PACKAGE else path
        spec = PathFinder.find_spec(name, within, target)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r} in {self.tree.root}", name=name)
        return spec


def forget() -> None:
    """Forget every module of `acestep` that this process has imported."""
    for name in [n for n in sys.modules if n == PACKAGE or n.startswith(f"{PACKAGE}.")]:
        del sys.modules[name]


def install(tree: Tree) -> None:
    """Make `acestep` mean this tree in this process, whatever was imported before."""
    forget()
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, TreeFinder)]
    finder: Any = TreeFinder(tree)
    sys.meta_path.insert(0, finder)
    importlib.invalidate_caches()


def child_environment(tree: Tree) -> dict[str, str]:
    """Environment in which a child Python finds this tree's package and this suite first."""
    suite = str(Path(__file__).resolve().parent.parent)
    places = [str(tree.root), suite, os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in places if p))}


def load(tree: Tree, name: str, *, optional: str | None = None) -> ModuleType:
    """A module of the tree by its name below `acestep`, for example `handler`.

    Args:
        tree: the tree under test.
        name: the module.
        optional: a library without which the part behind this module is absent.

    Raises:
        Absent: the tree has no such module, or the optional library is not installed.
        Blocked: a library that another tree needs is not installed.
        ImportFailed: it is there and its import fails, or ends the program.
    """
    full = f"{PACKAGE}.{name}"
    if not tree.has_module(full):
        raise Absent(f"the tree has no {full}")
    try:
        with warnings.catch_warnings():
            if not tree.kin:
                # Deprecations and odd escapes of another tree's sources are its own affair.
                warnings.simplefilter("ignore")
            return importlib.import_module(full)
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        library = missing.partition(".")[0]
        if optional is not None and library == optional:
            raise Absent(f"{full} needs {optional}, which is not installed") from None
        told = f"import of {full} failed: no module named '{missing}'"
        if library != PACKAGE and not tree.kin:
            raise Blocked(f"needs {library}: {told}", library) from error
        raise ImportFailed(told + chain(tree, error)) from error
    except SystemExit as error:
        told = f"import of {full} failed: it ends the program ({error})"
        raise ImportFailed(told + chain(tree, error)) from error
    except Exception as error:  # the tree's own code runs here, and may raise anything
        library = "" if tree.kin else _library_behind(tree, error)
        if library:
            told = f"{library}, as it is installed here, cannot be used by {full}"
            raise Blocked(
                f"{told}: {type(error).__name__}: {first_line(error)}", library
            ) from error
        raise ImportFailed(
            f"import of {full} failed: {type(error).__name__}: {first_line(error)}"
            + chain(tree, error)
        ) from error


def _library_behind(tree: Tree, error: BaseException) -> str:
    """The library that fails by itself, or lacks a name, where no line of the tree is wrong."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in ("", PACKAGE):
        return str(error.name).partition(".")[0]
    package, trace, found = f"{tree.package}/", error.__traceback__, ""
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        if trace.tb_frame.f_code.co_filename.startswith(package):
            found = ""
        elif not found and not name.startswith(("importlib", "conformance", PACKAGE)):
            found = name.partition(".")[0]
        trace = trace.tb_next
    return "" if found in sys.stdlib_module_names else found


def chain(tree: Tree, error: BaseException) -> str:
    """The tree's own lines that led to a failed import, from the failing one outwards."""
    if tree.kin:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    package = f"{tree.package}/"
    lines = [
        f"{Path(frame.filename).relative_to(tree.root)}:{frame.lineno}"
        for frame in frames
        if frame.filename.startswith(package)
    ]
    return " at " + " < ".join(reversed(lines)) if lines else ""


def attribute(module: ModuleType, dotted: str) -> Any:
    """A class, function or method of a module.

    Raises:
        Absent: there is no such name.
    """
    value: Any = module
    for part in dotted.split("."):
        if not hasattr(value, part):
            raise Absent(f"{module.__name__} has no {dotted}")
        value = getattr(value, part)
    return value


def loaded_modules(tree: Tree) -> Iterator[ModuleType]:
    """The modules of the tree that this process has imported."""
    for name, module in list(sys.modules.items()):
        if (name == PACKAGE or name.startswith(f"{PACKAGE}.")) and module is not None:
            yield module


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
