"""Fixtures of the cases: handlers with the built-in checkpoint, once a target and process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from conformance.suite.support import Api, initialised, new_handler
from conformance.targets import Target
from conformance.tree import Tree

settings.register_profile(
    "conformance",
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=20,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("conformance")


@pytest.fixture(scope="session")
def api(tree: Tree) -> Api:
    """The tree's public names; one that is not there makes the case absent."""
    return Api(tree)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files that cases leave."""
    return tmp_path_factory.mktemp("conformance")


@pytest.fixture(scope="session")
def handler(api: Api, target: Target) -> Iterator[Any]:
    """A handler with the built-in checkpoint on the target."""
    made = initialised(api, target.device)
    yield made
    if hasattr(made, "unload"):
        made.unload()


@pytest.fixture(scope="session")
def xl_folder(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny XL base checkpoint with random weights, in diffusers' layout."""
    folder: Path = tmp_path_factory.mktemp("xl") / "acestep-v15-xl-base-tiny"
    shape = api.get("demo.recipe:DemoShape")
    narrow = {"hidden": 128, "condition_hidden": 64, "token_hidden": 64, "layers": 2}
    api.get("demo.recipe:build")(folder, shape(is_turbo=False, **narrow))
    config = folder / "transformer" / "config.json"
    # By this, and the width of its own, a checkpoint is known for one of the original's.
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_version": "base"}))
    return folder


@pytest.fixture(scope="session")
def xl(api: Api, target: Target, xl_folder: Path) -> Iterator[Any]:
    """A handler with that checkpoint on the target, in float32."""
    handler = new_handler(api)
    message, ok = handler.initialize_service(None, str(xl_folder), target.device, dtype="float32")
    assert ok, message
    yield handler
    handler.unload()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the suite changes what is judged."""
    for name in ("ACESTEP_DEVICE", "ACESTEP_DEVICE_MEMORY_GB", "MAX_CUDA_VRAM"):
        monkeypatch.delenv(name, raising=False)
