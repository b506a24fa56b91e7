"""Where trees of each version keep a thing, and how it is recognised when it has moved again."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from conformance.tree import Absent, Tree, attribute
from conformance.trees.missing import load
from conformance.trees.sources import Found, Node, calls, find, keyword, texts

BACKENDS = frozenset({"vllm", "pt"})
#: Backends of a language model that need CUDA.
CUDA_BACKENDS = frozenset({"vllm", "nano-vllm", "nanovllm", "custom-vllm"})


@dataclass(frozen=True)
class Thing:
    """Something that every tree has somewhere.

    Attributes:
        what: what it is, for people.
        homes: `module:name` by version, the oldest layout first.
        words: texts one of which its file must hold.
        does: tells it from its syntax, where no home holds it.
    """

    what: str
    homes: tuple[str, ...]
    words: tuple[str, ...]
    does: Callable[[Node], bool]


@dataclass(frozen=True)
class Place:
    """A thing as one tree has it: its row, the object, and `file:line` in the tree."""

    row: str
    value: Any
    line: str


def _has_method(name: str) -> Callable[[Node], bool]:
    def does(node: Node) -> bool:
        return isinstance(node, ast.ClassDef) and any(
            isinstance(part, ast.FunctionDef) and part.name == name for part in node.body
        )

    return does


def _arguments(node: Node) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return []
    every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    return [argument.arg for argument in every]


def _compares_devices(node: Node) -> bool:
    """A method that is given a tensor and a device and compares the tensor's device to it."""
    names = [name for name in _arguments(node) if name != "self"]
    if len(names) != 2 or not any("device" in name for name in names):
        return False
    return any(
        isinstance(part, ast.Compare)
        and any(isinstance(p, ast.Attribute) and p.attr == "device" for p in ast.walk(part))
        for part in ast.walk(node)
    )


def _counts_memory(node: Node) -> bool:
    """A function without required arguments that asks a GPU for its whole memory."""
    if isinstance(node, ast.ClassDef) or len(_arguments(node)) > len(node.args.defaults):
        return False
    return "mem" in node.name and any(
        isinstance(part, ast.Attribute)
        and part.attr in ("total_memory", "recommended_max_memory", "get_memory_info")
        for part in ast.walk(node)
    )


def _starts_a_model(node: Node) -> bool:
    """A class with a method that loads a language model on a device with a backend."""
    return isinstance(node, ast.ClassDef) and any(
        {"backend", "device"} <= set(_arguments(part))
        for part in node.body
        if isinstance(part, ast.FunctionDef)
    )


def _serves(node: Node) -> bool:
    """A class with a method that loads the music model of a configuration on a device."""
    return isinstance(node, ast.ClassDef) and any(
        {"config_path", "device"} <= set(_arguments(part))
        for part in node.body
        if isinstance(part, ast.FunctionDef)
    )


def offers_devices(call: ast.Call) -> bool:
    """Whether a call offers a literal choice of devices."""
    return of_devices(texts(keyword(call, "choices")))


def of_devices(choices: Collection[str]) -> bool:
    """Whether choices are of devices: two that every tree offers are among them."""
    return "cuda" in choices and "cpu" in choices


def _offers_on_a_page(node: Node) -> bool:
    if isinstance(node, ast.ClassDef):
        return False
    return any(offers_devices(c) for name in ("Dropdown", "Radio") for c in calls(node, name))


def _offers_backends(node: Node) -> bool:
    """A function whose dropdown is of language model backends, by its name or its choices."""
    if isinstance(node, ast.ClassDef):
        return False
    return any(
        texts(offered) >= BACKENDS or "backend" in getattr(offered, "id", "")
        for name in ("Dropdown", "Radio")
        for call in calls(node, name)
        for offered in [keyword(call, "choices")]
    )


def declares_option(node: ast.AST, option: str) -> bool:
    """Whether a command line's option of this name is declared below a node."""
    return any(
        isinstance(argument, ast.Constant) and argument.value == option
        for call in calls(node, "add_argument")
        for argument in call.args
    )


def _is_command(node: Node) -> bool:
    """A function that declares the device option of a command line that makes songs."""
    if isinstance(node, ast.ClassDef) or not declares_option(node, "--device"):
        return False
    return any(declares_option(node, name) for name in ("--config_path", "--backend", "--port"))


THINGS = {
    "scorer": Thing(
        "the lyric scorer",
        (
            "dit_alignment_score:MusicLyricScorer",
            "core.scoring.dit_score:MusicLyricScorer",
            "core.scoring.dit_alignment:MusicLyricScorer",
        ),
        ("calculate_score",),
        _has_method("calculate_score"),
    ),
    "placement": Thing(
        "the test of where a tensor lies",
        (
            "handler:AceStepHandler._is_on_target_device",
            "core.generation.handler.init_service_memory_basic:"
            "InitServiceMemoryBasicMixin._is_on_target_device",
        ),
        (".device",),
        _compares_devices,
    ),
    "handler": Thing(
        "the music model's handler", ("handler:AceStepHandler",), ("config_path",), _serves
    ),
    "planner": Thing(
        "the language model's handler",
        ("llm_inference:LLMHandler",),
        ("backend",),
        _starts_a_model,
    ),
    "memory": Thing(
        "the memory of this machine",
        ("gpu_config:get_gpu_memory_gb",),
        ("total_memory", "recommended_max_memory", "get_memory_info"),
        _counts_memory,
    ),
    "command": Thing(
        "the command line", ("acestep_v15_pipeline:main",), ("--device",), _is_command
    ),
    "device dropdown": Thing(
        "the page's choice of devices",
        (
            "gradio_ui.interfaces.generation:create_generation_section",
            "ui.gradio.interfaces.generation:create_generation_section",
        ),
        ("Dropdown", "Radio"),
        _offers_on_a_page,
    ),
    "backend dropdown": Thing(
        "the page's choice of backends",
        (
            "gradio_ui.interfaces.generation:create_generation_section",
            "ui.gradio.interfaces.generation:create_generation_section",
        ),
        ("Dropdown", "Radio"),
        _offers_backends,
    ),
}


def places(tree: Tree, name: str) -> Iterator[Place]:
    """Where a tree has a thing, the known homes before what is recognised by what it does.

    Raises:
        Absent: nowhere.
        Blocked, ImportFailed: it is there, and its module cannot be imported.
    """
    thing, found = THINGS[name], 0
    for row in thing.homes:
        module, _, dotted = row.partition(":")
        if tree.has_module(f"acestep.{module}"):
            try:
                yield Place(row, attribute(load(tree, module), dotted), line_of(tree, row))
            except Absent:
                continue
            found += 1
            return
    for other in find(tree, thing.does, *thing.words):
        if any(part.startswith("test") for part in other.module.split(".")):
            continue
        if "<locals>" not in other.name:
            yield Place(other.row, _loaded(tree, other), other.place)
            found += 1
    if not found:
        raise Absent(f"the tree has no sign of {thing.what}")


def place_of(tree: Tree, name: str) -> Place:
    """The first of `places`."""
    return next(places(tree, name))


def line_of(tree: Tree, row: str) -> str:
    """`file:line` of the function behind a row, also where another module only passes it on."""
    module, _, dotted = row.partition(":")
    value: Any = attribute(load(tree, module), dotted)
    value = vars(value).get("__init__", value) if isinstance(value, type) else value
    code = getattr(getattr(value, "__wrapped__", value), "__code__", None)
    if code is None or not code.co_filename.startswith(f"{tree.package}/"):
        return ""
    return f"{code.co_filename.removeprefix(f'{tree.root}/')}:{code.co_firstlineno}"


def _loaded(tree: Tree, found: Found) -> Any:
    return attribute(load(tree, found.module), found.name)
