"""A1 and A3: a song from end to end on the device, out of a tiny checkpoint of the tree's own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from conformance.tree import Absent, Blocked, attribute
from conformance.trees import checkpoint
from conformance.trees.asking import Asking, Told, Wrong, bare, filled
from conformance.trees.layouts import Place, place_of
from conformance.trees.missing import load

SECONDS, STEPS = 10.0, 2


def made_from_end_to_end(ask: Asking) -> Told:
    """The tree loads a checkpoint onto the device and makes a song that can be heard."""
    handler_place, generate = place_of(ask.tree, "handler"), _generate(ask)
    checkpoints = checkpoint.make(ask.tree, ask.folder)
    handler = _service(ask, handler_place, checkpoints)
    result = _song(ask, handler, generate)
    audio = _audio(result)
    if audio is None:
        raise Wrong(generate.line, f"no song: {_reason(result)}")
    if not torch.isfinite(audio).all() or float(audio.abs().max()) == 0:
        raise Wrong(generate.line, f"on {ask.target.device} the song is not finite, or silent")
    seconds = audio.shape[-1] / 48000
    return Told(generate.line, f"{seconds:.1f} s of song on {ask.target.device}")


def _generate(ask: Asking) -> Place:
    return Place("inference:generate_music", *_function(ask))


def _function(ask: Asking) -> tuple[Any, str]:
    value = attribute(load(ask.tree, "inference"), "generate_music")
    code = inspect.unwrap(value).__code__
    return value, f"{code.co_filename.removeprefix(f'{ask.tree.root}/')}:{code.co_firstlineno}"


def _service(ask: Asking, place: Place, checkpoints: Path) -> Any:
    """A handler that has loaded the checkpoint on the device.

    Raises:
        Wrong: it could not.
    """
    handler = bare(place.value)
    known = {
        "project_root": str(checkpoints.parent),
        "config_path": checkpoint.MUSIC,
        "device": ask.target.device,
        "use_mlx_dit": False,
    }
    # Older trees look beside their own package, whatever they are told.
    beside = ask.tree.root / "checkpoints"
    if not beside.exists():
        beside.symlink_to(checkpoints, target_is_directory=True)
    try:
        with ask.questions():
            message, ready = handler.initialize_service(**filled(handler.initialize_service, known))
    except Exception as error:
        told = f"no service: {type(error).__name__}: {error}"
        raise Wrong(ask.line_of(error) or place.line, told) from error
    finally:
        if beside.is_symlink():
            beside.unlink()
    if not ready:
        raise Wrong(_line_in(ask, message) or place.line, f"no service: {_last(message)}")
    return handler


def _song(ask: Asking, handler: Any, generate: Place) -> Any:
    module = load(ask.tree, "inference")
    params = attribute(module, "GenerationParams")
    config = attribute(module, "GenerationConfig")
    wishes = {
        "caption": "warm piano",
        "lyrics": "[instrumental]",
        "instrumental": True,
        "duration": SECONDS,
        "inference_steps": STEPS,
        "seed": 1,
        "thinking": False,
        "use_cot_metas": False,
        "use_cot_caption": False,
        "use_cot_language": False,
        "use_cot_lyrics": False,
        "bpm": 90,
    }
    known = {
        "dit_handler": handler,
        "handler": handler,
        "llm_handler": _planner(ask),
        "params": params(**_of(params, wishes)),
        "config": config(**_of(config, {"batch_size": 1, "use_random_seed": False, "seeds": [1]})),
        "save_dir": None,
    }
    try:
        with ask.questions():
            return generate.value(**filled(generate.value, known))
    except Exception as error:
        told = f"no song: {type(error).__name__}: {error}"
        raise Wrong(ask.line_of(error) or generate.line, told) from error


def _planner(ask: Asking) -> Any:
    try:
        return bare(place_of(ask.tree, "planner").value)
    except (Absent, Blocked):
        return None


def _of(cls: Any, wishes: dict[str, Any]) -> dict[str, Any]:
    known = getattr(cls, "__dataclass_fields__", None)
    return {k: v for k, v in wishes.items() if known is None or k in known}


def _audio(result: Any) -> torch.Tensor | None:
    for one in getattr(result, "audios", None) or ():
        value = one.get("tensor") if isinstance(one, dict) else None
        if isinstance(value, torch.Tensor) and value.numel():
            return value.detach().float().cpu()
    return None


def _reason(result: Any) -> str:
    return _last(str(getattr(result, "error", None) or getattr(result, "status_message", "")))


def _last(text: str) -> str:
    """The first line of a message, or the exception that its traceback ends in."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return (lines or ["no reason is told"])[0]


def _line_in(ask: Asking, text: str) -> str:
    """The tree's innermost line in a traceback that a message holds."""
    found = ""
    for line in str(text).splitlines():
        head, quoted, rest = line.strip().partition(f'File "{ask.tree.root}/')
        if quoted and not head:
            file, _, number = rest.partition('", line ')
            found = f"{file}:{number.partition(',')[0]}"
    return found
