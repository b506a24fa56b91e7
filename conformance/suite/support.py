"""What the cases share: the tree's names, small requests, and comparisons."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from conformance.targets import Target, find
from conformance.tree import Tree, attribute, load
from conformance.trees.asking import returns_of

SAMPLE_RATE = 48000
SECONDS = 0.5
"""Length of the songs that cases make: the shortest a request may ask for."""

STEPS = 2


class Api:
    """Public names of the tree under test, looked up when they are needed."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def get(self, row: str, *, optional: str | None = None) -> Any:
        """The object behind `module:name`.

        Raises:
            Absent: the tree does not have it.
            ImportFailed: its module cannot be imported.
        """
        module, _, dotted = row.partition(":")
        return attribute(load(self.tree, module, optional=optional), dotted)

    def decided_at(self, call: Callable[[], Any]) -> str:
        """Where the tree decided what a call returns: its returns, from the innermost out.

        Made for messages of failures: the call is made once more, under a trace.
        """
        places, error = returns_of(self.tree, call)
        if error is not None:
            places.append(f"raised {type(error).__name__}")
        return f"decided at {' < '.join(dict.fromkeys(places))}"

    def moved_at(self, call: Callable[[], Any], where: str) -> str:
        """Where the tree moves modules to a device while a call is made once more."""
        package, places, plain = f"{self.tree.package}/", list[str](), torch.nn.Module.to

        def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            named = [str(value).partition(":")[0] for value in (*args, *kwargs.values())]
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and not frame.f_code.co_filename.startswith(package):
                frame = frame.f_back
            if where in named and frame is not None:
                file = Path(frame.f_code.co_filename).relative_to(self.tree.root)
                places.append(f"{file}:{frame.f_lineno}")
            return plain(module, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.Module, "to", to)
            call()
        return f"moved there at {', '.join(dict.fromkeys(places)) or 'no line of the tree'}"

    def literal(self, values: set[str]) -> str:
        """Where the tree writes exactly these texts as a tuple, list or set."""
        return self._find(
            values,
            lambda node: (
                isinstance(node, ast.Tuple | ast.List | ast.Set)
                and {getattr(part, "value", None) for part in node.elts} == values
            ),
        )

    def option(self, name: str) -> str:
        """Where the tree declares an option of its command line."""
        return self._find(
            {name}, lambda node: isinstance(node, ast.Constant) and node.value == name
        )

    def keyword(self, name: str) -> str:
        """Where the tree passes an argument of this name."""
        return self._find({name}, lambda node: isinstance(node, ast.keyword) and node.arg == name)

    def spelled(self, name: str) -> str:
        """Where the tree writes an attribute of this name, such as `float16`."""
        return self._find(
            {name}, lambda node: isinstance(node, ast.Attribute) and node.attr == name
        )

    def _find(self, words: set[str], wanted: Callable[[Any], bool]) -> str:
        places = []
        for file in sorted(self.tree.package.rglob("*.py")):
            source = file.read_bytes()
            if not all(word.encode() in source for word in words):
                continue
            nodes = [node for node in ast.walk(ast.parse(source)) if wanted(node)]
            shown = file.relative_to(self.tree.root)
            places += [f"{shown}:{getattr(node, 'lineno', 0)}" for node in nodes]
        return f"see {', '.join(places)}" if places else "not found in the sources"


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8, as in the reference results."""

    def decode(self, token_ids: Any, **_: Any) -> str:
        """The text of some token ids."""
        return bytes(int(token) for token in token_ids).decode("utf-8", "replace")


def new_handler(api: Api) -> Any:
    """A handler that can load checkpoints, and has none yet."""
    api.get("handler:AceStepHandler.initialize_service")
    return api.get("handler:AceStepHandler")()


def initialised(api: Api, device: str, **options: Any) -> Any:
    """A handler that has loaded the built-in checkpoint on a device."""
    made = new_handler(api)
    message, ok = made.initialize_service(
        project_root=None, config_path="demo", device=device, **options
    )
    assert ok, message
    return made


def generate(api: Api, handler: Any, llm: Any = None, *, batch: int = 1, **fields: Any) -> Any:
    """Make a small song through the Python API; `fields` are those of `GenerationParams`."""
    params = {"caption": "warm piano", "duration": SECONDS, "inference_steps": STEPS, "seed": 1}
    params["thinking"] = llm is not None
    made = api.get("inference:GenerationParams")(**(params | fields))
    config = api.get("inference:GenerationConfig")(batch_size=batch, use_random_seed=False)
    return api.get("inference:generate_music")(handler, llm, made, config)


def song(result: Any) -> torch.Tensor:
    """The first song of a result, checked to be one: stereo, finite, not silent."""
    assert result.success, result.error
    audio: torch.Tensor = result.audios[0]["tensor"]
    assert audio.ndim == 2
    assert audio.shape[0] == 2
    assert torch.isfinite(audio).all()
    assert audio.abs().max() > 0.01
    return audio


def tone(seconds: float, seed: int = 0) -> torch.Tensor:
    """Stereo audio with some life in it, `[2, samples]` at 48 kHz."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = 0.3 * torch.sin(2 * torch.pi * 220 * time)
    return torch.stack([wave, wave.roll(7)]) + 0.01 * torch.randn(2, len(time), generator=generator)


def placed(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer of a module by name."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def transformer_weights(made: Any) -> dict[str, torch.Tensor]:
    """What a handler's transformer computes with, on the host, by names that its engine gives."""
    if made.pipeline is not None:
        return {k: v.cpu() for k, v in made.pipeline.transformer.state_dict().items()}
    from mlx.utils import tree_flatten

    held = tree_flatten(made.engine.parts.transformer.parameters())
    with made.engine.working():
        return {name: made.engine.host(value).clone() for name, value in held}


def torch_engine(target: Target) -> dict[str, Any]:
    """Options of `initialize_service` for torch's engine, where the target's is another."""
    return {} if target.engine == "torch" else {"engine": "torch"}


def backends(target: Target) -> tuple[str, ...]:
    """The language model's engines that may be what a target begins with."""
    if target.engine == "mlx":
        return ("mlx",)
    return ("pt", "vllm") if target.device == "cuda" else ("pt",)


def absent_device(target: Target) -> str:
    """An accelerator that is not there while a target is judged."""
    if target.device == "mps":
        return "cuda"
    return "cuda" if find()["mps"].present else "mps"
