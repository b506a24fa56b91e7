"""S4 and A2: `auto` is this machine's device, for both models, and an asked one is used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from conformance.targets import find
from conformance.tree import Absent, Blocked
from conformance.trees import checkpoint
from conformance.trees.asking import Asking, Told, Wrong, bare, filled
from conformance.trees.layouts import CUDA_BACKENDS, Place, place_of

NAMES = ("device", "_device", "device_name", "device_type")
UNSET = "not set by the tree"


def planner_picks_the_device(ask: Asking) -> Told:
    """The language model's handler takes this machine's device for `auto`, and an asked one."""
    handler = place_of(ask.tree, "planner")
    start = _method(handler, {"device", "backend"})
    known = {
        "checkpoint_dir": str(ask.folder / "checkpoints"),
        "lm_model_path": _model(ask),
        "backend": "pt",
    }
    return _picks(ask, handler, start, known, "the language model")


def service_picks_the_device(ask: Asking) -> Told:
    """The music model's handler takes this machine's device for `auto`, and an asked one."""
    handler = place_of(ask.tree, "handler")
    start = _method(handler, {"device", "config_path"})
    known = {"project_root": str(ask.folder), "config_path": _model(ask)}
    return _picks(ask, handler, start, known, "the music model")


def planner_falls_back(ask: Asking) -> Told:
    """Asked for vllm where there is no CUDA, the language model runs otherwise, or refuses."""
    if ask.target.may_use_cuda:
        raise Absent("vllm runs on CUDA")
    handler = place_of(ask.tree, "planner")
    start = _method(handler, {"device", "backend"})
    made = bare(handler.value)
    begin: Callable[..., Any] = getattr(made, start)
    known = {
        "checkpoint_dir": str(checkpoint.make_language_model(ask.folder)),
        "lm_model_path": checkpoint.LANGUAGE,
        "backend": "vllm",
        "device": ask.target.device,
    }
    with ask.questions() as lines:
        try:
            message, ready = begin(**filled(begin, known))
        except Exception as error:  # noqa: BLE001 (whatever it is, the tree raised it)
            told = f"asked for vllm on {ask.target.device}, the language model raised {error!r}"
            raise Wrong(ask.line_of(error) or handler.line, told) from None
    used, line = getattr(made, "llm_backend", None), _line(ask, handler, start)
    first = (str(message).strip().splitlines() or [""])[0]
    if used in CUDA_BACKENDS:
        raise Wrong(lines[-1] if lines else line, f"the language model uses {used} without CUDA")
    if not ready and "vllm" not in str(message).lower():
        raise Blocked(f"needs weights: a tiny language model is not loaded: {first}")
    said = f"runs with {used}" if ready else f"is refused: {first}"
    return Told(line, f"asked for vllm on {ask.target.device}, the language model {said}")


def _picks(ask: Asking, handler: Place, start: str, known: dict[str, Any], who: str) -> Told:
    if not ask.target.simulated and ask.target.device != _best():
        raise Absent(f"auto means {_best()} on this machine, which is judged in its own column")
    for asked in ("auto", ask.target.device):
        made = bare(handler.value)
        if "device" in vars(made):
            made.device = UNSET
        begin: Callable[..., Any] = getattr(made, start)
        given = filled(begin, known | {"device": asked})
        # Loading may fail: there are no weights.
        with ask.questions() as lines, suppress(Exception):
            begin(**given)
        chosen = _device_of(made)
        if chosen is None:
            raise Absent(f"{who}'s handler keeps no device that could be asked for")
        if chosen == UNSET:
            raise Blocked(f"needs weights: {who} chooses its device after it has loaded")
        if chosen != ask.target.device:
            told = f"{who} runs on {chosen} where {asked} is asked and {ask.target.device} is here"
            raise Wrong(lines[0] if lines else handler.line, told)
    place = _line(ask, handler, start)
    return Told(place, f"{who} runs on {ask.target.device} for auto and when asked")


def _model(ask: Asking) -> str:
    """A model to ask for: the one that comes with our own tree, else one that is not there."""
    return "demo" if ask.tree.kin else "acestep-v15-turbo"


def _method(handler: Place, wanted: set[str]) -> str:
    """The method that loads, by the arguments it takes."""
    for name, method in inspect.getmembers(handler.value, callable):
        if name.startswith("_"):
            continue
        try:
            names = set(inspect.signature(method).parameters)
        except (TypeError, ValueError):
            continue
        if wanted <= names:
            return name
    raise Absent(f"{handler.row} has no method that takes {' and '.join(sorted(wanted))}")


def _line(ask: Asking, handler: Place, start: str) -> str:
    function = inspect.unwrap(getattr(handler.value, start))
    code = getattr(function, "__code__", None)
    if code is None:
        return handler.line
    return f"{code.co_filename.removeprefix(f'{ask.tree.root}/')}:{code.co_firstlineno}"


def _device_of(made: Any) -> str | None:
    """The type of the device that a handler says it uses."""
    for name in NAMES:
        value = getattr(made, name, None)
        if isinstance(value, torch.device):
            return str(value.type)
        if isinstance(value, str) and value and value != "auto":
            return value.partition(":")[0]
    return None


def _best() -> str:
    here = find()
    return next(name for name in ("cuda", "mps", "cpu") if here[name].present)
