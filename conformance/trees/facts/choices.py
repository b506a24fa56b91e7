"""S3 and S5: what the command line and the page offer, and what they begin with."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conformance.tree import Absent, Blocked, ImportFailed
from conformance.trees.asking import Asking, Told, Wrong, bare, filled
from conformance.trees.layouts import CUDA_BACKENDS, Place, of_devices, place_of
from conformance.trees.sources import call_at, decided_at, keyword

KNOWN_BACKENDS = CUDA_BACKENDS | {"pt", "mlx", "auto", "hf", "transformers", "cpp"}


@dataclass(frozen=True)
class Offer:
    """One choice that a tree offers: its values, its first one, and where it stands."""

    choices: tuple[str, ...]
    first: str
    file: Path
    line: int
    call: str

    def offered_at(self, root: Path) -> str:
        """`file:line` of the list of choices."""
        call = call_at(self.file, self.line, self.call)
        value = keyword(call, "choices") if call is not None else None
        return f"{self.file.relative_to(root)}:{value.lineno if value is not None else self.line}"

    def begun_at(self, root: Path) -> str:
        """`file:line` of what decides the first value."""
        call = call_at(self.file, self.line, self.call)
        name = "value" if self.call != "add_argument" else "default"
        value = keyword(call, name) if call is not None else None
        line = self.line if value is None else decided_at(self.file, value)
        return f"{self.file.relative_to(root)}:{line}"


def command_offers_mps(ask: Asking) -> Told:
    """The command line's choice of devices holds mps."""
    return _offers_mps(ask, command_offers(ask), "the command line")


def page_offers_mps(ask: Asking) -> Told:
    """The page's choice of devices holds mps."""
    return _offers_mps(ask, page_offers(ask, "device dropdown"), "the page")


def command_backend(ask: Asking) -> Told:
    """The command line begins with a backend that runs here."""
    return _begins_right(ask, command_offers(ask), "the command line")


def page_backend(ask: Asking) -> Told:
    """The page begins with a backend that runs here."""
    return _begins_right(ask, page_offers(ask, "backend dropdown"), "the page")


def _offers_mps(ask: Asking, offers: list[Offer], who: str) -> Told:
    found = [offer for offer in offers if of_devices(offer.choices)]
    if not found:
        raise Absent(f"{who} offers no choice of devices")
    for offer in found:
        listed = ", ".join(offer.choices)
        if "mps" not in offer.choices:
            raise Wrong(offer.offered_at(ask.tree.root), f"{who} offers {listed}: no mps")
    return Told(found[0].offered_at(ask.tree.root), f"{who} offers {', '.join(found[0].choices)}")


def _begins_right(ask: Asking, offers: list[Offer], who: str) -> Told:
    found = [offer for offer in offers if _of_backends(offer)]
    if not found:
        raise Absent(f"{who} offers no backend")
    offer = found[0]
    where = offer.begun_at(ask.tree.root)
    if ask.target.may_use_cuda or offer.first not in CUDA_BACKENDS:
        return Told(where, f"{who} begins with {offer.first or 'none'} on {ask.target.device}")
    if ask.target.device == "cpu" and (mac := _first_on_a_mac(ask, who)) not in CUDA_BACKENDS:
        # That it falls back on this machine is a case of its own.
        return Told(where, f"{who} begins with {mac} on a Mac, and with {offer.first} here")
    raise Wrong(where, f"{who} begins with {offer.first}, which needs CUDA")


def _first_on_a_mac(ask: Asking, who: str) -> str:
    """What a machine with an Apple GPU begins with: whether the tree asks the machine at all."""
    from conformance.targets import find
    from conformance.tree import forget

    mac = find()["mps-sim"]
    if not mac.present:
        return "vllm"
    forget()
    try:
        with mac.activate(packages=("acestep",)):
            there = Asking(ask.tree, mac, ask.folder)
            offers = (
                command_offers(there)
                if who == "the command line"
                else page_offers(there, "backend dropdown")
            )
    finally:
        forget()
    return next((offer.first for offer in offers if _of_backends(offer)), "vllm")


def _of_backends(offer: Offer) -> bool:
    return bool(offer.choices) and set(offer.choices) <= KNOWN_BACKENDS


class _Parsed(BaseException):
    """Ends a program where it would read its arguments."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def command_offers(ask: Asking) -> list[Offer]:
    """Every option with choices of the tree's program, as it stands when arguments are read.

    Raises:
        Absent: the tree has no program with a device option, or it never reads arguments.
    """
    command, made = place_of(ask.tree, "command"), list[tuple[Any, Path, int]]()
    plain = argparse._ActionsContainer.add_argument

    def add_argument(self: Any, *args: Any, **kwargs: Any) -> Any:
        action = plain(self, *args, **kwargs)
        if line := ask.line(sys._getframe(1)):
            file, _, number = line.rpartition(":")
            made.append((action, ask.tree.root / file, int(number)))
        return action

    def parse(self: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise _Parsed(self)

    program = _program(command)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(argparse._ActionsContainer, "add_argument", add_argument)
        for name in ("parse_args", "parse_known_args"):
            patch.setattr(argparse.ArgumentParser, name, parse)
        patch.setattr(sys, "argv", ["acestep"])
        try:
            with ask.questions():
                program(**filled(program, {"argv": []}))
        except _Parsed:
            pass
        except SystemExit:
            raise Absent("the command line ends before it reads its arguments") from None
    return [
        Offer(tuple(map(str, a.choices)), str(a.default or ""), file, line, "add_argument")
        for a, file, line in made
        if a.choices is not None and not isinstance(a.choices, dict)
    ]


def _program(command: Place) -> Any:
    """`main` of the module that the option stands in, or the function itself."""
    module = sys.modules[f"acestep.{command.row.partition(':')[0]}"]
    return getattr(module, "main", command.value)


def page_offers(ask: Asking, thing: str) -> list[Offer]:
    """Every choice with values of the part of the page that holds a thing.

    What was offered before the page fails to be made counts: a tree may be older than the
    gradio that is installed.

    Raises:
        Absent: the tree has no page.
        Blocked: gradio is missing, or the page offers nothing before it fails.
    """
    if importlib.util.find_spec("gradio") is None:
        place_of(ask.tree, thing)  # absent, if there is no page at all
        raise Blocked("needs gradio", "gradio")
    part = place_of(ask.tree, thing)
    gradio: Any = importlib.import_module("gradio")
    made: list[Offer] = []
    problem: Exception | None = None
    with pytest.MonkeyPatch.context() as patch, ask.questions():
        for kind in ("Dropdown", "Radio"):
            patch.setattr(getattr(gradio, kind), "__init__", _watched(ask, gradio, kind, made))
        try:
            asyncio.run(_make(ask, gradio, part.value))
        except Exception as error:  # noqa: BLE001 (whatever it is, the tree raised it)
            problem = error
    if problem is not None and not made:
        raise Blocked(
            f"the page cannot be made with gradio {gradio.__version__}: "
            f"{type(problem).__name__}: {problem} ({ask.line_of(problem)})"
        )
    return made


def _watched(ask: Asking, gradio: Any, kind: str, made: list[Offer]) -> Any:
    plain = getattr(gradio, kind).__init__

    def init(self: Any, choices: Any = None, *args: Any, **kwargs: Any) -> None:
        line = ask.line(sys._getframe(1))
        if line and choices:
            file, _, number = line.rpartition(":")
            values = tuple(str(c[1] if isinstance(c, tuple | list) else c) for c in choices)
            first = str(kwargs.get("value") or "")
            made.append(Offer(values, first, ask.tree.root / file, int(number), kind))
        plain(self, choices, *args, **kwargs)

    return init


async def _make(ask: Asking, gradio: Any, part: Any) -> None:
    """The part of the page, made within a loop: without one, gradio makes loops it never ends."""
    handler, planner = _made(ask, "handler"), _made(ask, "planner")
    known = {
        "dit_handler": handler,
        "handler": handler,
        "llm_handler": planner,
        "llm": planner,
        "init_params": None,
        "language": "en",
    }
    with gradio.Blocks(analytics_enabled=False):
        part(**filled(part, known))


def _made(ask: Asking, thing: str) -> Any:
    try:
        return bare(place_of(ask.tree, thing).value)
    except (Absent, ImportFailed):
        return None
