"""Stands in for libraries that a tree imports and that are not here, as far as that is honest.

Most of what a tree imports decides nothing about devices: a logger, a reader of audio files. An
inert stand-in lets the tree's module be imported, so that it can be asked. Whatever would have
to be decided by the missing library itself is noted, and then the question is blocked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from conformance import tree as trees
from conformance.importing import answered
from conformance.tree import Blocked, Tree

# Without these nothing about a device can be asked at all.
NEVER = frozenset({"torch", "numpy", "gradio"})
_LIMIT = 24


class Missing:
    """The libraries of one run that are not here, and which of them were needed to decide."""

    def __init__(self) -> None:
        self.libraries: dict[str, str] = {}
        self.decided: dict[str, None] = {}

    @contextmanager
    def standing_in(self) -> Iterator[Missing]:
        """Answer the tree's imports of what is missing, within a block; nobody else's."""

        def answer(name: str, wanted: Sequence[str]) -> Inert | None:
            library = name.partition(".")[0]
            if library not in self.libraries:
                return None
            return Inert(self, library, name if wanted else library)

        with answered([trees.PACKAGE], answer):
            _active.append(self)
            try:
                yield self
            finally:
                _active.remove(self)

    def had_a_part_in(self, error: BaseException) -> Blocked | None:
        """What a failure is instead, where a stand-in was asked or stumbled over on the way."""
        named = [name for name in self.libraries if f"{__name__}.{name}" in str(error)]
        needed = list(dict.fromkeys((*self.decided, *named)))
        if not needed:
            return None
        return Blocked(f"needs {', '.join(needed)}, without which it cannot be told", needed[0])


class Inert(ModuleType):
    """Anything of a missing library: can be named, called, decorated with and inherited from."""

    def __init__(self, missing: Missing, library: str, name: str) -> None:
        super().__init__(name)
        self.__dict__.update(_missing=missing, _library=library, __path__=[])

    def _ask(self) -> None:
        own = self.__dict__
        own["_missing"].decided[own["_library"]] = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        own = self.__dict__
        made = Inert(own["_missing"], own["_library"], f"{own['__name__']}.{name}")
        own[name] = made
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and callable(args[0]) and not isinstance(args[0], Inert):
            return args[0]  # a decorator
        own = self.__dict__
        return Inert(own["_missing"], own["_library"], own["__name__"])

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return ()

    def __instancecheck__(self, instance: Any) -> bool:
        return False

    def __enter__(self) -> Inert:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __or__(self, other: Any) -> Any:
        return Any

    __ror__ = __or__

    def __getitem__(self, key: Any) -> Inert:
        return self

    def _reckoned(self, other: Any) -> Inert:
        self._ask()
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _reckoned
    __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = _reckoned

    def __bool__(self) -> bool:
        self._ask()
        return True

    def __iter__(self) -> Iterator[Any]:
        self._ask()
        return iter(())

    def __len__(self) -> int:
        self._ask()
        return 0

    def __float__(self) -> float:
        self._ask()
        return 0.0

    def __int__(self) -> int:
        self._ask()
        return 0


_active: list[Missing] = []


def load(tree: Tree, module: str) -> ModuleType:
    """`tree.load`, with a stand-in for each library that another tree's module misses.

    Raises:
        Absent, ImportFailed: as there.
        Blocked: a library that no stand-in can be used for.
    """
    for _ in range(_LIMIT):
        try:
            return trees.load(tree, module)
        except Blocked as error:
            known = _active[-1].libraries if _active else {}
            if not error.library or error.library in known:
                raise
            if not _active or error.library in NEVER:
                if _active:
                    known[error.library] = str(error)
                raise
            known[error.library] = str(error)
    raise Blocked(f"{module} needs more than {_LIMIT} libraries that are not installed")
