"""The handler: where tensors are said to lie, where modules are put, and loads that fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conformance.entrypoints import covers
from conformance.suite.support import (
    Api,
    absent_device,
    generate,
    initialised,
    new_handler,
    placed,
    song,
    transformer_weights,
)
from conformance.targets import Target, find
from conformance.tree import Absent
from conformance.trees.facts.placement import Elsewhere

DEVICES = ("cpu", "cuda:0", "cuda:1", "mps:0", "meta")
SPELLINGS = ("cpu", "cuda", "cuda:0", "cuda:1", "mps", "mps:0", "meta")


def same(where: torch.device, wanted: str) -> bool:
    """Whether a device is the one that a name means; a missing index is the first device."""
    meant = torch.device(wanted)
    return where.type == meant.type and (where.index or 0) == (meant.index or 0)


@covers("S2", "handler:AceStepHandler._is_on_target_device")
@pytest.mark.names_cuda("the case itself asks about CUDA devices")
@pytest.mark.parametrize("spelled", SPELLINGS)
@pytest.mark.parametrize("kind", ["text", "device"])
def test_placement_is_told_right(api: Api, target: Target, spelled: str, kind: str) -> None:
    on_target = api.get("handler:AceStepHandler")()._is_on_target_device
    wanted = spelled if kind == "text" else torch.device(spelled)
    tensors: list[Any] = [Elsewhere(torch.device(name)) for name in DEVICES]
    for tensor in (*tensors, torch.zeros(1), torch.zeros(1, device=target.device)):
        told, right = on_target(tensor, wanted), same(tensor.device, spelled)
        assert told is right, (
            f"a tensor on {tensor.device} is {'not ' if right else ''}said to be on {spelled}; "
            + api.decided_at(lambda: on_target(tensor, wanted))  # noqa: B023
        )


@pytest.fixture(scope="session")
def canonical(api: Api) -> Any:
    """The policy's own reading of a device's name, which takes any case and spaces."""
    return api.get("device:canonical")


@covers("handler:AceStepHandler._is_on_target_device", "device.presence:canonical")
@pytest.mark.names_cuda("the case itself asks about CUDA devices")
@given(
    kind=st.sampled_from(["cpu", "cuda", "mps"]),
    index=st.none() | st.integers(0, 7),
    change=st.sampled_from([str, str.upper, str.title, lambda text: f" {text} "]),
)
def test_any_spelling_of_a_device(
    api: Api, target: Target, canonical: Any, kind: str, index: int | None, change: Any
) -> None:
    name = kind if index is None else f"{kind}:{index}"
    made = api.get("handler:AceStepHandler")()
    assert made._is_on_target_device(Elsewhere(torch.device(name)), change(name)) is True
    assert canonical(change(name)) == (kind, index or 0)


@covers("handler:AceStepHandler._is_on_target_device")
@given(text=st.text(max_size=12).filter(lambda text: not text.strip().lower().startswith(DEVICES)))
def test_what_is_no_device_is_refused(api: Api, target: Target, canonical: Any, text: str) -> None:
    made = api.get("handler:AceStepHandler")()
    try:
        torch.device(text.strip().lower())
    except RuntimeError:
        with pytest.raises((ValueError, RuntimeError, api.get("errors:AceStepError"))):
            made._is_on_target_device(torch.zeros(1), text)
    else:
        assert made._is_on_target_device(torch.zeros(1), text) is False


def modules_of(made: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The models that a handler holds, directly or in a pipeline."""
    held = vars(made) | {"pipeline": getattr(made, "pipeline", None)}
    for name, value in held.items():
        parts = value.components if hasattr(value, "components") else {name: value}
        for part_name, part in parts.items():
            if isinstance(part, torch.nn.Module):
                yield part_name, part


@covers(
    "A1",
    "handler:AceStepHandler",
    "handler:AceStepHandler.initialize_service",
    "handler:AceStepHandler.load",
    "handler:AceStepHandler.unload",
    "handler:AceStepHandler.status",
    "handler:AceStepHandler.device",
    "handler:AceStepHandler.dtype",
    "handler:AceStepHandler.tasks",
    "handler:AceStepHandler.get_available_*",
    "handler:AceStepHandler.is_flash_attention_available",
    "checkpoint.loading:*",
    "checkpoint.modules:*",
    "checkpoint.pretrained:load_pretrained",
    "engines.protocol:Traits.of",
    "engines.torch.loading:Options",
    "engines.torch.loading:Options.check",
    "engines.torch.loading:flash_attention_problem",
    "engines.torch.loading:load_engine",
    "engines.torch.loading:load_pipeline",
    "engines.torch.addresses:align",
    "checkpoint.finding:find",
)
def test_everything_is_placed(api: Api, target: Target) -> None:
    made = initialised(api, target.device)
    assert torch.device(made.device).type == target.device
    found = dict(modules_of(made))
    if target.engine == "mlx":
        weights = transformer_weights(made)
        assert all(torch.isfinite(value).all() for value in weights.values())
        assert target.name in made.status()
        assert made.dtype.is_floating_point
    else:
        assert found, "the handler holds no module"
    for module_name, module in found.items():
        for name, tensor in placed(module):
            where = tensor.device.type
            assert where == target.device, f"{module_name}.{name} is on {where}, " + api.moved_at(
                lambda: initialised(api, target.device), where
            )
    if "transformer" in found:
        assert {p.dtype for p in found["transformer"].parameters()} == {made.dtype}
    assert made.get_available_checkpoints() is not None
    assert made.get_available_acestep_v15_models()
    has_flash_attention = made.is_flash_attention_available()
    assert target.device == "cuda" or not has_flash_attention
    if hasattr(made, "unload"):
        assert made.tasks
        assert target.device in made.status()
        made.unload()
        assert not list(modules_of(made))


@covers("A2", "handler:AceStepHandler.initialize_service")
def test_auto_picks_this_device(api: Api, target: Target) -> None:
    here = find()
    best = next(name for name in ("cuda", "mps", "cpu") if here[name].present)
    if target.name != best and not target.simulated:
        raise Absent(f"auto means {best} on this machine, which is judged in its own column")
    made = initialised(api, "auto")
    assert torch.device(made.device).type == target.device


@covers("handler:AceStepHandler.initialize_service")
@pytest.mark.names_cuda("the case itself asks for a device that is absent")
def test_an_absent_device_is_refused(api: Api, target: Target) -> None:
    made, absent = new_handler(api), absent_device(target)
    message, ok = made.initialize_service(project_root=None, config_path="demo", device=absent)
    assert not ok, f"asked for {absent}, which is absent, and got {made.device}"
    assert absent in message
    assert len(message.splitlines()) == 1
    assert not list(modules_of(made))


@covers("handler:AceStepHandler.initialize_service", "handler:AceStepHandler.generate_music")
def test_a_failed_load_changes_nothing(api: Api, target: Target, tmp_path: Path) -> None:
    made = new_handler(api)
    bad = tmp_path / "checkpoint"
    bad.mkdir()
    (bad / "model_index.json").write_text("{")
    for config_path in (str(bad), "no-such-checkpoint"):
        message, ok = made.initialize_service(
            project_root=str(tmp_path), config_path=config_path, device=target.device
        )
        assert not ok
        assert len(message.splitlines()) == 1
        assert not list(modules_of(made))
    result = made.generate_music(captions="piano")
    assert not result["success"]
    assert result["error"]


@covers("A1", "handler:AceStepHandler.initialize_service")
@pytest.mark.parametrize("option", ["offload_to_cpu", "offload_dit_to_cpu"])
def test_offload_and_back(api: Api, target: Target, option: str) -> None:
    """On a device with its own memory idle modules wait on the host; elsewhere it is refused."""
    made = new_handler(api)
    options = {option: True}
    message, ok = made.initialize_service(
        project_root=None, config_path="demo", device=target.device, **options
    )
    if target.device != "cuda" or target.engine == "mlx":
        assert not ok
        assert "offload" in message
        return
    assert ok, message
    for _ in range(2):
        song(generate(api, made))
        idle = dict(modules_of(made))["transformer"]
        assert {tensor.device.type for _, tensor in placed(idle)} == {"cpu"}
