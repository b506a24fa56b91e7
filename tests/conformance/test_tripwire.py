"""The tripwire: a table of snippets, each with what must be seen of it and who is blamed."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from conformance.blame import Touch
from conformance.tripwire import Tripwire

TREE_HEAD = """
import contextlib, functools, threading
import torch
import torch.cuda as shortcut
from torch import cuda, device as named_device
from torch.cuda import Event, Stream, empty_cache as emptied, is_available
from torch.cuda.amp import autocast as cuda_autocast
import helper_library as library

HELD = [emptied]
DEFAULT = torch.device("cuda")

class Model(torch.nn.Module):
    pass
"""

# name: (code of the tree, what must be among the tree's calls)
TOUCHES = {
    "call": ("torch.cuda.empty_cache()", "torch.cuda.empty_cache"),
    "call through a module alias": ("shortcut.empty_cache()", "torch.cuda.empty_cache"),
    "call through an imported module": ("cuda.empty_cache()", "torch.cuda.empty_cache"),
    "function imported before": ("emptied()", "torch.cuda.empty_cache"),
    "function kept in a list": ("HELD[0]()", "torch.cuda.empty_cache"),
    "query": ("torch.cuda.is_available()", "torch.cuda.is_available"),
    "query imported before": ("is_available()", "torch.cuda.is_available"),
    "attribute without a call": ("torch.cuda.default_generators", "torch.cuda.default_generators"),
    "getattr": ('getattr(torch, "cuda").device_count()', "torch.cuda.device_count"),
    "hasattr": ('hasattr(torch.cuda, "nccl")', "torch.cuda.nccl"),
    "submodule": ("torch.cuda.memory.memory_allocated", "torch.cuda.memory.memory_allocated"),
    "import inside": ("from torch.cuda import synchronize", "torch.cuda.synchronize"),
    "import of a submodule": ("from torch.cuda import nvtx", "torch.cuda.nvtx"),
    "class imported before": ("Event()", "torch.cuda.Event"),
    "class": ("torch.cuda.Stream()", "torch.cuda.Stream"),
    "context manager": ("torch.cuda.device(0)", "torch.cuda.device"),
    "exception class": (
        "try: pass\nexcept torch.cuda.OutOfMemoryError: pass\nelse: torch.cuda.OutOfMemoryError",
        "torch.cuda.OutOfMemoryError",
    ),
    "tensor made": ('torch.zeros(2, device="cuda")', "torch.zeros(device='cuda')"),
    "tensor made with an index": (
        'torch.randn(2, device="cuda:1")',
        "torch.randn(device='cuda:1')",
    ),
    "tensor made by a held device": ("torch.ones(2, device=DEFAULT)", "torch.ones(device='cuda')"),
    "tensor moved": ('torch.ones(2).to("cuda")', "Tensor.to('cuda')"),
    "tensor.cuda": ("torch.ones(2).cuda()", "Tensor.cuda"),
    "is_cuda": ("torch.ones(2).is_cuda", "Tensor.is_cuda"),
    "module moved": ('torch.nn.Linear(2, 2).to("cuda")', "Module.to('cuda')"),
    "module moved by name": ('Model().to(device="cuda")', "Module.to('cuda')"),
    "module.cuda": ("torch.nn.Linear(2, 2).cuda()", "Module.cuda"),
    "device": ('torch.device("cuda")', "torch.device('cuda')"),
    "device with an index": ('torch.device("cuda", 1)', "torch.device('cuda')"),
    "device imported before": ('named_device("cuda:3")', "torch.device('cuda:3')"),
    "generator": ('torch.Generator(device="cuda")', "torch.Generator('cuda')"),
    "autocast": ('torch.autocast("cuda").__enter__', "torch.autocast('cuda')"),
    "autocast by name": ('torch.autocast(device_type="cuda")', "torch.autocast('cuda')"),
    "autocast of CUDA": ("cuda_autocast()", "torch.cuda.amp.autocast"),
    "gradient scaler": ("torch.amp.GradScaler()", "torch.amp.GradScaler('cuda')"),
    "default device": ('torch.set_default_device("cuda")', "torch.set_default_device('cuda')"),
    "partial": ("functools.partial(torch.cuda.synchronize)()", "torch.cuda.synchronize"),
    "swallowed": (
        "with contextlib.suppress(Exception): torch.cuda.synchronize()",
        "torch.cuda.synchronize",
    ),
    "thread": (
        "t = threading.Thread(target=emptied); t.start(); t.join()",
        "torch.cuda.empty_cache",
    ),
    "tensor made in a thread": (
        "t = threading.Thread(target=quiet); t.start(); t.join()",
        "torch.zeros(device='cuda')",
    ),
    "random state": ("torch.cuda.manual_seed_all(1)", "torch.cuda.manual_seed_all"),
    "through a library": ("library.move(torch.ones(1))", "Tensor.to('cuda')"),
}

# Code that may not be blamed on the tree, and what libraries are seen to touch by it.
HARMLESS = {
    "a query by a library": ("library.query()", "torch.cuda.is_available"),
    "a seed": ("torch.manual_seed(1)", "torch.cuda.manual_seed_all"),
    "other devices": ('torch.zeros(2, device="cpu").to("meta")', None),
    "other device objects": ('torch.device("cpu"), torch.device("mps", 0)', None),
    "a word": ('str("cuda") + "torch.cuda"', None),
    "a comparison": ('torch.ones(1).device.type == "cuda"', None),
    "neutral surface": ("torch.accelerator.is_available()", None),
    "autocast of the CPU": ('torch.autocast("cpu", dtype=torch.bfloat16)', None),
    "a model on the CPU": ('torch.nn.Linear(2, 2).to("cpu")', None),
    "the module alone": ("torch.cuda", None),
}

LIBRARY = """
import torch

def query():
    return torch.cuda.is_available()

def make_sure():
    torch.cuda.init()

def move(tensor):
    return tensor.to("cuda")
"""


@pytest.fixture(scope="module")
def snippets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ModuleType]]:
    """A tree with a function for each snippet, and a library beside it."""
    root = tmp_path_factory.mktemp("snippets")
    package, site = root / "acestep", root / "site-packages"
    package.mkdir()
    site.mkdir()
    (site / "helper_library.py").write_text(LIBRARY)
    lines = [
        TREE_HEAD,
        'def quiet():\n    try: torch.zeros(1, device="cuda")\n    except Exception: return None',
    ]
    lines.append("def snippet_make_sure():\n    library.make_sure()")
    lines.append("def snippet_move():\n    library.move(torch.ones(1))")
    for number, (code, _) in enumerate([*TOUCHES.values(), *HARMLESS.values()]):
        body = code.replace("\n", "\n    ")
        lines.append(f"def snippet_{number}():\n    {body}")
    (package / "snippets.py").write_text("\n\n".join(lines))
    sys.path.insert(0, str(site))
    spec = importlib.util.spec_from_file_location("snippets_of_tree", package / "snippets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield package, module
    sys.path.remove(str(site))
    del sys.modules[spec.name], sys.modules["helper_library"]


def run(snippets: tuple[Path, ModuleType], number: int) -> Tripwire:
    package, module = snippets
    with Tripwire(package) as wire, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            getattr(module, f"snippet_{number}")()
        except (RuntimeError, AssertionError) as error:
            # Without CUDA most of these fail, after they have been noticed.
            if not any(word in str(error) for word in ("CUDA", "cuda", "dummy")):
                raise
        finally:
            torch.set_default_device(None)
    return wire


@pytest.mark.parametrize("number", range(len(TOUCHES)), ids=list(TOUCHES))
def test_a_touch_by_the_tree_is_seen(snippets: Any, number: int) -> None:
    _, call = list(TOUCHES.values())[number]
    wire = run(snippets, number)
    assert call in [touch.call for touch in wire.failures], wire.touches
    for touch in wire.failures:
        place = touch.place if touch.origin == "tree" else touch.via
        assert place is not None
        assert place.file.endswith("acestep/snippets.py")
        assert place.source.strip()


@pytest.mark.parametrize("number", range(len(HARMLESS)), ids=list(HARMLESS))
def test_what_libraries_do_is_not_blamed_on_the_tree(snippets: Any, number: int) -> None:
    _, call = list(HARMLESS.values())[number]
    wire = run(snippets, len(TOUCHES) + number)
    assert not wire.failures
    if call is not None:
        assert call in [touch.call for touch in wire.library_touches]


def state() -> list[Any]:
    """Everything that arming exchanges."""
    functions = [torch.cuda.empty_cache, torch.cuda.Stream.wait_event, torch.nn.Module.to]
    return [
        type(torch.cuda),
        type(torch.cuda.amp),
        torch.device,
        torch.Generator,
        threading.Thread.start,
        *[function.__code__ for function in functions],
        torch.zeros,
        torch.Tensor.to,
        "is_cuda" in vars(torch.Tensor),
    ]


def test_everything_is_restored(snippets: Any, tmp_path: Path) -> None:
    package, module = snippets
    before = state()

    def fail_while_armed() -> None:
        with Tripwire(package):
            assert sum(now is not then for now, then in zip(state(), before, strict=True)) > 8
            assert module.named_device is torch.device
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_armed()
    assert state() == before
    assert module.named_device is torch.device


def test_one_at_a_time(tmp_path: Path) -> None:
    with Tripwire(tmp_path), pytest.raises(RuntimeError, match="armed already"), Tripwire(tmp_path):
        pass


def test_devices_behave_while_armed(tmp_path: Path) -> None:
    """Types compare, copy, pickle and work as keys as they do without a tripwire."""
    plain = torch.device
    with Tripwire(tmp_path):
        here = torch.device("cpu")
        assert isinstance(here, torch.device)
        assert isinstance(torch.device("mps", 0), plain)
        assert torch.device == plain
        assert {plain: 1}[torch.device] == 1
        assert issubclass(plain, torch.device)
        assert pickle.loads(pickle.dumps(torch.device("mps", 0))) == plain("mps", 0)
        assert copy.deepcopy(here) == here
        assert isinstance(torch.device.type, type(plain.type))
        with torch.device("meta"):
            assert torch.zeros(1).is_meta
    assert pickle.dumps(plain("cpu"))


def test_many_touches_are_one_line_with_a_count(snippets: Any) -> None:
    package, module = snippets
    with Tripwire(package) as wire:
        for _ in range(5):
            module.snippet_0()
    (touch,) = wire.failures
    # Reading the name and calling it are two touches of one line.
    assert touch.count == 10
    assert touch.describe(package.parent).startswith("acestep/snippets.py:")


def test_threads_of_a_pool(snippets: Any) -> None:
    package, module = snippets
    with Tripwire(package) as wire, ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: module.quiet(), range(6)))
    assert {touch.call for touch in wire.failures} == {"torch.zeros(device='cuda')"}


def test_names_may_be_allowed(snippets: Any) -> None:
    """A case that asks about CUDA lets the tree name it and look for it, and no more."""
    package, module = snippets
    names = list(TOUCHES)
    with Tripwire(package, may_name_cuda=True) as wire:
        getattr(module, f"snippet_{names.index('device')}")()
        getattr(module, f"snippet_{names.index('query')}")()
        assert not wire.failures
        getattr(module, f"snippet_{names.index('call')}")()
    assert [touch.call for touch in wire.failures] == ["torch.cuda.empty_cache"]


@pytest.mark.parametrize("started", [True, False])
def test_a_library_may_make_sure_of_a_cuda_that_runs(
    snippets: Any, monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    """Where another target has started CUDA, what would start it elsewhere starts nothing."""
    package, module = snippets
    monkeypatch.setattr(torch.cuda, "_initialized", started)
    for may_name_cuda in (True, False):
        with Tripwire(package, may_name_cuda=may_name_cuda) as wire, suppress(Exception):
            module.snippet_make_sure()
        assert bool(wire.failures) is not (started and may_name_cuda)
        with Tripwire(package, may_name_cuda=may_name_cuda) as wire, suppress(Exception):
            module.snippet_move()
        assert wire.failures


def test_the_suite_itself_is_not_recorded(tmp_path: Path) -> None:
    file = Path(sys.modules["conformance"].__path__[0]) / "suite" / "case.py"
    code = compile("import torch\ntorch.cuda.is_available()", str(file), "exec")
    with Tripwire(tmp_path) as wire:
        exec(code, {})
    assert not wire.touches


def test_a_touch_describes_itself() -> None:
    from conformance.blame import Place

    place = Place("/site-packages/torch/x.py", 3, "f", "g()")
    via = Place("/tree/acestep/y.py", 9, "h", "f()")
    touch = Touch("torch.cuda.init", "library", place, via, True, "Worker")
    told = touch.describe(Path("/tree"))
    assert told.startswith("torch/x.py:3 in f: torch.cuda.init (would initialise CUDA) on thread")
    assert told.endswith("called from acestep/y.py:9: f()")
