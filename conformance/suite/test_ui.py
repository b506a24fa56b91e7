"""The page: which devices and backends it offers, and which it starts with."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.entrypoints import covers
from conformance.suite.support import Api, absent_device, backends
from conformance.targets import Target

SECTION = "gradio_ui.interfaces.generation:create_generation_section"


def dropdown(parts: dict[str, Any], offered: str) -> Any:
    """The component that offers a choice."""
    found = [part for part in parts.values() if offered in choices(part)]
    assert found, f"no component offers '{offered}'"
    return found[0]


def choices(part: Any) -> list[str]:
    """The values that a component offers; gradio keeps them as (label, value)."""
    offered = getattr(part, "choices", None) or []
    return [str(c[1] if isinstance(c, tuple | list) else c) for c in offered]


def section(api: Api) -> dict[str, Any]:
    """The components of the page's generation part, made as the page makes them."""
    create = api.get(SECTION, optional="gradio")
    handler = api.get("handler:AceStepHandler")()
    llm = api.get("llm_inference:LLMHandler")()
    gradio: Any = importlib.import_module("gradio")

    async def make() -> dict[str, Any]:
        # Within a loop: without one, gradio makes loops that it never closes.
        with gradio.Blocks(analytics_enabled=False):
            parts: dict[str, Any] = create(handler, llm, init_params=None, language="en")
        return parts

    return asyncio.run(make())


@pytest.fixture
def auto(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` means the device under test, also where the machine has a better one."""
    monkeypatch.setenv("ACESTEP_DEVICE", target.device)


@covers("S3", SECTION)
@pytest.mark.usefixtures("auto")
def test_device_dropdown(api: Api) -> None:
    part = dropdown(section(api), "cuda")
    offered = set(choices(part))
    told = f"the page offers {sorted(offered)}; {api.literal(offered)}"
    assert offered == {"auto", "cuda", "mps", "cpu"}, told
    assert part.value == "auto"


@covers("S5", SECTION)
@pytest.mark.usefixtures("auto")
def test_backend_dropdown(api: Api, target: Target) -> None:
    part = dropdown(section(api), "vllm")
    assert {"pt", "vllm"} <= set(choices(part))
    right = backends(target)
    assert part.value in right, f"the page starts with {part.value}; {decision(api)}"


def decision(api: Api) -> str:
    """Where this tree's page decides on the first backend; another tree's is not known."""
    if not api.tree.has_module("acestep.gradio_ui.settings"):
        return "see the backend dropdown"
    first = api.get("gradio_ui.settings:first_backend")
    return api.decided_at(lambda: first("auto"))


class Visit:
    """A visitor of the page: uses the functions that the page's components are wired to.

    They are called here and not over HTTP, because a simulated device is one of this thread.
    """

    def __init__(self, api: Api, folder: Path, target: Target) -> None:
        get = api.get
        gradio: Any = importlib.import_module("gradio")
        options = get("gradio_ui.settings:PageOptions").of(
            {"config_path": "demo", "lm_model_path": "demo", "device": target.device}
        )
        self.studio = get("gradio_ui.studio:Studio")(
            options, get("gradio_ui.engines:Engines")(), folder
        )
        serve, job_of = get("gradio_ui.jobs:serve"), get("gradio_ui.jobs:Job")

        def at_once(*given: Any) -> Any:
            job = job_of(*given)
            serve(job)
            return job

        self.studio.line.submit = at_once
        create = get(SECTION)

        async def make() -> dict[str, Any]:
            with gradio.Blocks(analytics_enabled=False) as self.blocks:
                parts: dict[str, Any] = create(None, None, {"studio": self.studio}, "en")
            return parts

        self.parts = asyncio.run(make())
        self.names = {id(part): name for name, part in self.parts.items()}
        client = SimpleNamespace(host="127.0.0.1")
        self.request = SimpleNamespace(cookies={}, client=client, session_hash="one")

    def use(self, name: str, event: str, data: Any = None, **values: Any) -> dict[str, Any]:
        """Press or change a component; returns the last value of each that was updated."""
        part = self.parts[name]
        function = next(fn for fn in self.blocks.fns.values() if (part._id, event) in fn.targets)
        given = [values.get(self.names[id(p)], p.value) for p in function.inputs]
        return asyncio.run(self._call(function.fn, given, data))

    @property
    def owners(self) -> list[str]:
        """The names under which songs are kept."""
        return [path.name for path in self.studio.store.root.iterdir()]

    def load(self) -> dict[str, Any]:
        """Open the page."""
        function = next(fn for fn in self.blocks.fns.values() if fn.targets[0][1] == "load")
        return asyncio.run(self._call(function.fn, ["en"], None))

    async def _call(self, function: Callable[..., Any], given: list[Any], data: Any) -> Any:
        inputs, event = list(given), SimpleNamespace(target=None, _data=data)
        # A watched function has lost its signature, but not its annotations.
        for place, name in enumerate(function.__annotations__):
            if name in ("request", "event"):
                inputs.insert(place, self.request if name == "request" else event)
        made, seen = function(*inputs), dict[str, Any]()
        if hasattr(made, "__anext__"):
            async for update in made:
                seen |= {self.names[id(part)]: value for part, value in update.items()}
            return seen
        made = await made if hasattr(made, "__await__") else made
        if isinstance(made, dict) and "__type__" not in made:
            return {self.names[id(part)]: value for part, value in made.items()}
        return {"": made}


@pytest.fixture
def visit(api: Api, target: Target, tmp_path: Path) -> Visit:
    """A page whose service is to run on the target."""
    api.get(SECTION, optional="gradio")
    return Visit(api, tmp_path, target)


EVENTS = ("wire", "arrive", "start", "make", "song_action", "model", "speak", "cancel", "stop")
ENGINES = ("abilities", "adapt", "dit", "dit_loaded", "llm_loaded", "load", "unload", "lines", "memory", "models", "planners", "real_planner", "tasks")  # fmt: skip


@covers(
    "A1",
    "S3",
    SECTION,
    *(f"gradio_ui.interfaces.events:Events.{name}" for name in EVENTS),
    *(f"gradio_ui.engines:Engines.{name}" for name in ENGINES),
    *(
        f"gradio_ui.studio:Studio.{name}"
        for name in ("align", "create", "start", "make", "source", "stop")
    ),
    "gradio_ui.engines:Engines",
    "gradio_ui.engines:limits_of",
    "gradio_ui.finishing:finish",
    "gradio_ui.finishing:finish_recording",
    "gradio_ui.making:Making.songs",
    "gradio_ui.interfaces.events:Events",
    "gradio_ui.interfaces.events:outcome",
    "gradio_ui.interfaces.events:visitor",
    "gradio_ui.interfaces.form:*",
    "gradio_ui.interfaces.service:*",
    "gradio_ui.studio:Studio",
)
def test_the_page_is_used(visit: Visit, target: Target) -> None:
    """Start, a song with lyrics, a repaint of it, stop: all on the target."""
    seen = visit.use("start", "click")
    assert target.device in seen["service_status"], seen["notice"]
    song = {"prompt": "warm piano", "lyrics": "[verse]\nhello", "duration": 1, "steps": 2}
    seen = visit.use("make", "click", **song, seed=3)
    assert "<audio" in seen["songs"], seen["notice"]
    (kept,) = next(iter(map(visit.studio.store.list, visit.owners)))
    assert kept.made["device"].startswith(target.device)
    assert [text for _, _, text in kept.lines] == ["[verse]", "hello"]
    visit.use("songs", "click", {"action": "use", "id": kept.id})
    again = {**song, "task": "repaint", "source_song": kept.id, "repaint_end": 0.5}
    assert "alert" not in visit.use("make", "click", **again)["notice"]
    assert visit.load()["songs"].count("<audio") == 2
    assert "alert" not in visit.use("create", "click", query="piano", duration=1)["notice"]
    # The built-in model is no singer; by another's name its lyrics are timed all the same.
    dit = visit.studio.engines.dit
    dit.checkpoint = replace(dit.checkpoint, builtin=False)
    timed = {**song, "task": "align", "source_song": kept.id}
    assert "alert" not in visit.use("make", "click", **timed)["notice"]
    visit.use("cancel", "click")
    visit.use("page_language", "change", page_language="ja")
    visit.use("model", "change", model="demo")
    visit.use("example_0", "click")
    seen = visit.use("stop", "click")
    assert not visit.studio.engines.dit_loaded
    assert not visit.studio.engines.llm_loaded


@covers(
    "S3",
    "S5",
    SECTION,
    "gradio_ui.interfaces.events:Events.backend",
    "gradio_ui.interfaces.events:Events.device",
    "gradio_ui.settings:Choice.backend_on",
    "gradio_ui.settings:Choice.policy",
    "gradio_ui.settings:first_backend",
)
@pytest.mark.names_cuda("the case itself asks for a device that is absent")
def test_choosing_a_device(visit: Visit, target: Target) -> None:
    """The page says which backend a device has, and refuses what is absent with a reason."""
    seen = visit.use("device", "change", device=target.device)
    assert "alert" not in seen["notice"]
    assert seen["backend"] in backends(target)
    assert target.device in seen["service_status"]
    absent = absent_device(target)
    for told in (
        visit.use("device", "change", device=absent),
        visit.use("start", "click", device=absent),
    ):
        assert "alert" in told["notice"]
        assert absent in told["notice"]
    assert "alert" not in visit.use("backend", "change", backend="pt")[""]
    if target.device != "cuda":
        refused = visit.use("backend", "change", backend="vllm")
        assert "vllm" in refused[""]
        assert "alert" in refused[""]
