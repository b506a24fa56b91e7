"""Watches functions and modules in place, so that every existing reference to them is watched.

A function is watched by exchanging its code object: whoever holds it, under whatever name and
since whenever, calls the watched code. A module is watched by exchanging its class. Both are
undone by putting the same objects back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Called with a copy of the function and the call's arguments; calls it and returns its result."""


def _template(*args: Any, **kwargs: Any) -> Any:
    hook: Any = ...
    return hook(*args, **kwargs)


class FunctionWatch:
    """One Python function whose calls go through `around` while it is on."""

    def __init__(self, function: FunctionType, around: Around) -> None:
        self.function = function
        self.plain = function.__code__
        copy = FunctionType(
            self.plain,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        copy.__kwdefaults__ = function.__kwdefaults__

        def hook(*args: Any, **kwargs: Any) -> Any:
            return around(copy, args, kwargs)

        self.watched = _with_constant(self.plain, hook)

    def on(self) -> None:
        """Watch from now on."""
        self.function.__code__ = self.watched

    def off(self) -> None:
        """Put the function's own code back."""
        self.function.__code__ = self.plain


def _with_constant(plain: CodeType, hook: Callable[..., Any]) -> CodeType:
    """Code that hands its arguments to the hook; closure variables are kept, being counted."""
    template = _template.__code__
    return template.replace(
        co_consts=tuple(hook if constant is ... else constant for constant in template.co_consts),
        co_freevars=plain.co_freevars,
        co_name=plain.co_name,
        co_qualname=plain.co_qualname,
        co_filename=__file__,
    )


def functions_in(value: Any) -> Iterator[FunctionType]:
    """The Python functions behind an attribute: itself, what a decorator wraps, its accessors."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield from functions_in(part)
        return
    while value is not None and not isinstance(value, FunctionType):
        value = getattr(value, "__wrapped__", None)
    if value is not None:
        yield value


class ModuleWatch:
    """One module whose attribute reads are reported while it is on."""

    def __init__(self, module: ModuleType, read: Callable[[ModuleType, str], None]) -> None:
        self.module = module
        self.plain = type(module)
        self.watched = self._class_for(self.plain, read)

    def on(self) -> None:
        """Report reads from now on."""
        self.module.__class__ = self.watched

    def off(self) -> None:
        """Give the module its own class back."""
        self.module.__class__ = self.plain

    @classmethod
    def _class_for(cls, plain: type, read: Callable[[ModuleType, str], None]) -> Any:
        getter: Any = plain.__getattribute__

        def get(module: ModuleType, name: str) -> Any:
            value = getter(module, name)
            if not name.startswith("__"):
                read(module, name)
            return value

        return type(f"Watched{plain.__name__}", (plain,), {"__getattribute__": get})


def shadow(
    plain: type,
    asked: Callable[[tuple[Any, ...]], bool],
    made: Callable[[Any, tuple[Any, ...]], None],
) -> Any:
    """A stand-in for a C type that reports what is constructed through it.

    It constructs real instances, and equals, hashes and tests instances as the type it stands
    for, so that dictionaries keyed by the type and `isinstance` go on working.

    Args:
        plain: the type.
        asked: told the arguments before; returns whether they were enough to report.
        made: told the new instance and the arguments, if they were not.
    """

    class Stand(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            values = (*args, *kwargs.values())
            reported = asked(values)
            instance = plain(*args, **kwargs)
            if not reported:
                made(instance, values)
            return instance

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, plain)

        def __subclasscheck__(cls, other: type) -> bool:
            return other is cls or issubclass(other, plain)

        def __eq__(cls, other: object) -> bool:
            return other is cls or other is plain

        def __hash__(cls) -> int:
            return hash(plain)

        def __getattr__(cls, name: str) -> Any:
            return getattr(plain, name)

    return Stand(
        plain.__name__, (), {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    )
